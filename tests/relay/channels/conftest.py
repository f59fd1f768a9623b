"""Providers for the tests of channels: the stand-ins, and servers that answer as a test says."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from ops.demo.stand_ins.server import StandIns, start
from shared.settings import Address
from tests.relay.channels.examples import SECRET

Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
TcpServer = Callable[[Handler], Awaitable[Address]]
WebServer = Callable[..., Awaitable[Address]]


@pytest.fixture
def secret_file(tmp_path: Path) -> Path:
    file = tmp_path / "secret"
    file.write_text(SECRET)
    return file


@pytest.fixture
async def stand_ins() -> AsyncIterator[StandIns]:
    async with start(slack_tokens=(SECRET,), pagerduty_keys=(SECRET,)) as running:
        yield running


@pytest.fixture
async def tcp() -> AsyncIterator[TcpServer]:
    """Starts a server on a free port that does with each connection what the test says."""
    async with AsyncExitStack() as stack:

        async def serve(handler: Handler) -> Address:
            return await stack.enter_async_context(_tcp_server(handler))

        yield serve


@asynccontextmanager
async def _tcp_server(handler: Handler) -> AsyncIterator[Address]:
    tasks: set[asyncio.Task[None]] = set()

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        with suppress(ConnectionError, asyncio.CancelledError):
            await handler(reader, writer)
        writer.close()

    server = await asyncio.start_server(connected, "127.0.0.1", 0)
    try:
        yield Address(*server.sockets[0].getsockname()[:2])
    finally:
        server.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


@pytest.fixture
def requests() -> list[bytes]:
    """The bodies of all requests that servers of `website` got."""
    return []


@pytest.fixture
async def website(requests: list[bytes]) -> AsyncIterator[WebServer]:
    """Starts an HTTP server that gives every request the same answer."""
    runners: list[web.AppRunner] = []

    async def serve(status: int, body: str | bytes = b"", **headers: str) -> Address:
        async def answer(request: web.Request) -> web.Response:
            requests.append(await request.read())
            raw = body.encode() if isinstance(body, str) else body
            return web.Response(
                status=status, body=raw, headers={key.replace("_", "-"): value for key, value in headers.items()}
            )

        app = web.Application()
        app.router.add_route("*", "/{path:.*}", answer)
        runner = web.AppRunner(app)
        runners.append(runner)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        addresses: list[Any] = runner.addresses
        return Address(*addresses[0][:2])

    yield serve
    for runner in runners:
        await runner.cleanup()
