"""The administration of a table that another program made: only `rewrap-kek`, by the table's own rows.

Before a rotation changes anything, every row is unwrapped once: a row that cannot be is named, and nothing is changed.
"""

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from functools import partial

from sqlalchemy import URL, Connection

from shared.keyring.administration import (
    MAX_PAGE_SIZE,
    AdministrationError,
    KeyUsage,
    Lease,
    Problem,
    RefusedError,
    RotateRequest,
    RotationProgress,
    RotationType,
    StoredKey,
    UnreachableError,
    VersionUsage,
)
from shared.keyring.database import Database, DatabaseError
from shared.keyring.external.key_table import ExternalKeyTable, build_table_names, create_tables, get_table_prefix
from shared.keyring.external.table import TableLayout, open_table
from shared.keyring.journal import MAX_PROBLEMS
from shared.keyring.key_table import SCAN_SECONDS
from shared.keyring.local_administration import LocalAdministration, translate_errors
from shared.keyring.model import UNREADABLE_VERSION, DataKey, DataKeyStatus, WrappedKey, compute_fingerprint
from shared.keyring.recovery import create_backup_row
from shared.keyring.rotation_metrics import KeyringMetrics, read_rotations
from shared.keyring.wrapping import KeyWrapper, UnwrapError
from shared.kms.port import KmsKey
from shared.kms.quota import MAX_CONCURRENT_CALLS
from shared.process.concurrency import run_concurrently

_MAX_NAMED_ROWS = 5
_CHECKED_ROWS = 3
_ONLY_REWRAP = "the driver table wraps keys anew, and makes none: expected --type rewrap-kek"


class ExternalKeyWrapper(KeyWrapper):
    """Unwraps rows of which no fingerprint is known yet."""

    def _matches_fingerprint(self, secret: bytes, key: DataKey) -> bool:
        return not key.fingerprint or super()._matches_fingerprint(secret, key)

    def explain_refusal(self, wrapped: WrappedKey) -> UnwrapError | None:
        refusal = super().explain_refusal(wrapped)
        if refusal and refusal.is_foreign:
            message = f"it is wrapped by {wrapped.kek}, another KMS key; it is left as it is"
            return UnwrapError(message, is_foreign=True)
        return refusal


class ExternalAdministration(LocalAdministration):
    """An `Administration` over a table that another program made."""

    def __init__(self, database: Database, wrapping: KeyWrapper, keys: ExternalKeyTable) -> None:
        super().__init__(database, wrapping, keys=keys)
        self._external = keys

    @classmethod
    @asynccontextmanager
    async def open(
        cls, url: URL, layout: TableLayout, kms: KmsKey, kek: str, timeout: float
    ) -> AsyncIterator["ExternalAdministration"]:
        """The table in the database at `url`, by the KMS key `kek`. Raises RefusedError, UnreachableError."""
        prefix, quote = get_table_prefix(layout), "`" if url.drivername == "mariadb" else '"'
        database = Database(url, table_names=build_table_names(layout, prefix, quote))
        try:
            try:
                table = await database.read(lambda connection: open_table(connection, layout))
            except DatabaseError as error:
                raise UnreachableError(f"database {url}: {error}", "check `driver.database`") from None
            wrapping = ExternalKeyWrapper(kms, kek, timeout)
            yield cls(database, wrapping, ExternalKeyTable(table, prefix, wrapping))
        finally:
            await database.close()

    @translate_errors()
    async def acquire_lease(self, holder: str, seconds: float, token: str = "") -> Lease:
        """The first lease makes the tables of the journal."""
        if not await self._has_tables():
            layout, prefix = self._external.table.layout, self._external.prefix
            await self._database.write(lambda connection: create_tables(connection, layout, prefix))
        return await super().acquire_lease(holder, seconds, token)

    @translate_errors()
    async def check_rows(self) -> None:
        """Whether the first rows can be unwrapped, and the account may change them. Raises AdministrationError."""
        await self._database.write(self._external.table.check_update)
        keys = await self._database.read(partial(self._external.list_page, after="", limit=_CHECKED_ROWS))
        for key in keys:
            found = await self._unwrap(None, key) if key.wrapped.kek == self._wrapping.kek else b""
            if isinstance(found, Problem):
                raise AdministrationError(f"row {found.id} cannot be unwrapped: {found.error}", "check `driver.aad`")

    @translate_errors()
    async def count_key_usage(self) -> KeyUsage:
        excluded = _list_versions(await self._external.count_excluded(self._database))
        if await self._has_tables():
            return (await super().count_key_usage()).model_copy(update={"excluded": excluded})
        counts = await self._keys.count(self._database)
        now = await self._database.read(self._database.read_clock)
        return KeyUsage(
            kek=self._wrapping.kek,
            versions=_list_versions(counts.versions),
            excluded=excluded,
            active=None,
            active_since=None,
            counted_at=datetime.fromtimestamp(now, UTC),
            unreadable=len(counts.unreadable),
        )

    @translate_errors()
    async def read_metrics(self) -> KeyringMetrics | None:
        """What its program cannot show of the rotations; None before the first."""
        if not await self._has_tables():
            return None
        counts = (await self._keys.count(self._database)).versions
        data_keys = {(by, DataKeyStatus.ACTIVE): total for (kek, by), total in counts.items() if kek == self._keys.kek}
        return await self._database.read(lambda connection: read_rotations(connection, data_keys))

    async def get_progress(self, rotation_id: str | None = None) -> RotationProgress | None:
        return await super().get_progress(rotation_id) if await self._has_tables() else None

    async def list_backup_rows(self, after: str = "", limit: int = MAX_PAGE_SIZE) -> Sequence[StoredKey]:
        """The first page unwraps every row that is not known yet. Raises AdministrationError where one cannot be."""
        if not after:
            await self._learn_rows()
        return await super().list_backup_rows(after, limit)

    @translate_errors()
    async def list_excluded_rows(self, after: str = "", limit: int = MAX_PAGE_SIZE) -> Sequence[StoredKey]:
        keys = await self._database.read(
            partial(self._external.list_page, after=after, limit=limit, excluded=True), seconds=SCAN_SECONDS
        )
        return [create_backup_row(key) for key in keys]

    async def rotate(self, request: RotateRequest) -> RotationProgress:
        """Only of the type `rewrap-kek`. What is added once it has begun is for the next rotation."""
        if request.type is not RotationType.REWRAP_KEK:
            raise RefusedError(_ONLY_REWRAP)
        if await self.get_progress(request.rotation_id) is None:
            await self._learn_rows()
        return await super().rotate(request)

    async def dry_run(self, type_: RotationType, target_version: str | None) -> RotationProgress:
        if type_ is not RotationType.REWRAP_KEK:
            raise RefusedError(_ONLY_REWRAP)
        return await super().dry_run(type_, target_version)

    async def retire_version(self, kek_version: str, token: str) -> None:
        """Unwraps the rows that are not known yet, and counts all: another program may have written one just now."""
        await self._learn_rows()
        for each in (await self.count_key_usage()).versions:
            if each.kek == self._wrapping.kek and each.kek_version in (kek_version, UNREADABLE_VERSION):
                raise RefusedError(
                    f"{each.data_keys} rows of {self._external.table.layout.table} are wrapped by version "
                    f"{each.kek_version or 'unknown'}",
                    "rotate with --type rewrap-kek, then retire it",
                )
        await super().retire_version(kek_version, token)

    @translate_errors()
    async def _has_tables(self) -> bool:
        return await self._database.read(self._external.has_tables)

    @translate_errors()
    async def _learn_rows(self) -> None:
        """Stores the fingerprint of each row that is not known yet. Refuses if a row cannot be unwrapped."""
        problems: list[Problem] = []
        primary = (await self._wrapping.kms.describe_key(timeout=self._wrapping.timeout)).primary_version
        async for keys, unreadable in self._external.scan(self._database):
            problems += (Problem(id=row.id, error=row.error) for row in unreadable)
            unknown = [key for key in keys if not key.fingerprint and key.wrapped.kek == self._wrapping.kek]
            await run_concurrently(
                unknown,
                partial(self._unwrap, primary),
                partial(self._store_learned, problems),
                MAX_CONCURRENT_CALLS,
            )
            if len(problems) >= MAX_PROBLEMS:
                break
        if problems:
            named = ", ".join(f"{problem.id} ({problem.error})" for problem in problems[:_MAX_NAMED_ROWS])
            more = " and others" if len(problems) > _MAX_NAMED_ROWS else ""
            raise AdministrationError(
                f"nothing was changed, because of these rows: {named}{more}",
                "check `driver.aad`, `driver.encoding` and "
                "`driver.key_version`, correct the rows, or leave them out by `driver.where`",
            )

    async def _unwrap(self, primary: str | None, key: DataKey) -> bytes | Problem:
        try:
            fingerprint = compute_fingerprint(await self._wrapping.unwrap(key))
        except UnwrapError as error:
            return Problem(id=key.id, error=str(error))
        if key.wrapped.kek_version == primary:  # it would not be wrapped anew: the column must be right
            kms, aad = self._wrapping.kms, key.wrapping_aad
            if not (await kms.decrypt(key.wrapped.ciphertext, aad, timeout=self._wrapping.timeout)).is_primary:
                column = self._external.table.layout.key_version
                return Problem(id=key.id, error=f"its {column} says {primary}, and another version wraps it")
        return fingerprint

    async def _store_learned(self, problems: list[Problem], results: Sequence[tuple[DataKey, bytes | Problem]]) -> None:
        problems += (found for _, found in results if isinstance(found, Problem))
        learned = {key: found for key, found in results if not isinstance(found, Problem)}

        def store(connection: Connection) -> None:
            self._external.store_fingerprints(connection, learned)

        await self._database.write(store)


def _list_versions(counts: Mapping[tuple[str, str], int]) -> tuple[VersionUsage, ...]:
    return tuple(
        VersionUsage(kek=kek, kek_version=version, data_keys=total, records=0)
        for (kek, version), total in counts.items()
    )
