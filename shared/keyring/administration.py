"""The administration of a keyring: the port that a rotation drives, and the shapes of its questions and answers.

Three rooms hold to it: the backend's admin API answers it, the rotator's drivers ask it, and `keyring.rotation` carries
it out over a database and KMS. The shapes are JSON on the wire, with fields that only ever grow. No answer but a
backup's rows holds key material, and there it is wrapped.
"""

from collections.abc import Sequence
from datetime import datetime
from enum import StrEnum
from typing import Annotated, Literal, Protocol

from pydantic import BaseModel, ConfigDict, Field

from shared.keyring.model import MAX_VERSION, UNREADABLE_VERSION, DataKeyStatus

MAX_PAGE_SIZE: int = 1000
"""Data keys in one page, at most: a hundred thousand of them never stand in memory at once."""

Text = Annotated[str, Field(pattern=r"^[^\x00]*$")]
"""PostgreSQL has no text with a NUL in it."""
VersionNumber = Annotated[int, Field(ge=1, le=MAX_VERSION)]
"""Of a version of a KMS key."""


class _WireModel(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)


class RotationType(StrEnum):
    """What is rotated."""

    NEW_DEK = "new-dek"
    """A new active data key; the old one stays for reading."""
    REWRAP_KEK = "rewrap-kek"
    """Every data key wrapped anew under the KMS key's current primary version. Does not contain a leaked data key."""


class RotationState(StrEnum):
    """How far a rotation is."""

    RUNNING = "running"
    """Under way, or left in the middle: `rotate` with the same id goes on."""
    DONE = "done"
    FAILED = "failed"
    """All that could be done is; `problems` names what could not. `rotate` with the same id tries those again."""
    ROLLED_BACK = "rolled_back"


class KeyInfo(_WireModel):
    """A data key without its wrapped form."""

    id: Text
    status: DataKeyStatus
    kek: Text
    """Full resource name of the KMS key, or `local`."""
    kek_version: int = Field(ge=UNREADABLE_VERSION, le=MAX_VERSION)
    """0 of the local key."""
    algorithm: Text
    created_at: datetime
    fingerprint: str
    """Of the data key itself, hexadecimal: the same whatever wraps it."""


class StoredKey(KeyInfo):
    """A row of a backup."""

    wrapped: str
    """Base64."""


class VersionUsage(_WireModel):
    """What needs one version of a key."""

    kek: str
    kek_version: int
    data_keys: int
    records: int
    """Records that are encrypted by one of these data keys."""


class RetiredVersion(_WireModel):
    """A version of the KMS key that nothing may be wrapped by any more."""

    kek_version: int
    retired_at: datetime
    """By the database's clock."""


class KeyUsage(_WireModel):
    """Which data keys, and how many records, need which version."""

    versions: tuple[VersionUsage, ...]
    active: str | None
    """Id of the active data key."""
    active_since: datetime | None
    retired_versions: tuple[RetiredVersion, ...] = ()
    """Of `kek`."""
    kek: str | None = None
    """Full resource name of the KMS key that new data keys are wrapped by; None where the service does not tell."""
    new_dek_at: datetime | None = None
    """When a rotation last made a data key the active one, by the database's clock."""
    backups: tuple[str, ...] = ()
    """The backups that runners recorded, oldest first, of all rotations."""
    counted_at: datetime | None = None
    """By the same clock; None where the service does not tell."""
    unreadable: int = 0
    """Data keys whose rows cannot be read, of each column a hundred at most: they may need any version."""
    missing: int = 0
    """Data keys that records need and the keyring lacks, a hundred at most: a snapshot or a memory may have them."""

    @property
    def unknown_usage(self) -> str | None:
        """What may need any version, for a sentence; None where nothing does."""
        found = [f"{self.unreadable} rows of data keys that cannot be read"] if self.unreadable else []
        found += [f"{self.missing} data keys that records need and the database lacks"] if self.missing else []
        return " and ".join(found) or None


class Problem(_WireModel):
    """One data key or record that was left out."""

    id: str
    error: str
    """One sentence."""
    is_foreign: bool = False
    """Another key's wrap: skipped, and no failure."""


class RotationProgress(_WireModel):
    """A rotation."""

    rotation_id: str
    type: RotationType
    state: RotationState
    target_version: int | None
    """Of the KMS key, which every data key is wrapped by in the end."""
    caller: str
    started_at: datetime
    updated_at: datetime
    total: int
    done: int
    problems: tuple[Problem, ...] = ()
    """The first hundred."""
    journal: tuple[str, ...] = ()
    """What the runner noted, in its order, such as `backup NAME SHA256`."""
    is_rolling_back: bool = False
    """A rollback has begun: it is `rollback` that goes on, `rotate` no longer."""


class VerificationResult(_WireModel):
    """Whether everything can be read."""

    data_keys: int
    records: int
    """How many were looked at."""
    problems: tuple[Problem, ...]
    fingerprint: str
    """Of all data keys by id, hexadecimal; a re-wrap leaves it as it is. Empty before the last page."""
    next: str | None = None
    """`after` of the next page. The last one tells what belongs to no data key, such as records that lost theirs."""


class Lease(_WireModel):
    """Who may rotate."""

    holder: str
    token: str
    """A secret: only who took the lease gives it up."""
    expires_at: datetime
    """By the database's clock."""


class RotateRequest(_WireModel):
    """Begins a rotation, or goes on with it: the same id never does anything twice."""

    rotation_id: str = Field(pattern=r"^[A-Za-z0-9._-]{1,64}$")
    type: RotationType
    token: str
    """Of the lease."""
    caller: Text = Field(max_length=200)
    target_version: VersionNumber | None = None
    """The version that Encrypt is known to use by now; a wrap under another one is refused."""
    allows_retarget: bool = False
    """Whether a rotation that was begun for another version goes on with this one; else it is refused."""
    batch_size: int = Field(100, ge=1, le=MAX_PAGE_SIZE)
    """Data keys in this call, at most."""


class AdministrationError(Exception):
    """Something could not be done; the message is one sentence for a person, with the next step."""


class RefusedError(AdministrationError):
    """What was asked must not be done, such as a rotation while another runner holds the lease."""


class UnreachableError(AdministrationError):
    """Nobody answered, or nobody that can be understood. It may be tried again; what was asked may have been done."""


class Administration(Protocol):
    """One keyring. Every method may raise AdministrationError, and may be called again after UnreachableError."""

    async def list_keys(self, after: str = "", limit: int = MAX_PAGE_SIZE) -> Sequence[KeyInfo]:
        """Those whose id comes after `after`, in the order of their ids."""
        ...

    async def count_key_usage(self) -> KeyUsage:
        """What needs which version."""
        ...

    async def acquire_lease(self, holder: str, seconds: float, token: str = "") -> Lease:
        """Takes the lease, or keeps it where `token` is its own. Raises RefusedError, which names the other holder."""
        ...

    async def release_lease(self, token: str) -> None:
        """Gives the lease up; one that is another's by now stays."""
        ...

    async def list_backup_rows(self, after: str = "", limit: int = MAX_PAGE_SIZE) -> Sequence[StoredKey]:
        """The rows after `after`, in the order of their ids, wrapped as they are."""
        ...

    async def rotate(self, request: RotateRequest) -> RotationProgress:
        """Does one batch, each data key in one commit with its journal entry; call it until it no longer runs."""
        ...

    async def dry_run(self, type_: RotationType, target_version: int | None) -> RotationProgress:
        """What `rotate` would do; changes nothing."""
        ...

    async def get_progress(self, rotation_id: str | None = None) -> RotationProgress | None:
        """That rotation, or the latest; None where there is none."""
        ...

    async def add_journal_entry(self, rotation_id: str, token: str, entry: str) -> None:
        """Writes one of the runner's own steps into the journal."""
        ...

    async def rollback(self, rotation_id: str, token: str) -> RotationProgress:
        """Undoes a batch by the journal; call it until the state is no longer `running`.

        Wrapped forms become what they were, the old data key active again.
        """
        ...

    async def restore(self, rows: Sequence[StoredKey], token: str) -> int:
        """Puts rows of a backup in the place of those with the same id and fingerprint; gives how many changed."""
        ...

    async def verify(self, mode: Literal["sample", "full"], after: str | None = None) -> VerificationResult:
        """Unwraps every data key, or a page of those behind `after`, and decrypts some of their records, or all."""
        ...

    async def retire_version(self, kek_version: int, token: str) -> None:
        """From now on nothing may be wrapped by this version. Raises RefusedError where something still is."""
        ...

    async def reload_instances(self) -> None:
        """Every instance of the service that can be reached reads the keyring again."""
        ...
