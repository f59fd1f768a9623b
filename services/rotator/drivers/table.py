"""The driver `table`: a table of envelope-encrypted keys that another program made, in its own database.

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
from shared.config.settings import Duration
from shared.keyring.administration import Administration, RefusedError, RotationType
from shared.keyring.external.administration import ExternalAdministration
from shared.keyring.external.encoding import Encoding
from shared.keyring.external.layout import AadTemplate, TableLayout
from shared.kms.registry import connect_key
from shared.kms.retries import RetryingKey
from shared.kms.settings import ProviderSettings
from shared.sql import database_url


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
