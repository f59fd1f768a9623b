"""The administration of a keyring in its database and with KMS: in the service itself, or beside it."""

import re
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Final, Literal

from sqlalchemy import Connection

from shared.keyring import journal, operations, recovery, rotation_lease, store
from shared.keyring.administration import (
    MAX_PAGE_SIZE,
    AdministrationError,
    JournalEntry,
    KeyInfo,
    KeyUsage,
    Lease,
    RefusedError,
    RetiredVersion,
    RotateRequest,
    RotationProgress,
    RotationState,
    RotationType,
    StoredKey,
    UnreachableError,
    VerificationResult,
    VersionUsage,
)
from shared.keyring.database import Database, DatabaseError
from shared.keyring.key_table import KeyCounts, KeyTable, OpenKeyring, RecordsTable, notify_nobody
from shared.keyring.model import UNREADABLE_VERSION, get_version_sort_key
from shared.keyring.rotation_lease import run_under_lease
from shared.keyring.store import RetiredVersionError
from shared.keyring.tables import retired_versions, rotations, schema
from shared.keyring.verification import RECORD_QUERY_SECONDS, KeyringVerifier
from shared.keyring.wrapping import KeyWrapper
from shared.kms.port import KmsError
from shared.sql.rows import select_values

_ROTATION_ID: Final = re.compile(r"[A-Za-z0-9._-]{1,64}")
_KEYRING_ID: Final = select_values(str, schema.c.id)
_NEW_DEK_AT: Final = (
    select_values(float, rotations.c.updated_at)
    .where(rotations.c.type == RotationType.NEW_DEK, rotations.c.state == RotationState.DONE)
    .order_by(rotations.c.number.desc())  # an earlier one's clock may have been ahead
    .limit(1)
)


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
        kind = UnreachableError if error.transient else AdministrationError
        raise kind(f"KMS: {error}", f"{error.waiting_advice}; what was done stays, then resume") from None


class LocalAdministration:
    """An `Administration` over a database with `tables.TABLES`, and KMS as by `RetryingKey`.

    `records` is the service's table in the same database; None counts none. `keys` are the rows of the data keys, where
    they are not the keyring's own.
    """

    def __init__(
        self,
        database: Database,
        wrapping: KeyWrapper,
        records: RecordsTable | None = None,
        notify_instances: Callable[[], Awaitable[None]] = notify_nobody,
        keys: KeyTable | None = None,
    ) -> None:
        keys = keys or KeyTable(wrapping)
        self._keyring = OpenKeyring(database, keys, wrapping, records, notify_instances)
        self._database, self._wrapping, self._keys = database, wrapping, keys

    async def list_keys(self, after: str = "", limit: int = MAX_PAGE_SIZE) -> Sequence[KeyInfo]:
        return [KeyInfo.model_validate(row.model_dump()) for row in await self.list_backup_rows(after, limit)]

    @translate_errors()
    async def list_backup_rows(self, after: str = "", limit: int = MAX_PAGE_SIZE) -> Sequence[StoredKey]:
        page_size = max(1, min(limit, MAX_PAGE_SIZE))
        keys = await self._database.read(lambda connection: self._keys.list_page(connection, after, page_size))
        return [recovery.create_backup_row(key) for key in keys]

    async def list_excluded_rows(self, after: str = "", limit: int = MAX_PAGE_SIZE) -> Sequence[StoredKey]:  # noqa: ARG002
        return ()

    @translate_errors()
    async def count_key_usage(self) -> KeyUsage:
        counts = await self._keys.count(self._database)
        return await self._database.read(
            lambda connection: self._read_usage(connection, counts), seconds=RECORD_QUERY_SECONDS
        )

    def _read_usage(self, connection: Connection, counts: KeyCounts) -> KeyUsage:
        records = self._keyring.records
        of_data_keys = self._merge_spellings(counts.versions)
        of_records = self._merge_spellings(records.count_by_version(connection) if records else {})
        active, retired = self._keys.find_active(connection), self._keys.list_retired_versions(connection)
        new_dek_at = _NEW_DEK_AT.fetch_first(connection)
        return KeyUsage(
            keyring=_KEYRING_ID.fetch_first(connection),
            kek=self._wrapping.kek,
            previous_keks=tuple(self._wrapping.previous),
            new_dek_at=None if new_dek_at is None else datetime.fromtimestamp(new_dek_at, UTC),
            backups=journal.list_backups(connection),
            unreadable_entries=journal.find_unreadable_entries(connection),
            counted_at=datetime.fromtimestamp(self._database.read_clock(connection), UTC),
            versions=tuple(
                VersionUsage(kek=kek, kek_version=version, data_keys=total, records=of_records[kek, version])
                for (kek, version), total in sorted(
                    of_data_keys.items(), key=lambda item: (item[0][0], get_version_sort_key(item[0][1]))
                )
            ),
            active=active.id if active else None,
            active_since=active.created_at if active else None,
            encryptions=store.read_encryptions(connection) if active else None,
            retired_versions=tuple(
                RetiredVersion(kek_version=version, retired_at=datetime.fromtimestamp(retired[version], UTC))
                for version in sorted(retired, key=get_version_sort_key)
            ),
            unreadable=len(counts.unreadable),
            missing=len(records.count_orphans(connection)) if records else 0,
        )

    def _merge_spellings(self, counts: Mapping[tuple[str, str], int]) -> Counter[tuple[str, str]]:
        """What may stand for a KMS key of ours is that key, of a version that is not known."""
        merged = Counter[tuple[str, str]]()
        for (kek, version), total in counts.items():
            name = self._wrapping.find_name(kek)
            merged[(kek, version) if name in {None, kek} else (name or "", UNREADABLE_VERSION)] += total
        return merged

    @translate_errors()
    async def acquire_lease(self, holder: str, seconds: float, token: str = "") -> Lease:
        def take(connection: Connection) -> Lease:
            now = self._database.read_clock(connection)
            return rotation_lease.acquire_lease(connection, now, holder[:200], seconds, token)

        return await self._database.write_exclusively(take)

    @translate_errors()
    async def release_lease(self, token: str) -> None:
        await self._database.write_exclusively(lambda connection: rotation_lease.release_lease(connection, token))

    @translate_errors()
    async def rotate(self, request: RotateRequest) -> RotationProgress:
        await operations.rotate(self._keyring, request)
        return await self._require_progress(request.rotation_id)

    @translate_errors()
    async def dry_run(self, type_: RotationType, target_version: str | None) -> RotationProgress:
        return await operations.dry_run(self._keyring, type_, target_version)

    @translate_errors()
    async def get_progress(self, rotation_id: str | None = None) -> RotationProgress | None:
        return await self._database.read(lambda connection: journal.read_progress(connection, rotation_id))

    @translate_errors()
    async def add_journal_entry(self, rotation_id: str, token: str, entry: JournalEntry) -> None:
        if not _ROTATION_ID.fullmatch(rotation_id):
            raise RefusedError("expected a rotation's id: up to 64 letters, digits, dots, dashes and underscores")
        journal.refuse_defective_entry(entry)

        def write(connection: Connection, now: float) -> None:
            journal.add_journal_entry(connection, now, rotation_id, entry)

        await run_under_lease(self._database, token, write)

    @translate_errors()
    async def rollback(self, rotation_id: str, token: str) -> RotationProgress:
        await recovery.roll_back(self._keyring, rotation_id, token)
        return await self._require_progress(rotation_id)

    @translate_errors()
    async def restore(self, rows: Sequence[StoredKey], token: str) -> int:
        return await recovery.restore_data_keys(self._keyring, rows, token)

    @translate_errors()
    async def verify(self, mode: Literal["sample", "full"], after: str | None = None) -> VerificationResult:
        """One call of KMS for each data key: of a hundred thousand it takes minutes, of a page seconds."""
        return await KeyringVerifier(self._keyring, reads_all_records=mode == "full").verify(after)

    @translate_errors()
    async def retire_version(self, kek_version: str, token: str) -> None:
        kek = self._wrapping.kek

        def retire(connection: Connection, now: float) -> None:
            journal.refuse_while_running(connection)
            if first := self._keys.find_needing(connection, kek_version):
                perhaps = " perhaps" if first.wrapped.kek_version == UNREADABLE_VERSION else ""
                raise RefusedError(
                    f"data key {first.id} is still wrapped{perhaps} by version {kek_version} of {kek}",
                    "rotate with --type rewrap-kek, then retire it",
                )
            same = (retired_versions.c.kek == kek) & (retired_versions.c.kek_version == kek_version)
            # Retiring it again restarts the days until it may be destroyed.
            connection.execute(retired_versions.delete().where(same))
            connection.execute(retired_versions.insert().values(kek=kek, kek_version=kek_version, retired_at=now))

        usage = await self.count_key_usage()
        if unknown := usage.unknown_usage:
            raise RefusedError(f"version {kek_version} of {kek} may be needed by {unknown}", "correct them first")
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
        await self._keyring.notify_instances()

    async def _require_progress(self, rotation_id: str) -> RotationProgress:
        found = await self.get_progress(rotation_id)
        if found is None:
            raise RefusedError(f"there is no rotation {rotation_id}")
        return found
