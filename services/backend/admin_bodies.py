"""What the admin API is asked: the shapes of its requests' bodies, bounded.

A body is read twice: as JSON of which only the fields of its shape are kept, then against the bounds of each.
"""

from collections.abc import Callable
from typing import Annotated, Any, Final, Generic, Literal, NamedTuple, TypeVar, get_args, get_origin

import msgspec
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from shared.keyring.administration import PAGE, RotateRequest, RotationType, StoredKey, Text, VersionNumber
from shared.wire import decode

T = TypeVar("T")
B = TypeVar("B", bound=BaseModel)
_Value = str | int | float | bool | None

RotationId = Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]{1,64}$")]
Token = Annotated[str, Field(max_length=200)]


class Body(BaseModel):
    """Fields only ever grow, so unknown ones are passed over."""

    model_config = ConfigDict(extra="ignore", frozen=True)


class Page(Body):
    """Some of a long list, by id."""

    after: Text = Field("", max_length=200)
    limit: int = Field(PAGE, ge=1, le=PAGE)


class TakeLease(Body):
    """Takes the lease, or keeps it."""

    holder: Text = Field(min_length=1, max_length=200)
    seconds: float = Field(gt=0, le=3600)
    token: Token = ""


class Release(Body):
    """Gives the lease up."""

    token: Token


class DryRun(Body):
    """What a rotation would do."""

    type: RotationType
    target_version: VersionNumber | None = None


class Note(Body):
    """One of the runner's own steps."""

    rotation_id: RotationId
    token: Token
    step: Text = Field(min_length=1, max_length=1000)


class Rollback(Body):
    """Undoes a rotation."""

    rotation_id: RotationId
    token: Token


class Restore(Body):
    """Rows of a backup."""

    rows: tuple[StoredKey, ...] = Field(max_length=PAGE)
    token: Token


class Verify(Body):
    """Whether everything can be read."""

    mode: Literal["sample", "full"] = "sample"
    after: Text | None = Field(None, max_length=200)
    """Asks for a page; without it, for all at once."""


class Retire(Body):
    """Ends the use of a version."""

    kek_version: VersionNumber
    token: Token


class GiveUp(Body):
    """Data keys that only a lost local key unwraps, and how many records are lost with them."""

    data_keys: tuple[Text, ...] = Field(min_length=1, max_length=PAGE)
    records: int = Field(ge=0)


class _MaybeDry(Body):
    dry_run: bool = Field(default=False, strict=True)  # anything else must never be taken for a no


def _rotation(document: object) -> DryRun | RotateRequest:
    return (DryRun if _MaybeDry.model_validate(document).dry_run else RotateRequest).model_validate(document)


class Shape(NamedTuple, Generic[T]):
    """Of a body."""

    read: Callable[[bytes], dict[str, object]]
    """JSON → its known fields. Raises WireError."""
    parse: Callable[[object], T]
    """These, within bounds. Raises ValidationError."""


def of(model: type[B]) -> Shape[B]:
    """The shape of a body of one kind."""
    return Shape(_reader(model), model.model_validate)


def _reader(*models: type[BaseModel]) -> Callable[[bytes], dict[str, object]]:
    decoder = msgspec.json.Decoder(_struct(*models))

    def read(body: bytes) -> dict[str, object]:
        return _fields(decode(decoder, body))

    return read


def _struct(*models: type[BaseModel]) -> type[msgspec.Struct]:
    """The fields of all of these; required is what the only one of them requires."""
    fields: dict[str, Any] = {}
    for model in models:
        for name, field in model.model_fields.items():
            inner = next(iter(get_args(field.annotation)), None)
            kind: Any = _Value
            if isinstance(inner, type) and issubclass(inner, BaseModel):
                kind = list[_struct(inner)]  # type: ignore[misc]  # made here, so mypy cannot know it
            elif get_origin(field.annotation) is tuple:
                kind = list[_Value]
            required = len(models) == 1 and field.is_required()
            fields[name] = (name, kind) if required else (name, kind | msgspec.UnsetType, msgspec.UNSET)
    return msgspec.defstruct(models[0].__name__, list(fields.values()), kw_only=True)


def _fields(read: msgspec.Struct) -> dict[str, object]:
    given = msgspec.structs.asdict(read).items()
    return {
        name: [_fields(row) if isinstance(row, msgspec.Struct) else row for row in value]
        if isinstance(value, list)
        else value
        for name, value in given
        if value is not msgspec.UNSET
    }


ROTATION: Final = Shape(_reader(_MaybeDry, DryRun, RotateRequest), _rotation)
"""What `rotate` is asked."""

rotation_id: Final = TypeAdapter[str](RotationId).validate_python
"""The id in a path. Raises ValidationError."""
