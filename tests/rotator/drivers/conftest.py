"""A real backend on a real KMS emulator, and the settings of a driver of each kind that leads to its keyring."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import httpx2
import pytest
import yaml
from pydantic import TypeAdapter
from sqlalchemy import URL, create_engine, text

from ops.kms_emulator.emulator import Emulator
from services.backend.app import run_backend
from services.backend.config import BackendSettings
from services.rotator.drivers.registry import DriverSettings, open_driver
from shared.config.settings import load_settings, use_base_folder
from shared.http import server
from shared.keyring.administration import Administration
from shared.kms.gcp.settings import GcpKeySettings
from tests.fork_server import forked
from tests.iterations import LONG
from tests.key_versions import KEY

TOKEN = "a-token-that-nobody-may-see"
SECONDS = 60.0
"""For one answer, however busy the machine is."""
KINDS = tuple(
    settings.model_fields["kind"].annotation.__args__[0]
    for settings in get_args(get_args(DriverSettings)[0])
    if settings.has_own_keys  # a table of another program is no backend's keyring: tests/rotator/table
)


@dataclass
class Backend:
    """A running one."""

    url: str
    configuration: Path
    database: URL
    kms: GcpKeySettings
    folder: Path

    @property
    def admin_command(self) -> list[str]:
        return [*forked("services.backend"), "admin", "--config", str(self.configuration)]

    def driver(self, kind: str, **overrides: object) -> Any:
        """The settings of a driver to it."""
        kinds: dict[str, dict[str, object]] = {
            "admin_api": {"url": self.url, "token_file": "token"},
            "command": {"argv": self.admin_command},
            "sql": {
                "database": self.database.render_as_string(hide_password=False),
                "records": {"table": "records", "data_key_column": "data_key_id"},
            },
        }
        with use_base_folder(self.folder):
            return TypeAdapter(DriverSettings).validate_python({"kind": kind, **kinds[kind], **overrides})

    def connected(self, kind: str, **overrides: object) -> AbstractAsyncContextManager[Administration]:
        return open_driver(self.driver(kind, **overrides), self.kms, caller="a test")

    async def put(self, record_id: str, content: bytes) -> None:
        async with httpx2.AsyncClient(base_url=self.url, timeout=SECONDS) as client:
            (await client.put(f"/v1/records/{record_id}", content=content)).raise_for_status()

    async def execute(self, *statements: str) -> None:
        """Changes the database behind the backend's back."""
        await asyncio.to_thread(_execute, self.database, statements)

    async def get(self, record_id: str) -> bytes:
        async with httpx2.AsyncClient(base_url=self.url, timeout=SECONDS) as client:
            return (await client.get(f"/v1/records/{record_id}")).raise_for_status().content


def _execute(url: URL, statements: tuple[str, ...]) -> None:
    engine = create_engine(url)
    try:
        with engine.begin() as connection:
            for statement in statements:
                connection.execute(text(statement))
    finally:
        engine.dispose()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Behind a backend the driver is the same whatever store that has: PostgreSQL there is for `FAULTS=long`."""

    def is_repeated(item: pytest.Item) -> bool:
        parameters = item.callspec.params if hasattr(item, "callspec") else {}
        return parameters.get("keyring", "sql") != "sql" and parameters.get("empty_database") == "postgresql"

    if not LONG:
        items[:] = [item for item in items if not is_repeated(item)]


Serve = Callable[..., AbstractAsyncContextManager[Backend]]


@pytest.fixture
def serve(emulator: Emulator, tmp_path: Path) -> Serve:
    """`async with serve(database)`: a backend on it."""

    @asynccontextmanager
    async def served(database: URL, **overrides: object) -> AsyncIterator[Backend]:
        (tmp_path / "token").write_text(TOKEN)
        kms = GcpKeySettings(key=KEY, endpoint=str(emulator.address), insecure=True)
        document = {
            "listen": "127.0.0.1:0",
            "database": database.render_as_string(hide_password=False),
            "kms": kms.model_dump(),
            "admin": {"token_file": "token"},
            "local_key_file": "local.key",
            "kms_timeout": f"{SECONDS:.0f}s",
            "kms_check_interval": "1s",  # a new data key waits for one check
            **overrides,
        }
        file = tmp_path / "backend.yml"
        file.write_text(yaml.safe_dump(document))
        async with (
            run_backend(load_settings(BackendSettings, file)) as app,
            server.serve(app, load_settings(BackendSettings, file).listen) as address,
        ):
            file.write_text(yaml.safe_dump({**document, "listen": str(address)}))
            yield Backend(f"http://{address}", file, database, kms, tmp_path)

    return served


@pytest.fixture
async def backend(serve: Serve, empty_database: URL) -> AsyncIterator[Backend]:
    """One that runs; with each store."""
    async with serve(empty_database) as running_backend:
        yield running_backend


@pytest.fixture(params=KINDS)
async def keyring(request: pytest.FixtureRequest, backend: Backend) -> AsyncIterator[Administration]:
    """Its keyring, once through a driver of each kind."""
    async with backend.connected(request.param) as administration:
        yield administration
