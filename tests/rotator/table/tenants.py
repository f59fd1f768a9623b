"""A table of wrapped keys that no part of keypulse made, as a program of somebody else's keeps it."""

import asyncio
import hashlib
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sqlalchemy import URL, Connection, create_engine, text

from shared.config.settings import use_base_folder
from shared.kms.port import KmsKey
from shared.kms.registry import connect_key, validate_key_settings
from tests.rotator.keyring_to_rotate import Rotating

PREFIX = "keypulse_tenant_keys__dek_ciphertext"


def secret(tenant: str) -> bytes:
    """The data key of a tenant; the tests know what no log and no backup must show."""
    return hashlib.sha256(f"data key of {tenant}".encode()).digest()


def aad(tenant: str) -> bytes:
    return f"tenant:{tenant}".encode()


@dataclass
class Tenants(Rotating):
    """Where the table is, and a rotator's configuration for it."""

    url: URL
    kms: dict[str, Any]
    folder: Path
    driver: dict[str, Any] = field(
        default_factory=lambda: {
            "table": "tenant_keys",
            "id": "tenant",
            "wrapped": "dek_ciphertext",
            "key_version": "kms_version",
            "aad": "tenant:{tenant}",
            "where": "deleted_at IS NULL",
        }
    )
    secrets: dict[str, bytes] = field(default_factory=dict)
    """What each row has to unwrap to."""

    def describe(self) -> dict[str, Any]:
        return {
            "driver": {
                "kind": "table",
                "database": self.url.render_as_string(hide_password=False),
                **{key: value for key, value in self.driver.items() if value is not None},
            },
            "kms": self.kms,
        }

    @asynccontextmanager
    async def key(self) -> AsyncIterator[KmsKey]:
        """The KMS key, past the rotator."""
        with use_base_folder(self.folder):
            key = connect_key(validate_key_settings(self.kms))
        try:
            yield key
        finally:
            await key.close()

    async def execute(self, statement: str, *rows: dict[str, Any]) -> list[Any]:
        """Does what the table's own program does; gives the rows that it reads."""

        def run(connection: Connection) -> list[Any]:
            done = connection.execute(text(statement), list(rows) or None)
            return list(done.all()) if done.returns_rows else []

        found: list[Any] = await self.run(run)
        return found

    async def run(self, work: Callable[[Connection], Any]) -> Any:
        """`work` in a transaction of its own."""

        def begin() -> Any:
            url = self.url.set(drivername="mariadb+pymysql") if self.url.drivername == "mariadb" else self.url
            engine = create_engine(url)
            try:
                with engine.begin() as connection:
                    return work(connection)
            finally:
                engine.dispose()

        return await asyncio.to_thread(begin)

    async def create(self) -> None:
        """The table of a service that wraps a key for each tenant."""
        binary = "BYTEA" if self.url.drivername == "postgresql" else "BLOB"
        await self.execute(
            f"CREATE TABLE tenant_keys (tenant VARCHAR(100) PRIMARY KEY, dek_ciphertext {binary}, "
            "kms_version VARCHAR(200), deleted_at VARCHAR(40), note VARCHAR(40))"
        )

    async def add(self, tenants: Sequence[str]) -> None:
        """Rows that the primary version wraps."""
        async with self.key() as key:
            wrapped = await asyncio.gather(*(key.encrypt(secret(name), aad(name), timeout=30) for name in tenants))
        rows = [
            {"tenant": name, "wrapped": each.ciphertext, "version": each.version}
            for name, each in zip(tenants, wrapped, strict=True)
        ]
        await self.execute(
            "INSERT INTO tenant_keys (tenant, dek_ciphertext, kms_version, note) "
            "VALUES (:tenant, :wrapped, :version, 'x')",
            *rows,
        )
        self.secrets |= {name: secret(name) for name in tenants}

    async def wrap(self, content: bytes, bound_to: bytes = b"") -> bytes:
        """A wrap by the primary version."""
        async with self.key() as key:
            return (await key.encrypt(content, bound_to, timeout=30)).ciphertext

    async def unwrap(self, wrapped: bytes, bound_to: bytes = b"") -> bytes:
        async with self.key() as key:
            return (await key.decrypt(wrapped, bound_to, timeout=30)).plaintext

    async def rows(self) -> dict[str, tuple[bytes, str | None]]:
        """The wrapped key and the version of each tenant."""
        rows = await self.execute("SELECT tenant, dek_ciphertext, kms_version FROM tenant_keys")
        return {tenant: (bytes(wrapped), version) for tenant, wrapped, version in rows if wrapped is not None}

    async def unreadable(self) -> list[str]:
        """Tenants whose key is lost, by what is stored now and KMS; past everything that a rotator does."""
        found = await self.rows()
        lost = [name for name in self.secrets if name not in found]
        async with self.key() as key:
            for name, (wrapped, _) in found.items():
                if (await key.decrypt(wrapped, aad(name), timeout=30)).plaintext != self.secrets[name]:
                    lost.append(name)
        return lost

    async def journal(self, table: str) -> list[Any]:
        """The rows of a table beside it."""
        return await self.execute(f"SELECT * FROM {PREFIX}_{table}")  # noqa: S608 - a test's

    async def end_lease(self) -> None:
        """As if the time of a killed one's had passed."""
        await self.execute(f"UPDATE {PREFIX}_lease SET expires_at = 0")  # noqa: S608 - a test's
