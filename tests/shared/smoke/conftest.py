"""A real backend over a real KMS emulator, and servers that answer what a test says."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from ops.kms_emulator.emulator import Emulator, run_emulator
from services.backend.app import run_backend
from services.backend.config import BackendSettings
from shared.config.settings import Address
from shared.http.server import serve

KEY = "projects/demo/locations/global/keyRings/app/cryptoKeys/ledger"
Handler = Callable[[Request], Awaitable[Response]]
Answering = Callable[[Handler], AbstractAsyncContextManager[str]]


@dataclass
class Backend:
    """A running backend, and the KMS that it uses."""

    url: str
    kms: Emulator
    folder: Path


@pytest.fixture
async def backend(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Backend]:
    monkeypatch.setattr("services.backend.app._FIRST_CHECK_TIMEOUT", 60.0)
    async with run_emulator(keys=[KEY]) as emulator:
        settings = BackendSettings.model_validate(
            {
                "database": f"sqlite:///{tmp_path}/backend.db",
                "kms": {"provider": "gcp", "key": KEY, "endpoint": str(emulator.address), "insecure": True},
                "local_key_file": str(tmp_path / "local.key"),
                "kms_check_interval": "50ms",
                "kms_timeout": "30s",  # with the product's two bounds of seconds, a busy machine would be an outage
            }
        )
        async with run_backend(settings) as app, serve(app, Address("127.0.0.1", 0)) as address:
            yield Backend(f"http://{address}", emulator, tmp_path)


@asynccontextmanager
async def _answering(handler: Handler) -> AsyncIterator[str]:
    app = Starlette(routes=[Route("/{path:path}", handler, methods=["GET", "PUT", "POST"])])
    async with serve(app, Address("127.0.0.1", 0)) as address:
        yield f"http://{address}"


@pytest.fixture
def answering() -> Answering:
    """`async with answering(handler) as url`: a server for whatever is asked."""
    return _answering
