"""The driver `sql`: the keyring's database and KMS directly, where a service has no admin API or does not run.

This driver notifies no instance of the service: each notices when it next reads the keyring. Data keys that the
service's local key wraps stay as they are, and are named: that key is on the service's own disk.

The driver `table`: a table of envelope-encrypted keys that another program made, in its own database.

Only the wrapped keys and their versions change there. Lease, journal and fingerprints are in `keypulse_*` tables beside
it. The program itself need not stop: what it writes meanwhile is never overwritten.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated, ClassVar, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from services.rotator.drivers.driver_settings import BaseDriverSettings
from shared.config.settings import Duration, Section
from shared.keyring.administration import Administration, RefusedError, RotationType, UnreachableError
from shared.keyring.database import Database, DatabaseError
from shared.keyring.external.administration import ExternalAdministration
from shared.keyring.external.table import AadTemplate, Encoding, TableLayout
from shared.keyring.key_table import RecordsTable
from shared.keyring.local_administration import LocalAdministration
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


def _check_template(value: str) -> str:
    AadTemplate.parse(value)
    return value


Name = Annotated[str, Field(min_length=1, pattern=r"^[^\x00]*$")]


class TableDriverSettings(BaseDriverSettings):
    """A table of another program."""

    kind: Literal["table"]
    database: database_url.TableDatabaseSetting
    """The program's own."""
    table: Name
    """Its name, or SCHEMA.NAME."""
    id: Name | Annotated[tuple[Name, ...], Field(min_length=1)]
    """The column that names a row; several where they do together."""
    wrapped: Name
    """The column of the wrapped key."""
    encoding: Encoding = Encoding.RAW
    key_version: Name | None = None
    """The column of the KMS key's version."""
    aad: Annotated[str, AfterValidator(_check_template)] | None = None
    """The additional authenticated data, with columns in braces."""
    where: Name | None = None
    """A condition in SQL; other rows are left alone."""
    kms_timeout: Duration = 5.0
    """Of one call."""

    @model_validator(mode="after")
    def _check_aad(self) -> Self:
        """A rotation changes these columns, and the service would build another AAD by them."""
        changed = {self.wrapped, self.key_version} & set(self.layout.aad.columns if self.layout.aad else ())
        if changed:
            raise ValueError(
                f"`aad` uses {', '.join(map(str, changed))}, which a rotation changes: expected other columns"
            )
        return self

    rotation_types: ClassVar[tuple[RotationType, ...]] = (RotationType.REWRAP_KEK,)
    has_own_keys: ClassVar[bool] = False

    @property
    def location(self) -> str:
        """Names the keyring, without a password."""
        return f"{self.database} {self.table}.{self.wrapped}"

    @property
    def layout(self) -> TableLayout:
        """Where the wrapped keys are."""
        return TableLayout(
            table=self.table,
            id_columns=(self.id,) if isinstance(self.id, str) else self.id,
            wrapped=self.wrapped,
            encoding=self.encoding,
            key_version=self.key_version,
            aad=None if self.aad is None else AadTemplate.parse(self.aad),
            where=self.where,
        )

    @asynccontextmanager
    async def open(self, kms: ProviderSettings, caller: str) -> AsyncIterator[Administration]:
        """The table in `database`; its journal names the caller of a rotation."""
        del caller
        file = Path(self.database.database or "")
        if self.database.drivername == "sqlite" and not await asyncio.to_thread(file.is_file):
            raise RefusedError(f"database {self.database}: there is no such file", "correct `driver.database`")
        provider = connect_key(kms)
        try:
            async with ExternalAdministration.open(
                self.database, self.layout, RetryingKey(provider), kms.key, self.kms_timeout
            ) as administration:
                yield administration
        finally:
            await provider.close()
