import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
import yaml
from sqlalchemy import URL

from ops.kms_emulator.emulator import Emulator
from services.backend import records as records_module
from services.backend.config import BackendSettings
from services.backend.crypto_mode import KmsChecker
from services.backend.keyring import Keyring
from services.backend.local_key_file import InstanceLocalKey
from services.backend.records import Records, decrypt_record
from shared.config.settings import load_settings
from shared.keyring.database import Database
from shared.keyring.instances import InstanceHeartbeat
from shared.keyring.store import DataKeyStore
from shared.keyring.tables import TABLES
from shared.keyring.wrapping import KeyWrapper
from shared.kms.gcp.client import GcpKmsKey
from shared.kms.port import KmsKey
from shared.kms.quota import QuotaLimitedKey
from shared.sql.database_url import create_sqlite_url
from tests.key_versions import KEY, emulator_fixture, versions_fixture  # noqa: F401 - fixtures


@pytest.fixture(autouse=True)
def first_check_is_awaited(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a test reads of a start is what the first check of KMS has found, however busy the machine is."""
    monkeypatch.setattr("services.backend.app._FIRST_CHECK_TIMEOUT", 60.0)


@dataclass
class Backend:
    """A keyring with its records, whose checks of KMS are made by the test."""

    keyring: Keyring
    checker: KmsChecker
    store: DataKeyStore
    records: Records

    async def check(self) -> None:
        """A check, and what follows it in the background."""
        await self.checker.check()
        await self.keyring.unwrap_remaining()

    async def put(self, record_id: str, plaintext: bytes) -> None:
        assert await self.records.put(record_id, plaintext, self.keyring.get_active_key())

    async def get(self, record_id: str) -> bytes:
        record = await self.records.find(record_id)
        assert record is not None
        return decrypt_record(record, await self.keyring.get_key(record.data_key_id))


Open = Callable[..., AbstractAsyncContextManager[Backend]]


@asynccontextmanager
async def _backend(
    folder: Path,
    kms: str | KmsKey,
    *,
    timeout: float = 30.0,
    key: str = KEY,
    previous: Mapping[str, KmsKey] | None = None,
) -> AsyncIterator[Backend]:
    database = await Database.open(create_sqlite_url(folder / "backend.db"), TABLES, records_module.TABLES)
    provider = GcpKmsKey(key, endpoint=kms, insecure=True) if isinstance(kms, str) else kms
    try:
        store = DataKeyStore(database)
        heartbeat = InstanceHeartbeat(database, uuid4().hex, 0.0)
        local = InstanceLocalKey(folder / "local.key", database, heartbeat)
        await local.open()
        wrapping = KeyWrapper(provider, key, timeout, local, previous or {})
        background = wrapping.change_keys(QuotaLimitedKey)
        keyring = Keyring(store, local, wrapping, heartbeat, background=background, clock=time.time)
        yield Backend(keyring, KmsChecker(keyring), store, Records(database))
    finally:
        await provider.close()
        await database.close()


@pytest.fixture
def open_backend() -> Open:
    """`async with open_backend(folder, kms_address)`; a second one on the same folder is a restart."""
    return _backend


@pytest.fixture
async def backend(emulator: Emulator, tmp_path: Path) -> AsyncIterator[Backend]:
    """One whose KMS is the emulator."""
    async with _backend(tmp_path, str(emulator.address)) as opened:
        yield opened


@pytest.fixture
def configuration(tmp_path: Path) -> Callable[..., Path]:
    """Writes a backend's configuration file; every value may be overridden."""

    def write(kms: str, **overrides: Any) -> Path:
        document = {
            "listen": "127.0.0.1:0",
            "database": "sqlite:///backend.db",
            "kms": {"provider": "gcp", "key": KEY, "endpoint": kms, "insecure": True},
            "local_key_file": "local.key",
            "kms_check_interval": "50ms",
            **overrides,
        }
        file = tmp_path / "backend.yml"
        file.write_text(yaml.safe_dump(document))
        return file

    return write


@pytest.fixture
def settings(configuration: Callable[..., Path]) -> Callable[..., BackendSettings]:
    """A backend's settings, read from a file as the command reads them."""
    # With the product's two seconds, a busy machine would be an outage.
    return lambda kms, **overrides: load_settings(
        BackendSettings, configuration(kms, **{"kms_timeout": "30s", **overrides})
    )


@pytest.fixture
def configured(
    emulator: Emulator, settings: Callable[..., BackendSettings], empty_database: URL, tmp_path: Path
) -> Callable[..., BackendSettings]:
    """The same with an admin API, on each kind of database."""
    (tmp_path / "token").write_text("the-token-of-a-test")
    url = empty_database.render_as_string(hide_password=False)

    def make(local_key: str = "local.key", interval: str = "50ms") -> BackendSettings:
        overrides: dict[str, Any] = {"local_key_file": local_key, "kms_check_interval": interval}
        return settings(str(emulator.address), admin={"token_file": "token"}, database=url, **overrides)

    return make
