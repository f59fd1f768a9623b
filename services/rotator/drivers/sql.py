"""The drivers `sql` and `table`, which work in the database of a service and call KMS themselves.

`sql` is for the keyring of a service that has no admin API or does not run. It notifies no instance of the service:
each notices when it next reads the keyring. Data keys that the service's local key wraps stay as they are, and are
named: that key is on the service's own disk.

`table` is for envelope-encrypted keys in a table of another program. Only the wrapped keys and their versions change
there. Lease, journal and fingerprints are in `keypulse_*` tables beside it. The program itself need not stop: what it
writes meanwhile is never overwritten.
"""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated, ClassVar, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from services.rotator.drivers import BaseDriverSettings
from shared.config.settings import Duration, Section
from shared.keyring.administration import Administration, RefusedError, RotationType, UnreachableError
from shared.keyring.database import Database, DatabaseError
from shared.keyring.external.administration import ExternalAdministration
from shared.keyring.external.table import AadTemplate, Encoding, TableLayout
from shared.keyring.key_table import RecordsTable
from shared.keyring.local_administration import LocalAdministration
from shared.keyring.wrapping import KeyWrapper
from shared.kms.port import KmsKey
from shared.kms.registry import connect_keys
from shared.kms.retries import RetryingKey
from shared.kms.settings import ProviderSettings
from shared.sql import database_url

_EXPECTED = "expected the database of the service"


@asynccontextmanager
async def _connect(
    database: database_url.DatabaseUrl, kms: Sequence[ProviderSettings], hint: str
) -> AsyncIterator[dict[str, KmsKey]]:
    """The KMS keys by their names, for a database whose file exists."""
    if database.drivername == "sqlite" and not await asyncio.to_thread(Path(database.database or "").is_file):
        raise RefusedError(f"database {database}: there is no such file", hint)
    async with connect_keys(kms) as keys:
        yield {name: RetryingKey(key) for name, key in keys.items()}


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
        return str(self.database)

    @asynccontextmanager
    async def open(
        self, kms: ProviderSettings, previous_kms: Sequence[ProviderSettings], caller: str
    ) -> AsyncIterator[Administration]:
        """The keyring in `database`, which is never made: an empty keyring has nothing to rotate."""
        del caller
        async with _connect(self.database, (kms, *previous_kms), _EXPECTED) as previous:
            key = previous.pop(kms.key_name)
            label = f"database {self.database}"
            try:
                database = await Database.open(self.database)
            except DatabaseError as error:
                raise UnreachableError(f"{label}: {error}", _EXPECTED) from None
            try:
                await self._check_tables(database, label)
                records = RecordsTable(self.records.table, self.records.data_key_column) if self.records else None
                wrapping = KeyWrapper(key, kms.key_name, self.kms_timeout, previous=previous)
                yield LocalAdministration(database, wrapping, records)
            finally:
                await database.close()

    async def _check_tables(self, database: Database, label: str) -> None:
        """The service alone makes its tables: one of another version may run."""
        await _check_column(database, "data_keys", "fingerprint", label, _EXPECTED)
        try:
            is_current = await database.is_keyring_current()
        except DatabaseError as error:
            raise UnreachableError(f"{label}: {error}", _EXPECTED) from None
        if not is_current:
            raise RefusedError(
                f"{label}: the keyring's tables are of another version",
                "run the rotator in the version of the service",
            )
        if self.records:
            await _check_column(
                database, self.records.table, self.records.data_key_column, label, "correct driver.records"
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
        return f"{self.database} {self.table}.{self.wrapped}"

    @property
    def layout(self) -> TableLayout:
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
    async def open(
        self, kms: ProviderSettings, previous_kms: Sequence[ProviderSettings], caller: str
    ) -> AsyncIterator[Administration]:
        del previous_kms, caller
        async with (
            _connect(self.database, (kms,), "correct `driver.database`") as keys,
            ExternalAdministration.open(
                self.database, self.layout, keys[kms.key_name], kms.key_name, self.kms_timeout
            ) as administration,
        ):
            yield administration
