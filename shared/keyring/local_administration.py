"""The administration of a keyring in its database and with KMS: in the service itself, or beside it."""

import re
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Final, Literal

from sqlalchemy import Connection

from shared.keyring import journal as entries
from shared.keyring import journal as progress
from shared.keyring import recovery as restore
from shared.keyring import rotation_lease, usage
from shared.keyring.administration import (
    MAX_PAGE_SIZE,
    AdministrationError,
    JournalEntry,
    KeyInfo,
    KeyUsage,
    Lease,
    RefusedError,
    RotateRequest,
    RotationProgress,
    RotationType,
    StoredKey,
    UnreachableError,
    VerificationResult,
)
from shared.keyring.database import Database, DatabaseError
from shared.keyring.key_table import KeyTable, OwnKeyTable, RecordsTable
from shared.keyring.model import UNREADABLE_VERSION
from shared.keyring.operations import RotationRunner
from shared.keyring.rotation_lease import run_under_lease
from shared.keyring.store import RetiredVersionError
from shared.keyring.tables import retired_versions
from shared.keyring.verification import RECORD_QUERY_SECONDS, KeyringVerifier
from shared.keyring.wrapping import KeyWrapper
from shared.kms.port import KmsError

_ROTATION_ID: Final = re.compile(r"[A-Za-z0-9._-]{1,64}")


async def _notify_nobody() -> None:
    """Does nothing: the instances read the keyring from time to time."""


class LocalAdministration:
    """An `Administration` over a database and KMS.

    Args:
        database: open, with `tables.TABLES`.
        wrapping: KMS, as by `RetryingKey`, and the service's local key if it is available.
        records: the service's table of records, in the same database; None counts none.
        notify_instances: has every instance of the service that can be reached read the keyring again.
        keys: the rows of the data keys, where they are not the keyring's own.
    """

    def __init__(
        self,
        database: Database,
        wrapping: KeyWrapper,
        records: RecordsTable | None = None,
        notify_instances: Callable[[], Awaitable[None]] = _notify_nobody,
        keys: KeyTable | None = None,
    ) -> None:
        self._database = database
        self._wrapping = wrapping
        self._records = records
        self._notify_instances = notify_instances
        self._keys = keys or OwnKeyTable(wrapping.kek, wrapping.kms.profile)
        self._rotations = RotationRunner(database, self._keys, wrapping, notify_instances)

    async def list_keys(self, after: str = "", limit: int = MAX_PAGE_SIZE) -> Sequence[KeyInfo]:
        """See `Administration`, as for the other methods."""
        return [KeyInfo.model_validate(row.model_dump()) for row in await self.list_backup_rows(after, limit)]

    async def list_backup_rows(self, after: str = "", limit: int = MAX_PAGE_SIZE) -> Sequence[StoredKey]:
        """One page of rows."""
        page_size = max(1, min(limit, MAX_PAGE_SIZE))
        async with translate_errors():
            keys = await self._database.read(lambda connection: self._keys.list_page(connection, after, page_size))
        return [restore.create_backup_row(key) for key in keys]

    async def list_excluded_rows(self, after: str = "", limit: int = MAX_PAGE_SIZE) -> Sequence[StoredKey]:  # noqa: ARG002
        """Of its own table no row is left out."""
        return ()

    async def count_key_usage(self) -> KeyUsage:
        """Counts in the database."""

        def count(connection: Connection) -> KeyUsage:
            now = self._database.read_clock(connection)
            return usage.count_key_usage(connection, now, self._wrapping, self._keys, counts, self._records)

        async with translate_errors():
            counts = await self._keys.count(self._database)
            return await self._database.read(count, seconds=RECORD_QUERY_SECONDS)

    async def acquire_lease(self, holder: str, seconds: float, token: str = "") -> Lease:
        """For `MAX_LEASE_SECONDS` at most."""

        def take(connection: Connection) -> Lease:
            return rotation_lease.acquire_lease(
                connection, self._database.read_clock(connection), holder[:200], seconds, token
            )

        async with translate_errors():
            return await self._database.write_exclusively(take)

    async def release_lease(self, token: str) -> None:
        """Gives up one's own lease."""
        async with translate_errors():
            await self._database.write_exclusively(lambda connection: rotation_lease.release_lease(connection, token))

    async def rotate(self, request: RotateRequest) -> RotationProgress:
        """One batch."""
        async with translate_errors():
            await self._rotations.rotate(request)
        return await self._require_progress(request.rotation_id)

    async def dry_run(self, type_: RotationType, target_version: str | None) -> RotationProgress:
        """Changes nothing."""
        async with translate_errors():
            return await self._rotations.dry_run(type_, target_version)

    async def get_progress(self, rotation_id: str | None = None) -> RotationProgress | None:
        """From the journal."""
        async with translate_errors():
            return await self._database.read(lambda connection: progress.read_progress(connection, rotation_id))

    async def add_journal_entry(self, rotation_id: str, token: str, entry: JournalEntry) -> None:
        """May come before the rotation itself."""
        if not _ROTATION_ID.fullmatch(rotation_id):
            raise RefusedError("expected a rotation's id: up to 64 letters, digits, dots, dashes and underscores")
        entries.refuse_defective_entry(entry)

        def write(connection: Connection, now: float) -> None:
            entries.add_journal_entry(connection, now, rotation_id, entry)

        async with translate_errors():
            await run_under_lease(self._database, token, write)

    async def rollback(self, rotation_id: str, token: str) -> RotationProgress:
        """One batch."""
        async with translate_errors():
            await self._rotations.rollback(rotation_id, token)
        return await self._require_progress(rotation_id)

    async def restore(self, rows: Sequence[StoredKey], token: str) -> int:
        """A page of rows at most."""
        async with translate_errors():
            return await restore.restore_data_keys(self._database, self._keys, self._wrapping, rows, token)

    async def verify(self, mode: Literal["sample", "full"], after: str | None = None) -> VerificationResult:
        """One call of KMS for each data key: of a hundred thousand it takes minutes, of a page seconds."""
        async with translate_errors():
            verifier = KeyringVerifier(self._database, self._keys, self._wrapping, self._records, mode == "full")
            return await verifier.verify(after)

    async def retire_version(self, kek_version: str, token: str) -> None:
        """Of the KMS key that is configured."""
        kek = self._wrapping.kek

        def retire(connection: Connection, now: float) -> None:
            progress.refuse_while_running(connection)
            if first := self._keys.find_needing(connection, kek_version):
                perhaps = " perhaps" if first.wrapped.kek_version == UNREADABLE_VERSION else ""
                raise RefusedError(
                    f"data key {first.id} is still wrapped{perhaps} by version {kek_version} of {kek}",
                    "rotate with --type rewrap-kek, then retire it",
                )
            condition = (retired_versions.c.kek == kek) & (retired_versions.c.kek_version == kek_version)
            connection.execute(
                retired_versions.delete().where(condition)
            )  # retiring it again restarts the days until it may be destroyed
            values = {"kek": kek, "kek_version": kek_version, "retired_at": now}
            connection.execute(retired_versions.insert().values(**values))

        usage = await self.count_key_usage()
        if unknown := usage.unknown_usage:
            raise RefusedError(f"version {kek_version} of {kek} may be needed by {unknown}", "correct them first")
        async with translate_errors():
            described = await self._wrapping.kms.describe_key(timeout=self._wrapping.timeout)
            for each in usage.versions:
                if each.kek == kek and each.data_keys and described.find_version(each.kek_version) is None:
                    raise RefusedError(
                        f"version {kek_version} of {kek} may be needed by {each.data_keys} data keys of version "
                        f"{each.kek_version!r}, which the key does not have",
                        "rotate with --type rewrap-kek, then retire it",
                    )
            await run_under_lease(self._database, token, retire)

    async def reload_instances(self) -> None:
        """Notifies the service's instances, if they can be reached."""
        await self._notify_instances()

    async def _require_progress(self, rotation_id: str) -> RotationProgress:
        found = await self.get_progress(rotation_id)
        if found is None:
            raise RefusedError(f"there is no rotation {rotation_id}")
        return found


@asynccontextmanager
async def translate_errors() -> AsyncIterator[None]:
    """Translates the errors of the modules below into those of the port."""
    try:
        yield
    except DatabaseError as error:
        raise UnreachableError(f"the keyring's database cannot be used: {error}", "try again") from None
    except RetiredVersionError as error:
        raise RefusedError(error.error, error.hint) from None
    except KmsError as error:
        kind = UnreachableError if error.reason.transient else AdministrationError
        raise kind(f"KMS: {error}", "what was done stays, resume when it works again") from None
