from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import pytest
from aiohttp import web

from ops.kms_emulator.emulator import Emulator, run_emulator
from services.exporter.backends.reader import BackendReader, open_http_client
from services.exporter.backends.settings import Backend as BackendSettings
from services.exporter.model import BackendState
from shared.kms.gcp.settings import GcpKeySettings
from shared.kms.port import KmsKey
from shared.kms.registry import connect_key

KEY = "projects/demo/locations/global/keyRings/app/cryptoKeys/ledger"


@pytest.fixture
async def emulator() -> AsyncIterator[Emulator]:
    """A real Cloud KMS emulator over gRPC that holds KEY."""
    async with run_emulator(keys=[KEY]) as running:
        yield running


@pytest.fixture
async def key(emulator: Emulator) -> AsyncIterator[KmsKey]:
    """KEY, as the emulator has it."""
    provider = connect_key(GcpKeySettings(key=KEY, endpoint=str(emulator.address), insecure=True))
    yield provider
    await provider.close()


@pytest.fixture
def parser() -> Iterator[Executor]:
    """The one thread in which `reader` parses metrics."""
    with ThreadPoolExecutor(1) as threads:
        yield threads


Reader = Callable[..., BackendReader]


@pytest.fixture
async def reader(parser: Executor) -> AsyncIterator[Reader]:
    """Makes the reader of a backend by its URLs; it waits 30 s unless it is told otherwise."""
    async with open_http_client() as session:

        def make(
            health_url: str, metrics_url: str | None = None, *, timeout: float = 30.0, **settings: Any
        ) -> BackendReader:
            # Not validated: a URL that the settings refuse is a problem of the read, too.
            settings |= {"service": "backend", "health_url": health_url, "metrics_url": metrics_url}
            backend = BackendSettings.model_construct(**settings)
            return BackendReader(backend, session, parser, timeout)

        yield make


Handler = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]
Backend = Callable[[Handler], AbstractAsyncContextManager[str]]


@pytest.fixture
def backend() -> Backend:
    """`async with backend(handler) as url`: a real HTTP server that answers every path by `handler`."""

    @asynccontextmanager
    async def serve(handler: Handler) -> AsyncIterator[str]:
        server = web.Server(handler, access_log=None, handler_cancellation=True)
        runner = web.ServerRunner(server, shutdown_timeout=0)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        try:
            yield f"http://127.0.0.1:{runner.addresses[0][1]}"
        finally:
            await runner.cleanup()

    return serve


@pytest.fixture
def read(reader: Reader, backend: Backend) -> Callable[..., Awaitable[BackendState]]:
    """What is read of a backend that answers by a handler."""

    async def read(handler: Handler, *, metrics: bool = True, timeout: float = 30.0) -> BackendState:
        async with backend(handler) as url:
            return await reader(f"{url}/healthz", f"{url}/metrics" if metrics else None, timeout=timeout).read()

    return read
