"""What the admin API is asked: the shapes of its requests' bodies, bounded."""

from typing import Annotated, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from shared.keyring.administration import PAGE, RotateRequest, RotationType, StoredKey, Text, VersionNumber

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


def rotation(document: object) -> DryRun | RotateRequest:
    """What `rotate` is asked. Raises ValidationError."""
    return (DryRun if _MaybeDry.model_validate(document).dry_run else RotateRequest).model_validate(document)


rotation_id: Final = TypeAdapter[str](RotationId).validate_python
"""The id in a path. Raises ValidationError."""
