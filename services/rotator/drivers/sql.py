"""The driver `sql`: the keyring's database and KMS directly, where a service has no admin API or does not run.

This driver notifies no instance of the service: each notices when it next reads the keyring. Data keys that the
service's local key wraps stay as they are, and are named: that key is on the service's own disk.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Literal

from pydantic import Field

from services.rotator.drivers.driver_settings import BaseDriverSettings
from shared.config.settings import Duration, Section
from shared.keyring.administration import Administration, RefusedError, UnreachableError
from shared.keyring.database import Database, DatabaseError
from shared.keyring.local_administration import LocalAdministration
from shared.keyring.records_table import RecordsTable
from shared.keyring.wrapping import KeyWrapper
from shared.kms.registry import connect_key
from shared.kms.retries import RetryingKey
from shared.kms.settings import ProviderSettings
from shared.sql import database_url


class RecordsSettings(Section):
    """The service's own table in the keyring's database, so that the census counts what each version is needed for."""

    table: str = Field(min_length=1)
    data_key_column: str = Field(min_length=1)


class SqlDriverSettings(BaseDriverSettings):
    """Without the service."""

    kind: Literal["sql"]
    database: database_url.DatabaseSetting
    """The service's."""
    records: RecordsSettings | None = None
    kms_timeout: Duration = 5.0
    """Of one call."""

    @property
    def location(self) -> str:
        """Names the keyring, without a password."""
        return str(self.database)

    @asynccontextmanager
    async def open(self, kms: ProviderSettings, caller: str) -> AsyncIterator[Administration]:
        """The keyring in `database`; its journal names the caller of a rotation."""
        del caller
        provider = connect_key(kms)
        try:
            async with _open_database(self.database, self.records) as database:
                records = RecordsTable(self.records.table, self.records.data_key_column) if self.records else None
                wrapping = KeyWrapper(RetryingKey(provider), kms.key, self.kms_timeout)
                yield LocalAdministration(database, wrapping, records)
        finally:
            await provider.close()


@asynccontextmanager
async def _open_database(
    location: database_url.DatabaseSetting, records: RecordsSettings | None
) -> AsyncIterator[Database]:
    """The service's database. One that is not there is never made: an empty keyring has nothing to rotate."""
    label = f"database {location}"
    if location.drivername == "sqlite" and not await asyncio.to_thread(Path(location.database or "").is_file):
        raise RefusedError(f"{label}: there is no such file", "expected the database of the service")
    try:
        database = await Database.open(location)
    except DatabaseError as error:
        raise UnreachableError(f"{label}: {error}", "expected the database of the service") from None
    try:
        await _check_column(database, "data_keys", "fingerprint", label, "expected the database of the service")
        await _check_tables(database, label)
        if records:
            await _check_column(database, records.table, records.data_key_column, label, "correct driver.records")
        yield database
    finally:
        await database.close()


async def _check_tables(database: Database, label: str) -> None:
    """The service alone makes its tables: one of another version may run."""
    try:
        is_current = await database.is_keyring_current()
    except DatabaseError as error:
        raise UnreachableError(f"{label}: {error}", "expected the database of the service") from None
    if not is_current:
        raise RefusedError(
            f"{label}: the keyring's tables are of another version",
            "run the rotator in the version of the service",
        )


async def _check_column(database: Database, table: str, column: str, location: str, hint: str) -> None:
    try:
        await RecordsTable(table, column).check_columns(database)
    except DatabaseError as error:
        raise RefusedError(f"{location}: {error}", hint) from None
