"""What a stranger's connection may hold: not much, not many, and not for long."""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, suppress

import pytest
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from shared.config.settings import Address
from shared.http.limits import MAX_HEAD_BYTES, MAX_HEADERS, MAX_PIPELINED_REQUESTS, MAX_UNFINISHED_HEADS, READ_BYTES
from shared.http.server import create_application, create_registry, serve
from tests.relay.served_relay import until

HEAD = b"POST /sent HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\n"


async def _sent(request: Request) -> Response:
    return PlainTextResponse((await request.body()).decode())


@pytest.fixture
async def address() -> AsyncIterator[Address]:
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


async def test_before_a_request_can_be_refused_no_more_of_its_body_is_read_than_one_piece() -> None:
    async def first(request: Request) -> Response:
        return PlainTextResponse(str(len((await request.receive())["body"])))

    app = create_application("sample", create_registry(), [Route("/sent", first, methods=["POST"])])
    head = b"POST /sent HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: 250000\r\n\r\n"
    async with asyncio.timeout(30), serve(app, Address("127.0.0.1", 0)) as address:
        with socket.create_connection(address) as client:
            client.settimeout(0)
            # Before the server reads for the first time.
            assert client.send(head + b"a" * 250_000) > 2 * READ_BYTES
            answer = await asyncio.get_running_loop().sock_recv(client, 4096)
    assert int(answer.partition(b"\r\n\r\n")[2]) <= READ_BYTES


async def test_a_head_of_usual_size_is_taken_and_a_long_body_with_it(address: Address) -> None:
    head = b"POST /sent HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nX: " + b"a" * 16_000
    answer = await answers(address, head + b"\r\nContent-Length: 500000\r\n\r\n", *[b"b" * 1000] * 500)
    assert answer.startswith(b"HTTP/1.1 200")
    assert answer.count(b"b") >= 500_000


@pytest.mark.parametrize("name", [b"a", b"aaaa", b"a-usual-name"])
@pytest.mark.parametrize(
    "body", [b"Content-Length: 5\r\n\r\nhello", b"Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n"]
)
async def test_a_request_may_have_a_hundred_headers_and_no_more(name: bytes, body: bytes, address: Address) -> None:
    begin = b"POST /sent HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
    others = [name + b":\r\n"] * (MAX_HEADERS - 3)
    assert (await answers(address, begin + b"".join(others) + body)).endswith(b"hello")
    for chunks in ([begin + b"".join([*others, b"a:\r\n"]) + body], [begin, *others, b"a:\r\n" * 3]):
        answer = await answers(address, *chunks)
        assert answer.startswith(b"HTTP/1.1 431 Request Header Fields Too Large\r\n"), answer
        assert b"\r\nConnection: close\r\n" in answer
        assert b"at most 100 headers" in answer


async def test_trailers_count_as_headers(address: Address) -> None:
    begin = b"POST /sent HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\n"
    assert b" 431 " in await answers(address, begin + b"a:\r\n" * (MAX_HEADERS - 1) + b"\r\n")


@pytest.mark.parametrize(
    "begin", [b"GET /-/healthy?%s HTTP/1.1\r\nHost: localhost", b"GET /-/healthy HTTP/1.1\r\nHost: localhost\r\nX: %s"]
)
async def test_a_head_has_the_same_limit_in_one_piece_and_in_many(begin: bytes, address: Address) -> None:
    for size, status in ((16_384 - 200, b" 200 "), (16_384 + 200, b" 431 ")):
        head = (begin % (b"a" * size)) + b"\r\nConnection: close\r\n\r\n"
        assert status in (await answers(address, head)).partition(b"\r\n")[0]
        parts = (head[start : start + 5000] for start in range(0, len(head), 5000))
        assert status in (await answers(address, *parts, pause=0.01)).partition(b"\r\n")[0]


async def test_the_oldest_unfinished_head_ends_when_there_are_too_many_and_no_usual_request_waits(
    address: Address,
) -> None:
    async with AsyncExitStack() as opened:
        clients = []
        for _ in range(MAX_UNFINISHED_HEADS + 2):
            clients.append(await asyncio.open_connection(*address))
            opened.callback(clients[-1][1].transport.abort)
            clients[-1][1].write(b"GET /-/healthy HTTP/1.1\r\nX: y")
        ending = [asyncio.create_task(reader.read()) for reader, _ in clients]
        await until(lambda: sum(task.done() for task in ending) == 2)
        usual = b"GET /-/healthy HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
        assert (await answers(address, usual)).startswith(b"HTTP/1.1 200")
        clients[-1][1].write(b"\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        assert (await ending[-1]).startswith(b"HTTP/1.1 200")
        assert [task.result() for task in ending[:-1] if task.done()] == [b"", b""]
        for task in ending:
            task.cancel()


async def test_only_some_requests_may_come_before_the_first_is_answered(address: Address) -> None:
    pipelined = b"GET /-/healthy HTTP/1.1\r\nHost: localhost\r\n\r\n"
    last = b"GET /-/healthy HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
    answer = await answers(address, pipelined * MAX_PIPELINED_REQUESTS + last)
    assert answer.count(b"HTTP/1.1 200") == MAX_PIPELINED_REQUESTS + 1
    assert (await answers(address, pipelined * 1000 + last)).count(b"HTTP/1.1 200") <= 1


@pytest.mark.parametrize(
    "chunks", [(), (b"GET",), (b"GET /-/healthy HTTP/1.1\r\nHost: localhost\r\n\r\n", b"GET /-/heal")]
)
async def test_a_request_that_does_not_arrive_is_not_waited_for(
    chunks: tuple[bytes, ...], address: Address, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shared.http.limits.HEAD_SECONDS", 0.2)
    answer = await answers(address, *chunks, pause=0.05)
    assert answer.count(b"HTTP/1.1 200") == (len(chunks) == 2)


async def test_a_body_that_drips_is_waited_for(address: Address, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shared.http.limits.HEAD_SECONDS", 0.2)
    answer = await answers(address, HEAD + b"Connection: close\r\n\r\n", *(b"a", b"b", b"c", b"d", b"e"), pause=0.1)
    assert answer.endswith(b"abcde")
