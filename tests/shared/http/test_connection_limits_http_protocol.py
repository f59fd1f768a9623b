"""What a stranger's connection may hold: not much, not many, and not for long."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress

import pytest
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from shared.config.settings import Address
from shared.http import connection_limits
from shared.http.connection_limits import MAX_HEAD_BYTES, MAX_PIPELINED_REQUESTS
from shared.http.server import create_application, create_registry, serve

HEAD = b"POST /sent HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\n"


async def _sent(request: Request) -> Response:
    return PlainTextResponse((await request.body()).decode())


@pytest.fixture(params=["_LimitedH11Protocol", "_LimitedHttptoolsProtocol"])
async def address(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Address]:
    monkeypatch.setattr("shared.http.server.HttpProtocol", getattr(connection_limits, request.param))
    app = create_application("sample", create_registry(), [Route("/sent", _sent, methods=["POST"])])
    async with asyncio.timeout(30), serve(app, Address("127.0.0.1", 0)) as address:
        yield address


async def answers(address: Address, *chunks: bytes, pause: float = 0.0) -> bytes:
    """All that comes back until the server hangs up, which it may do before all pieces are sent."""
    reader, writer = await asyncio.open_connection(*address)
    try:
        for piece in chunks:
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(pause)
        async with asyncio.timeout(20):
            return await reader.read()
    except ConnectionError:
        return b""
    finally:
        writer.transport.abort()


@pytest.mark.parametrize("begin", [b"GET /", b"GET / HTTP/1.1\r\nX: ", b"GET / HTTP/1.1\r\n"])
async def test_a_head_without_an_end_ends_the_connection(begin: bytes, address: Address) -> None:
    more = b"X: y\r\n" * 200 if begin.endswith(b"1.1\r\n") else b"a" * 1000
    reader, writer = await asyncio.open_connection(*address)
    writer.write(begin)
    answer, sent = asyncio.create_task(reader.read()), 0
    while not answer.done() and sent < 256 * MAX_HEAD_BYTES:
        writer.write(more)
        with suppress(ConnectionError):
            await writer.drain()
        sent += len(more)
        await asyncio.sleep(0)
    writer.transport.abort()
    assert sent < 256 * MAX_HEAD_BYTES
    await asyncio.gather(answer, return_exceptions=True)


async def test_a_head_of_usual_size_is_taken_and_a_long_body_with_it(address: Address) -> None:
    head = b"POST /sent HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nX: " + b"a" * 30_000
    answer = await answers(address, head + b"\r\nContent-Length: 500000\r\n\r\n", *[b"b" * 1000] * 500)
    assert answer.startswith(b"HTTP/1.1 200")
    assert answer.count(b"b") >= 500_000


async def test_only_some_requests_may_come_before_the_first_is_answered(
    address: Address, request: pytest.FixtureRequest
) -> None:
    pipelined = b"GET /-/healthy HTTP/1.1\r\nHost: localhost\r\n\r\n"
    last = b"GET /-/healthy HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
    assert (await answers(address, pipelined * (MAX_PIPELINED_REQUESTS - 2) + last)).count(
        b"HTTP/1.1 200"
    ) == MAX_PIPELINED_REQUESTS - 1
    answered = (await answers(address, pipelined * 1000 + last)).count(b"HTTP/1.1 200")
    reads_one_at_a_time = "_LimitedH11Protocol" in request.node.name
    assert answered == 1001 if reads_one_at_a_time else answered <= 1


@pytest.mark.parametrize(
    "chunks", [(), (b"GET",), (b"GET /-/healthy HTTP/1.1\r\nHost: localhost\r\n\r\n", b"GET /-/heal")]
)
async def test_a_request_that_does_not_arrive_is_not_waited_for(
    chunks: tuple[bytes, ...], address: Address, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shared.http.connection_limits.HEAD_SECONDS", 0.2)
    answer = await answers(address, *chunks, pause=0.05)
    assert answer.count(b"HTTP/1.1 200") == (len(chunks) == 2)


async def test_a_body_that_drips_is_waited_for(address: Address, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shared.http.connection_limits.HEAD_SECONDS", 0.2)
    answer = await answers(address, HEAD + b"Connection: close\r\n\r\n", *(b"a", b"b", b"c", b"d", b"e"), pause=0.1)
    assert answer.endswith(b"abcde")
