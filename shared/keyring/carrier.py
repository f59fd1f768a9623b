"""The administration of a keyring, carried out over its database and KMS: in the service itself, or beside it."""

import re
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Final, Literal

from sqlalchemy import Connection

from shared.keyring import census, journal, lease, restore, store
from shared.keyring.administration import (
    PAGE,
    AdministrationError,
    Census,
    KeyInfo,
    Lease,
    Progress,
    RefusedError,
    RotateRequest,
    RotationType,
    StoredKey,
    UnreachableError,
    Verification,
)
from shared.keyring.database import Database, DatabaseError
from shared.keyring.lease import under_lease
from shared.keyring.model import GREATEST_VERSION, UNREADABLE_VERSION
from shared.keyring.records import RecordsTable
from shared.keyring.rotation import Rotations
from shared.keyring.store import RetiredVersionError
from shared.keyring.tables import data_keys, retired_versions
from shared.keyring.verification import COUNT_SECONDS, Inspection
from shared.keyring.wrapping import Wrapping
from shared.kms.provider import KmsError
from shared.kms.reason import Reason

_LONGEST_STEP: Final = 1000
_ROTATION_ID: Final = re.compile(r"[A-Za-z0-9._-]{1,64}")
_PASSING: Final = {Reason.TIMEOUT, Reason.UNAVAILABLE, Reason.QUOTA_EXHAUSTED, Reason.CRC_MISMATCH}


async def _nobody() -> None:
    """Shows the keyring to nobody: its instances look at it from time to time."""


class KeyringAdministration:
    """An `Administration` over a database and KMS.

    Args:
        database: open, with `tables.TABLES`.
        wrapping: KMS, paced as `PacedKey` does, and the service's local key where it is at hand.
        records: the service's table of records, in the same database; None counts none.
        show: has every instance of the service that can be reached read the keyring again.
    """

    def __init__(
        self,
        database: Database,
        wrapping: Wrapping,
        records: RecordsTable | None = None,
        show: Callable[[], Awaitable[None]] = _nobody,
    ) -> None:
        self._database = database
        self._wrapping = wrapping
        self._records = records
        self._show = show
        self._rotations = Rotations(database, wrapping, show)

    async def keys(self, after: str = "", limit: int = PAGE) -> Sequence[KeyInfo]:
        """See `Administration`, here and below."""
        return [KeyInfo.model_validate(row.model_dump()) for row in await self.backup(after, limit)]

    async def backup(self, after: str = "", limit: int = PAGE) -> Sequence[StoredKey]:
        """One page of rows."""
        wanted = max(1, min(limit, PAGE))
        async with _told():
            keys = await self._database.read(lambda connection: store.page(connection, after, wanted))
        return [restore.row_of(key) for key in keys]

    async def census(self) -> Census:
        """Counts in the database."""

        def count(connection: Connection) -> Census:
            return census.census(connection, self._database.now(connection), self._wrapping.kek, self._records)

        async with _told():
            return await self._database.read(count, seconds=COUNT_SECONDS)

    async def lease(self, holder: str, seconds: float, token: str = "") -> Lease:
        """For `LONGEST_SECONDS` at most."""

        def take(connection: Connection) -> Lease:
            return lease.take(connection, self._database.now(connection), holder[:200], seconds, token)

        async with _told():
            return await self._database.change(take)

    async def release(self, token: str) -> None:
        """Gives up one's own lease."""
        async with _told():
            await self._database.change(lambda connection: lease.release(connection, token))

    async def rotate(self, request: RotateRequest) -> Progress:
        """One batch."""
        async with _told():
            await self._rotations.rotate(request)
        return await self._progress(request.rotation_id)

    async def dry_run(self, type_: RotationType, target_version: int | None) -> Progress:
        """Changes nothing."""
        async with _told():
            return await self._rotations.dry_run(type_, target_version)

    async def progress(self, rotation_id: str | None = None) -> Progress | None:
        """From the journal."""
        async with _told():
            return await self._database.read(lambda connection: journal.progress(connection, rotation_id))

    async def note(self, rotation_id: str, token: str, step: str) -> None:
        """May come before the rotation itself."""
        if not _ROTATION_ID.fullmatch(rotation_id) or len(step) > _LONGEST_STEP:
            raise RefusedError(f"expected a rotation's id and a step of up to {_LONGEST_STEP} characters")

        def note(connection: Connection, now: float) -> None:
            journal.add_note(connection, now, rotation_id, step)

        async with _told():
            await under_lease(self._database, token, note)

    async def rollback(self, rotation_id: str, token: str) -> Progress:
        """One batch."""
        async with _told():
            await self._rotations.rollback(rotation_id, token)
        return await self._progress(rotation_id)

    async def restore(self, rows: Sequence[StoredKey], token: str) -> int:
        """A page of rows at most."""
        async with _told():
            return await restore.restore(self._database, self._wrapping, rows, token)

    async def verify(self, mode: Literal["sample", "full"], after: str | None = None) -> Verification:
        """One call of KMS for each data key: of a hundred thousand it takes minutes, of a page seconds."""
        async with _told():
            return await Inspection(self._database, self._wrapping, self._records, mode == "full").result(after)

    async def retire(self, kek_version: int, token: str) -> None:
        """Of the KMS key that is configured."""
        kek = self._wrapping.kek

        def retire(connection: Connection, now: float) -> None:
            journal.refuse_while_running(connection)
            by = data_keys.c.kek_version
            needed = (by == kek_version) | ~by.between(0, GREATEST_VERSION)
            if first := store.page(connection, "", 1, (data_keys.c.kek == kek) & needed):
                unread = " perhaps" if first[0].wrapped.kek_version == UNREADABLE_VERSION else ""
                raise RefusedError(
                    f"data key {first[0].id} is still wrapped{unread} by version {kek_version} of {kek}; rotate with "
                    "--type rewrap-kek, then retire it"
                )
            same = (retired_versions.c.kek == kek) & (retired_versions.c.kek_version == kek_version)
            connection.execute(retired_versions.delete().where(same))  # whoever retires it again begins the days anew
            values = {"kek": kek, "kek_version": kek_version, "retired_at": now}
            connection.execute(retired_versions.insert().values(**values))

        if unknown := (await self.census()).may_need_any:
            raise RefusedError(f"version {kek_version} of {kek} may be needed by {unknown}; verify names them")
        async with _told():
            await under_lease(self._database, token, retire)

    async def reload(self) -> None:
        """Asks the service, where it can be reached."""
        await self._show()

    async def _progress(self, rotation_id: str) -> Progress:
        found = await self.progress(rotation_id)
        if found is None:
            raise RefusedError(f"there is no rotation {rotation_id}")
        return found


@asynccontextmanager
async def _told() -> AsyncIterator[None]:
    """Errors of the rooms below become those of the port."""
    try:
        yield
    except DatabaseError as error:
        raise UnreachableError(f"the keyring's database cannot be used: {error}; try again") from None
    except RetiredVersionError as error:
        raise RefusedError(str(error)) from None
    except KmsError as error:
        kind = UnreachableError if error.reason in _PASSING else AdministrationError
        raise kind(f"KMS: {error}; what was done stays, resume when it works again") from None
