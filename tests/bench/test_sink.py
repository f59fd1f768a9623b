"""The sink over a real socket: what it counts and answers is what the benchmarks rest on."""

import asyncio
import json
from collections.abc import AsyncIterator

import pytest

from tests.bench.sink import Connection, Sink

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@pytest.fixture
async def streams() -> AsyncIterator[Streams]:
    sink = Sink()
    server = await asyncio.get_running_loop().create_server(lambda: Connection(sink), "127.0.0.1", 0)
    async with server:
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        yield reader, writer
        writer.close()
        await writer.wait_closed()


def post(path: str, body: str) -> bytes:
    return f"POST {path} HTTP/1.1\r\nHost: sink\r\ncontent-length: {len(body)}\r\n\r\n{body}".encode()


async def answer(reader: asyncio.StreamReader) -> tuple[str, str]:
    async with asyncio.timeout(5):
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        body = await reader.readexactly(int(head.lower().partition("content-length: ")[2].split()[0]))
    return head.splitlines()[0], body.decode()


async def counted(streams: Streams) -> dict[str, tuple[int, int]]:
    reader, writer = streams
    writer.write(b"GET / HTTP/1.1\r\nHost: sink\r\n\r\n")
    answered = json.loads((await answer(reader))[1])
    return {provider: (found["groups"], found["messages"]) for provider, found in answered.items()}


async def test_each_provider_is_answered_as_its_clients_expect(streams: Streams) -> None:
    reader, writer = streams
    writer.write(post("/slack/api/chat.postMessage", "{}"))
    status, body = await answer(reader)
    assert status == "HTTP/1.1 200 OK"
    assert json.loads(body)["ok"] is True
    writer.write(post("/webhook", "{}"))
    assert await answer(reader) == ("HTTP/1.1 200 OK", "ok")
    writer.write(post("/pagerduty/v2/enqueue", "{}"))
    status, body = await answer(reader)
    assert status == "HTTP/1.1 202 Accepted"
    assert json.loads(body)["status"] == "success"


async def test_a_group_that_is_reported_twice_is_two_messages_and_one_group(streams: Streams) -> None:
    reader, writer = streams
    for group in ("group-00001", "group-00002", "group-00001"):
        writer.write(post("/pagerduty/v2/enqueue", group))
        await answer(reader)
    assert await counted(streams) == {"slack": (0, 0), "pagerduty": (2, 3)}


async def test_requests_that_come_in_chunks_or_in_one_are_each_counted_once(streams: Streams) -> None:
    reader, writer = streams
    both = post("/slack/x", "group-00001") + post("/slack/x", "group-00002")
    for piece in (both[:20], both[20:-5], both[-5:]):
        writer.write(piece)
        await writer.drain()
        await asyncio.sleep(0)
    await answer(reader)
    await answer(reader)
    assert await counted(streams) == {"slack": (2, 2), "pagerduty": (0, 0)}
