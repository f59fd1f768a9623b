"""The administration of a keyring: the port that a rotation drives, and the types of its requests and responses.

The backend's admin API serves it, the rotator's drivers call it, and `local_administration` implements it over a
database and KMS. The types are JSON on the wire; fields are added, never removed. Only the rows of a backup hold key
material, and there it is wrapped.
"""

from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from datetime import datetime
from enum import StrEnum
from pathlib import PurePath
from typing import Annotated, Literal, Protocol, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from shared.check import HintedError
from shared.keyring.model import UNREADABLE_VERSION, DataKeyStatus, build_wrapping_aad, compute_fingerprint
from shared.kms.port import MAX_VERSION_LENGTH

MAX_PAGE_SIZE: int = 1000
"""Data keys in one page, at most: a hundred thousand of them never stand in memory at once."""

MAX_RESPONSE_BYTES: int = 16 * 1024 * 1024
"""Bytes of a response of the admin API, at most: a page of a backup has about one megabyte."""

_MAX_VALUES: int = 200_000
"""In a body, at most: a page has about ten thousand, and parsing takes hundreds of bytes for each."""
Text = Annotated[str, Field(pattern=r"^[^\x00]*$")]
"""PostgreSQL has no text with a NUL in it."""


StoredVersion = Annotated[str, Field(max_length=MAX_VERSION_LENGTH, pattern=r"^[ -~]*$")]
"""A version of a key as a keyring has it; `UNREADABLE_VERSION` where it cannot be read."""
Version = Annotated[StoredVersion, Field(min_length=1)]


class _WireModel(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)


class RotationType(StrEnum):
    """What is rotated."""

    NEW_DEK = "new-dek"
    """A new active data key; the old one stays for reading."""
    REWRAP_KEK = "rewrap-kek"
    """Re-wraps every data key by the KMS key's current primary version. Does not help against a leaked data key."""


class RotationState(StrEnum):
    """How far a rotation is."""

    RUNNING = "running"
    """Running or interrupted: `rotate` with the same id continues it."""
    DONE = "done"
    FAILED = "failed"
    """All that could be done is; `problems` names what could not. `rotate` with the same id tries those again."""
    ROLLED_BACK = "rolled_back"


class JournalStep(StrEnum):
    """A step of a rotation, in the order in which a runner does them."""

    PRIMARY_VERSION = "primary_version"
    """Reads the primary version of the KMS key, which must be enabled."""
    SMOKE = "smoke"
    """Checks that all that a rotation needs works."""
    PLAN = "plan"
    """Whether there is something to do; recorded if there is not."""
    BACKUP = "backup"
    PRIMARY_IN_USE = "primary_in_use"
    """Waits until Encrypt uses the primary version."""
    ROTATE = "rotate"
    RETARGET = "retarget"
    """A rotation goes on with another version than it began with."""
    RELOAD = "reload"
    """Every instance reads the keyring again."""
    VERIFY = "verify"
    ROLLBACK = "rollback"
    RESTORE = "restore"
    """Rows of a backup were put back; the keyring itself writes it, and it is of no rotation."""
    UNKNOWN = "unknown"
    """Another program wrote something else there."""

    @classmethod
    def _missing_(cls, value: object) -> "JournalStep":  # noqa: ARG003
        return cls.UNKNOWN


class StepOutcome(StrEnum):
    """How a step ended."""

    SUCCEEDED = "succeeded"
    FAILED = "failed"
    """It did not come to its end."""
    PROBLEMS = "problems"
    """It came to its end, and found or left out something."""
    NOTHING_TO_DO = "nothing_to_do"
    UNREADABLE = "unreadable"
    """Another program wrote something else into the entry: it may be of a backup that needs any version."""

    @classmethod
    def _missing_(cls, value: object) -> "StepOutcome":  # noqa: ARG003
        return cls.UNREADABLE


class JournalBackup(_WireModel):
    """A backup that the journal names, wherever its file is."""

    name: str
    """Of its file, without a folder."""
    sha256: str
    needs: tuple[StoredVersion, ...] | None
    """Versions of the KMS key without which it cannot be read and restored; None if that was not recorded."""

    def may_need(self, version: str) -> bool:
        """Whether the version may be one of them."""
        return not self.needs or not {version, UNREADABLE_VERSION}.isdisjoint(self.needs)


class JournalEntry(_WireModel):
    """A step of a rotation, as its runner wrote it down."""

    step: JournalStep
    outcome: StepOutcome
    rotation_type: RotationType | None = None
    backup_name: str | None = None
    """The file of a backup that was made; the next two belong to it."""
    sha256: str | None = None
    needs: tuple[StoredVersion, ...] | None = None
    detail: str = ""
    """A short text for people; no program parses it."""
    created_at: datetime | None = None

    @property
    def backup(self) -> JournalBackup | None:
        """The backup that this step made."""
        if self.step is not JournalStep.BACKUP or self.outcome is not StepOutcome.SUCCEEDED:
            return None
        return JournalBackup(name=PurePath(self.backup_name or "").name, sha256=self.sha256 or "", needs=self.needs)


class KeyInfo(_WireModel):
    """A data key without its wrapped form."""

    id: Text
    status: DataKeyStatus
    kek: Text
    """Full resource name of the KMS key, or `local`."""
    kek_version: StoredVersion
    """`0` of the local key."""
    algorithm: Text
    created_at: datetime
    fingerprint: str
    """Of the data key itself, hexadecimal: the same whatever wraps it."""


class StoredKey(KeyInfo):
    """A row of a backup."""

    wrapped: str
    """Base64."""
    aad: Annotated[str | None, BeforeValidator(lambda value: value or None)] = None
    """The additional authenticated data of its wrap, hexadecimal after `0x`; None: that of keypulse's own keyrings."""

    @property
    def wrapping_aad(self) -> bytes:
        """What its wrap is bound to. Raises ValueError where it is damaged."""
        return build_wrapping_aad(self.id) if self.aad is None else bytes.fromhex(self.aad.removeprefix("0x"))

    def has_fingerprint_of(self, secret: bytes) -> bool:
        return compute_fingerprint(secret).hex() == self.fingerprint


K = TypeVar("K", bound=KeyInfo)


class VersionUsage(_WireModel):
    """What needs one version of a key."""

    kek: str
    kek_version: StoredVersion
    data_keys: int
    records: int
    """Records that are encrypted by one of these data keys."""


class RetiredVersion(_WireModel):
    """A version of the KMS key that nothing may be wrapped by any more."""

    kek_version: StoredVersion
    retired_at: datetime
    """By the database's clock."""


class KeyUsage(_WireModel):
    """Which data keys, and how many records, need which version."""

    versions: tuple[VersionUsage, ...]
    active: str | None
    active_since: datetime | None
    encryptions: int | None = None
    """With the active data key; None if the service does not count them."""
    retired_versions: tuple[RetiredVersion, ...] = ()
    """Of `kek`."""
    keyring: Text | None = None
    """The id of the keyring, which its backups name; None if it has none yet, or the service does not report it."""
    kek: str | None = None
    """Full name of the KMS key that wraps new data keys; None if the service does not report it."""
    previous_keks: tuple[str, ...] = ()
    """Full names of the KMS keys that only unwrap."""
    new_dek_at: datetime | None = None
    """When a rotation last made a data key the active one, by the database's clock."""
    backups: tuple[JournalBackup, ...] = ()
    """The backups that runners made, of all rotations, the oldest first."""
    counted_at: datetime | None = None
    """By the same clock; None if the service does not report it."""
    unreadable: int = 0
    """Data keys whose rows cannot be read, of each column a hundred at most: they may need any version."""
    unreadable_entries: tuple[int, ...] | None = None
    """Numbers of journal entries that cannot be read, the first hundred: each may be of a backup, of any version. None
    where the service does not tell."""
    missing: int = 0
    """Data keys that records need and the keyring lacks, a hundred at most: a snapshot or a memory may have them."""
    excluded: tuple[VersionUsage, ...] = ()
    """Wrapped keys beside the keyring that no rotation changes: rows of a table that its `where` leaves out."""

    @property
    def unknown_usage(self) -> str | None:
        """What may need any version, for a sentence; None where nothing does."""
        found = [f"{self.unreadable} rows of data keys that cannot be read"] if self.unreadable else []
        found += [f"{self.missing} data keys that records need and the database lacks"] if self.missing else []
        if self.unreadable_entries is None:  # a service may leave out of `backups` what it cannot read
            found += ["backups in a journal whose unreadable entries this version of the service does not count"]
        elif self.unreadable_entries:
            rows = ", ".join(map(str, self.unreadable_entries[:3]))
            found += [f"{len(self.unreadable_entries)} journal entries that cannot be read (number {rows})"]
        return " and ".join(found) or None


class Problem(_WireModel):
    """One data key or record that was left out."""

    id: str
    error: str
    """One sentence."""
    is_foreign: bool = False
    """Another key's wrap: a rotation skips it, and `verify` fails for it, except in a table that several keys wrap."""


class RotationProgress(_WireModel):
    """A rotation."""

    rotation_id: str
    type: RotationType
    state: RotationState
    target_version: StoredVersion | None
    """Of the KMS key, which every data key is wrapped by in the end."""
    caller: str
    started_at: datetime
    updated_at: datetime
    total: int
    done: int
    problems: tuple[Problem, ...] = ()
    """The first hundred."""
    journal: tuple[JournalEntry, ...] = ()
    """The steps of its runner, in their order."""
    is_rolling_back: bool = False
    """A rollback has started: `rollback` continues it, `rotate` no longer can."""

    @property
    def backups(self) -> tuple[JournalBackup, ...]:
        """The backups that its runner made, the latest first."""
        return tuple(backup for entry in reversed(self.journal) if (backup := entry.backup))


class VerificationResult(_WireModel):
    """Whether everything can be read."""

    data_keys: int
    records: int
    problems: tuple[Problem, ...]
    fingerprint: str
    """Of all data keys by id, hexadecimal; a re-wrap leaves it as it is. Empty before the last page."""
    next: str | None = None
    """`after` of the next page. The last page has the problems of no data key, such as of records without one."""


class Lease(_WireModel):
    """Who may rotate."""

    holder: str
    token: str
    """A secret: only who took the lease gives it up."""
    expires_at: datetime


class RotateRequest(_WireModel):
    """Begins a rotation, or goes on with it: the same id never does anything twice."""

    rotation_id: str = Field(pattern=r"^[A-Za-z0-9._-]{1,64}$")
    type: RotationType
    token: str
    caller: Text = Field(max_length=200)
    target_version: Version | None = None
    """The version that Encrypt is known to use by now; a wrap under another one is refused."""
    allows_retarget: bool = False
    """Whether a rotation with another target version continues with this one; otherwise it is refused."""
    batch_size: int = Field(100, ge=1, le=MAX_PAGE_SIZE)
    """Data keys in this call, at most."""


class AdministrationError(HintedError):
    """Something could not be done."""


class RefusedError(AdministrationError):
    """The request must not be done, such as a rotation while another runner holds the lease."""


class UnreachableError(AdministrationError):
    """No valid response. The request may have been done, and may be sent again."""


def explain_excess(body: bytes) -> str | None:
    """Why JSON is too large to parse, as the end of a sentence; None if it is not."""
    if sum(map(body.count, (b",", b"[", b"{"))) <= _MAX_VALUES:
        return None
    return f"holds over {_MAX_VALUES} values"


async def list_pages(list_rows: Callable[[str], Awaitable[Sequence[K]]]) -> AsyncGenerator[Sequence[K], None]:
    """Every page of a list of the keyring, such as `list_backup_rows`."""
    after = ""
    while rows := await list_rows(after):
        yield rows
        after = rows[-1].id


class Administration(Protocol):
    """One keyring. Every method may raise AdministrationError, and may be called again after UnreachableError."""

    async def list_keys(self, after: str = "", limit: int = MAX_PAGE_SIZE) -> Sequence[KeyInfo]:
        """The data keys whose id comes after `after`, in the order of their ids."""
        ...

    async def count_key_usage(self) -> KeyUsage:
        """Which data keys and records need which version."""
        ...

    async def acquire_lease(self, holder: str, seconds: float, token: str = "") -> Lease:
        """Takes the lease, or keeps it where `token` is its own. Raises RefusedError, which names the other holder."""
        ...

    async def release_lease(self, token: str) -> None:
        """Gives the lease up; another runner's stays."""
        ...

    async def list_backup_rows(self, after: str = "", limit: int = MAX_PAGE_SIZE) -> Sequence[StoredKey]:
        """The rows after `after`, in the order of their ids, wrapped as they are."""
        ...

    async def list_excluded_rows(self, after: str = "", limit: int = MAX_PAGE_SIZE) -> Sequence[StoredKey]:
        """The same of `KeyUsage.excluded`, without rows that cannot be read."""
        ...

    async def rotate(self, request: RotateRequest) -> RotationProgress:
        """Does one batch, each data key in one commit with its journal entry; call it until it no longer runs."""
        ...

    async def dry_run(self, type_: RotationType, target_version: str | None) -> RotationProgress:
        """What `rotate` would do; changes nothing."""
        ...

    async def get_progress(self, rotation_id: str | None = None) -> RotationProgress | None:
        """That rotation, or the latest; None where there is none."""
        ...

    async def add_journal_entry(self, rotation_id: str, token: str, entry: JournalEntry) -> None:
        """Writes a step of the runner into the journal. Raises RefusedError where it could not be read again."""
        ...

    async def rollback(self, rotation_id: str, token: str) -> RotationProgress:
        """Undoes a batch by the journal; call it until the state is no longer `running`.

        Wrapped forms become what they were, the old data key active again.
        """
        ...

    async def restore(self, rows: Sequence[StoredKey], token: str) -> int:
        """Puts rows of a backup in the place of rows that do not open; returns how many changed."""
        ...

    async def verify(self, mode: Literal["sample", "full"], after: str | None = None) -> VerificationResult:
        """Unwraps every data key, or a page of those behind `after`, and decrypts some of their records, or all."""
        ...

    async def retire_version(self, kek_version: str, token: str) -> None:
        """From now on nothing may be wrapped by this version. Raises RefusedError where something still is."""
        ...

    async def reload_instances(self) -> None:
        """Every instance of the service that can be reached reads the keyring again."""
        ...
