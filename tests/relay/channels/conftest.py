"""Providers for the tests of channels: the stand-ins, and servers that answer as a test says."""

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import structlog
from aiohttp import web

from ops.demo.stand_ins.app import StandIns, run_stand_ins
from ops.demo.stand_ins.provider_faults import FaultKind, Provider, ProviderFault
from services.relay.channels.port import Channel
from shared.config.settings import Address
from tests.connections import close_server
from tests.relay.channels.doubles import find_double
from tests.relay.channels.examples import SECRET, example, settings

Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
TcpServer = Callable[[Handler], Awaitable[Address]]
Answer = Callable[[web.Request], Awaitable[web.StreamResponse]]
Answering = Callable[[Answer], Awaitable[Address]]
WebServer = Callable[..., Awaitable[Address]]
OpenChannel = Callable[..., Channel]


@pytest.fixture
def secret_file(tmp_path: Path) -> Path:
    file = tmp_path / "secret"
    file.write_text(SECRET)
    return file


@pytest.fixture
async def open_channel() -> AsyncIterator[OpenChannel]:
    """Connects channels with settings, and closes them in the end."""
    async with AsyncExitStack() as stack:

        def open_channel(values: Mapping[str, Any], timeout: float = 5) -> Channel:
            channel = settings(values).connect(timeout)
            stack.push_async_callback(channel.close)
            return channel

        yield open_channel


@pytest.fixture(autouse=True)
def no_access_log() -> Iterator[None]:
    """The path of a request is the secret of an incoming webhook, and a test that fails prints what was logged."""
    access = logging.getLogger("uvicorn.access")
    level = access.level
    access.setLevel(logging.WARNING)
    yield
    access.setLevel(level)


@pytest.fixture
async def stand_ins() -> AsyncIterator[StandIns]:
    async with run_stand_ins(
        slack_tokens=(SECRET,), slack_webhook_secrets=(SECRET,), pagerduty_keys=(SECRET,)
    ) as running:
        yield running


class Providers:
    """One provider for each kind of channel, all of which take whatever is within the documented limits."""

    def __init__(self, stand_ins: StandIns, hook: Address, hooked: list[str], logged: list[Any]) -> None:
        self.hook_is_late = False
        self._stand_ins = stand_ins
        self._hook = hook
        self._hooked = hooked
        self._logged = logged

    def example(self, kind: str, secret_file: Path) -> dict[str, Any]:
        """The example of this kind, reaching its provider; the mail server asks nobody for a password."""
        find_double(kind)  # a new kind needs one
        stand_ins = dict.fromkeys(("slack", "slack_webhook", "pagerduty"), self._stand_ins.http)
        addresses = {**stand_ins, "email": self._stand_ins.smtp}
        values = example(kind, secret_file, addresses.get(kind, self._hook))
        return {key: value for key, value in values.items() if key not in {"username", "password_file"}}

    def arrived(self, kind: str) -> list[str]:
        """Everything that came over a channel of this kind, as text."""
        stand_ins = self._stand_ins
        posts = [message for channel in stand_ins.slack.channels.values() for message in channel.messages]
        # What does not fit into a message is a file, or a reply whose metadata names it a part.
        slack = [str(post) for post in posts if not post.files and "'part'" not in str(post.metadata)]
        mails = [f"{mail.text} {mail.html}" for mail in stand_ins.mailbox.mails]
        lines = [json.dumps(line) for line in self._logged if line["event"] == "alert"]
        lines = [line for line in lines if not _is_refused("log", line.encode())]
        events = [str(event) for event in stand_ins.pagerduty.events]
        arrived = {"slack": slack, "email": mails, "pagerduty": events, "log": lines}
        return arrived.get(kind.partition("_")[0], self._hooked)

    def answer_late(self, kind: str) -> None:
        """From now on the provider takes everything, and answers in an hour."""
        stand_ins = {"slack": Provider.SLACK, "pagerduty": Provider.PAGERDUTY, "email": Provider.SMTP}
        if provider := stand_ins.get(kind.partition("_")[0]):
            self._stand_ins.faults.add(ProviderFault(provider=provider, kind=FaultKind.SLOW_ANSWER, seconds=3600))
        else:
            self.hook_is_late = True


def _is_refused(kind: str, body: bytes) -> bool:
    refuses = find_double(kind).refuses
    assert refuses is not None, f"say in `DOUBLES` what the provider of `kind: {kind}` refuses"
    return refuses(body)


@pytest.fixture
async def providers(stand_ins: StandIns, answering: Answering) -> AsyncIterator[Providers]:
    hooked: list[str] = []

    async def take(request: web.Request) -> web.Response:
        body, kind = await request.read(), request.path.split("/")[1]  # of its example
        if not any(SECRET in value for value in (request.path, *request.headers.values())):
            return web.Response(status=401, text="neither the path nor a header has the secret of the example")
        if request.method == "OPTIONS":
            return web.Response(status=204)
        if _is_refused(kind, body):
            return web.Response(status=400, text=f"`DOUBLES` refuses these {len(body)} bytes")
        hooked.append(body.decode())
        if found.hook_is_late:
            await asyncio.sleep(3600)
        return web.Response(status=204)

    with structlog.testing.capture_logs() as logged:
        found = Providers(stand_ins, await answering(take), hooked, logged)
        yield found


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
        await close_server(server)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


@pytest.fixture
def requests() -> list[bytes]:
    """The bodies of all requests that servers of `website` got."""
    return []


@pytest.fixture
async def answering() -> AsyncIterator[Answering]:
    """Starts an HTTP server that answers every request as the test says."""
    runners: list[web.AppRunner] = []

    async def serve(answer: Answer) -> Address:
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", answer)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)  # who answers in an hour is not waited for
        runners.append(runner)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        addresses: list[Any] = runner.addresses
        return Address(*addresses[0][:2])

    yield serve
    for runner in runners:
        await runner.cleanup()


@pytest.fixture
async def website(requests: list[bytes], answering: Answering) -> WebServer:
    """Starts an HTTP server that gives every request the same answer."""

    async def serve(status: int, body: str | bytes = b"", **headers: str) -> Address:
        async def answer(request: web.Request) -> web.Response:
            requests.append(await request.read())
            raw = body.encode() if isinstance(body, str) else body
            return web.Response(
                status=status, body=raw, headers={key.replace("_", "-"): value for key, value in headers.items()}
            )

        return await answering(answer)

    return serve
