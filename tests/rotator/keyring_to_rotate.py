"""A keyring in a database, with records, that a rotator works on; tests read it directly."""

import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from sqlalchemy import URL, Connection, text

from services.rotator import backups
from services.rotator.config import RotatorSettings
from services.rotator.report import BackupSummary, CommandReport, StepProgress
from services.rotator.session import CommandSession, open_session
from shared.config.settings import Address, load_settings
from shared.keyring import store
from shared.keyring.database import Database
from shared.keyring.model import DataKey, DataKeyStatus, compute_fingerprint
from shared.keyring.rotation_metrics import KeyringMetrics, read_keyring_metrics
from shared.keyring.tables import TABLES, schema
from shared.keyring.wrapping import KeyWrapper
from shared.kms.registry import connect_keys, validate_key_settings

KEY = "projects/demo/locations/global/keyRings/app/cryptoKeys/ledger"
NONCE = bytes(12)
SECONDS = 60.0
"""For one answer of KMS, however busy the machine is."""
NewVersion = Callable[[], Awaitable[None]]
"""Adds a version of the KMS key, and makes it the primary one."""


class Quiet:
    """Tells nobody, and keeps what it was told."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def report_step(self, name: str, detail: str = "") -> None:
        self.lines.append(f"{name} {detail}".strip())

    def report_progress(self, progress: StepProgress) -> None:
        self.lines.append(f"{progress.step} {progress.done}/{progress.total}, {progress.calls}/{progress.total_calls}")


def secret(number: int) -> bytes:
    """The data key of that number; the tests know what the database must never show."""
    return hashlib.sha256(b"data key %d" % number).digest()


def data_key_id(number: int) -> str:
    return f"{number:032x}"


class Rotating:
    """What a rotator works on, in a folder of its own."""

    __slots__ = ()
    folder: Path

    def describe(self) -> dict[str, Any]:
        """Its driver and its KMS key, as a configuration has them."""
        raise NotImplementedError

    def read_clock(self) -> float:
        return datetime.now(UTC).timestamp()

    def configuration(self, **overrides: Any) -> Path:
        document = {
            **self.describe(),
            "state_dir": str(self.folder / "state"),
            "other_keyrings": [],
            "primary_check_interval": "10ms",
            "verify_interval": "10ms",
            "kms_timeout": f"{SECONDS:.0f}s",
            **overrides,
        }
        file = self.folder / "rotator.yml"
        file.write_text(yaml.safe_dump(document))
        return file

    def settings(self, **overrides: Any) -> RotatorSettings:
        return load_settings(RotatorSettings, self.configuration(**overrides))

    @asynccontextmanager
    async def session(self, now: list[float] | None = None, **overrides: Any) -> AsyncIterator[CommandSession]:
        """A rotator's, as a command opens it."""
        clock = (lambda: now[0]) if now else self.read_clock
        async with open_session(self.settings(**overrides), Quiet(), [], clock) as session:
            yield session

    async def do(
        self, command: Callable[..., Awaitable[CommandReport]], *arguments: object, **overrides: Any
    ) -> CommandReport:
        """A command in a session of its own."""
        async with self.session(**overrides) as session:
            return await command(session, *arguments)


async def write_backup(
    session: CommandSession, rotation_id: str = "one", needs: Collection[str] = ("1",)
) -> tuple[Path, BackupSummary]:
    """One that no rotation has made."""
    now = datetime.fromtimestamp(session.clock(), UTC)
    file, source = session.backups.get_new_path(rotation_id, now), session.administration
    keyring = (await source.count_key_usage()).keyring or ""
    summary = await backups.write_backup(
        file,
        source,
        session.wrapping,
        origin=backups.BackupOrigin(keyring, session.settings.driver.location, rotation_id, now),
        needs=needs,
        other_keks=(),
    )
    return file, summary


async def find_latest_backup(session: CommandSession) -> Path:
    return session.backups.find("latest", (await session.administration.count_key_usage()).keyring)


@dataclass(frozen=True, slots=True)
class Rotated(Rotating):
    """Where the keyring is, and a rotator's configuration for it."""

    url: URL
    kms: Address
    folder: Path
    transit: Mapping[str, Any] | None = None
    """The settings of a key of Transit: then the data keys move between it and Cloud KMS."""
    is_on_transit: bool = False
    """Whether they move to it, not from it."""
    driver: str = "sql"

    def describe(self) -> dict[str, Any]:
        google = {"provider": "gcp", "key": KEY, "endpoint": str(self.kms), "insecure": True}
        kms = [google, self.transit] if self.transit else [google]
        return {
            "driver": {
                "kind": "sql",
                "database": self.url.render_as_string(hide_password=False),
                "records": {"table": "records", "data_key_column": "data_key_id"},
            },
            "kms": kms.pop() if self.is_on_transit else kms.pop(0),
            "previous_kms": kms,
        }

    @asynccontextmanager
    async def wrapping(self) -> AsyncIterator[KeyWrapper]:
        """By its KMS keys, past everything that a rotator or driver does."""
        described = self.describe()
        first, *others = map(validate_key_settings, (described["kms"], *described["previous_kms"]))
        async with connect_keys((first, *others)) as keys:
            previous = {each.key_name: keys[each.key_name] for each in others}
            yield KeyWrapper(keys[first.key_name], first.key_name, SECONDS, previous=previous)

    async def execute(self, statement: str, **values: object) -> list[Any]:
        """Does it in the database, past everything; gives the rows that it reads."""

        def run(connection: Connection) -> list[Any]:
            done = connection.execute(text(statement), values)
            return list(done.all()) if done.returns_rows else []

        async with self.database() as database:
            return await database.write(run)

    async def metrics(self) -> KeyringMetrics:
        """What a service would show of it."""
        async with self.database() as database:
            return await database.read(read_keyring_metrics)

    @asynccontextmanager
    async def database(self) -> AsyncIterator[Database]:
        database = await Database.open(self.url, TABLES)
        try:
            yield database
        finally:
            await database.close()

    async def fill(self, keys: int, records: int = 2) -> None:
        """Data keys wrapped by the primary version, the last one active, each with records."""
        async with self.wrapping() as wrapping:
            wraps = [await wrapping.wrap(data_key_id(number), secret(number)) for number in range(keys)]

        def write(connection: Connection) -> None:
            blob = "BYTEA" if connection.dialect.name == "postgresql" else "BLOB"
            connection.execute(text(f"CREATE TABLE records (id TEXT, data_key_id TEXT, sealed {blob})"))
            for number, wrapped in enumerate(wraps):
                status = DataKeyStatus.ACTIVE if number == keys - 1 else DataKeyStatus.RETIRED
                proof, now = compute_fingerprint(secret(number)), datetime.now(UTC)
                store.insert_data_key(connection, DataKey(data_key_id(number), status, wrapped, proof, now))
                for record in range(records):
                    sealed = AESGCM(secret(number)).encrypt(NONCE, b"record %d" % record, None)
                    values = {"id": f"{number}-{record}", "key": data_key_id(number), "sealed": sealed}
                    connection.execute(text("INSERT INTO records VALUES (:id, :key, :sealed)"), values)

        async with self.database() as database:
            await database.write(write)

    async def reset(self, keys: Iterable[DataKey]) -> None:
        """These data keys alone, and nothing of any rotation."""

        def write(connection: Connection) -> None:
            for table in TABLES.sorted_tables:
                if table is not schema:
                    connection.execute(table.delete())
            for key in keys:
                store.insert_data_key(connection, key)

        async with self.database() as database:
            await database.write(write)

    async def lease_ends(self) -> None:
        """As if its time had passed."""
        await self.execute("UPDATE keyring_lease SET expires_at = 0")

    async def keys(self) -> dict[str, DataKey]:
        """What the database holds."""
        async with self.database() as database:
            rows = await database.read(lambda connection: store.list_data_keys(connection, "", 1000))
        return {row.id: row for row in rows}

    async def broken(self) -> list[str]:
        """Records that cannot be read, by what is stored now and KMS."""
        keys, found = await self.keys(), []
        async with self.wrapping() as wrapping:
            rows = await self.execute("SELECT id, data_key_id, sealed FROM records")
            secrets = {id_: await wrapping.unwrap(key) for id_, key in keys.items()}
        for id_, key, sealed in rows:
            if AESGCM(secrets[key]).decrypt(NONCE, bytes(sealed), None) != b"record %d" % int(id_.partition("-")[2]):
                found.append(id_)
        return found
