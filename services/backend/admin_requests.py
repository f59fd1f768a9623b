"""The bodies of requests to the admin API, with limits.

A body is read twice: as JSON of which only the fields of its shape are kept, then against the bounds of each.
"""

from collections.abc import Callable
from types import UnionType
from typing import Annotated, Any, Final, Generic, Literal, NamedTuple, TypeVar, Union, get_args, get_origin

import msgspec
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, field_validator

from shared.http.untrusted_json import decode_json
from shared.keyring.administration import (
    MAX_PAGE_SIZE,
    JournalEntry,
    JournalStep,
    RotateRequest,
    RotationType,
    StepOutcome,
    StoredKey,
    Text,
    Version,
)
from shared.keyring.journal.entries import MAX_DETAIL_LENGTH, MAX_NAME_LENGTH

T = TypeVar("T")
B = TypeVar("B", bound=BaseModel)
_Value = str | int | float | bool | None

RotationId = Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]{1,64}$")]
Token = Annotated[str, Field(max_length=200)]


class RequestBody(BaseModel):
    """Fields only ever grow, so unknown ones are passed over."""

    model_config = ConfigDict(extra="ignore", frozen=True)


class PageRequest(RequestBody):
    """Some of a long list, by id."""

    after: Text = Field("", max_length=200)
    limit: int = Field(MAX_PAGE_SIZE, ge=1, le=MAX_PAGE_SIZE)


class LeaseRequest(RequestBody):
    """Takes the lease, or keeps it."""

    holder: Text = Field(min_length=1, max_length=200)
    seconds: float = Field(gt=0, le=3600)
    token: Token = ""


class ReleaseRequest(RequestBody):
    """Gives the lease up."""

    token: Token


class DryRunRequest(RequestBody):
    """What a rotation would do."""

    type: RotationType
    target_version: Version | None = None


class JournalRequest(JournalEntry):
    """A step of a runner."""

    rotation_id: RotationId
    token: Token
    backup_name: Text | None = Field(None, max_length=MAX_NAME_LENGTH)
    sha256: Text | None = Field(None, max_length=MAX_NAME_LENGTH)
    detail: Text = Field("", max_length=MAX_DETAIL_LENGTH)

    @field_validator("step", "outcome")
    @classmethod
    def _refuse_unknown(cls, value: JournalStep | StepOutcome) -> JournalStep | StepOutcome:
        if value in (JournalStep.UNKNOWN, StepOutcome.UNREADABLE):
            raise ValueError(f"expected one of {', '.join(each for each in type(value) if each is not value)}")
        return value


class RollbackRequest(RequestBody):
    """Undoes a rotation."""

    rotation_id: RotationId
    token: Token


class RestoreRequest(RequestBody):
    """Rows of a backup."""

    rows: tuple[StoredKey, ...] = Field(max_length=MAX_PAGE_SIZE)
    token: Token


class VerifyRequest(RequestBody):
    """Whether everything can be read."""

    mode: Literal["sample", "full"] = "sample"
    after: Text | None = Field(None, max_length=200)
    """Requests a page; without it, everything at once."""


class RetireRequest(RequestBody):
    """Ends the use of a version."""

    kek_version: Version
    token: Token


class AbandonRequest(RequestBody):
    """Data keys that only a lost local key unwraps, and how many records are lost with them."""

    data_keys: tuple[Text, ...] = Field(min_length=1, max_length=MAX_PAGE_SIZE)
    records: int = Field(ge=0)


class _DryRunFlag(RequestBody):
    dry_run: bool = Field(default=False, strict=True)  # anything else must never be taken for a no


def _parse_rotation(document: object) -> DryRunRequest | RotateRequest:
    return (DryRunRequest if _DryRunFlag.model_validate(document).dry_run else RotateRequest).model_validate(document)


class BodyFormat(NamedTuple, Generic[T]):
    """Of a body."""

    read: Callable[[bytes], dict[str, object]]
    """JSON → its known fields. Raises UntrustedJsonError."""
    parse: Callable[[object], T]
    """These, within bounds. Raises ValidationError."""


def build_format(model: type[B]) -> BodyFormat[B]:
    """The shape of a body of one kind."""
    return BodyFormat(_build_reader(model), model.model_validate)


def _build_reader(*models: type[BaseModel]) -> Callable[[bytes], dict[str, object]]:
    decoder = msgspec.json.Decoder(_build_struct(*models))

    def read(body: bytes) -> dict[str, object]:
        return _extract_fields(decode_json(decoder, body))

    return read


def _build_struct(*models: type[BaseModel]) -> type[msgspec.Struct]:
    """The fields of all of these; required is what the only one of them requires."""
    fields: dict[str, Any] = {}
    for model in models:
        for name, field in model.model_fields.items():
            kind: Any = _choose_json_type(field.annotation)
            required = len(models) == 1 and field.is_required()
            fields[name] = (name, kind) if required else (name, kind | msgspec.UnsetType, msgspec.UNSET)
    return msgspec.defstruct(models[0].__name__, list(fields.values()), kw_only=True)


def _choose_json_type(annotation: Any) -> Any:
    """What msgspec reads for a field: a scalar, a list of them, or a list of objects; pydantic checks the rest."""
    options = get_args(annotation) if get_origin(annotation) in (Union, UnionType) else (annotation,)
    sequence = next((option for option in options if get_origin(option) is tuple), None)
    if sequence is None:
        return _Value
    item = get_args(sequence)[0]
    nested = isinstance(item, type) and issubclass(item, BaseModel)
    items: Any = list[_build_struct(item)] if nested else list[_Value]  # type: ignore[misc]  # made at run time
    return items | None if type(None) in options else items


def _extract_fields(read: msgspec.Struct) -> dict[str, object]:
    given = msgspec.structs.asdict(read).items()
    return {
        name: [_extract_fields(row) if isinstance(row, msgspec.Struct) else row for row in value]
        if isinstance(value, list)
        else value
        for name, value in given
        if value is not msgspec.UNSET
    }


ROTATION_FORMAT: Final = BodyFormat(_build_reader(_DryRunFlag, DryRunRequest, RotateRequest), _parse_rotation)
"""The body of `rotate`."""

parse_rotation_id: Final = TypeAdapter[str](RotationId).validate_python
"""The id in a path. Raises ValidationError."""
