"""Requests of one kind are admitted in turn; all others, and those that waited for too long, at once."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import pytest
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from shared.config.settings import Address
from shared.http.limits import AdmissionQueue
from shared.http.server import create_application, create_registry, serve
from tests.relay.served_relay import until

HEAD = b"POST /slow HTTP/1.1\r\nHost: localhost\r\nContent-Length: 4\r\n"
MOST = 2


class Slow:
    """A server whose `POST /slow` takes until it is told to go on."""

    def __init__(self) -> None:
        self.address = Address("127.0.0.1", 0)
        self.in_progress: list[str] = []
        self.most = 0
        self._on = asyncio.Semaphore(0)

    async def post(self, request: Request) -> Response:
        body = (await request.body()).decode()
        self.in_progress.append(body)
        self.most = max(self.most, len(self.in_progress))
        try:
            await self._on.acquire()
        finally:
            self.in_progress.remove(body)
        return PlainTextResponse(body)

    def go_on(self, times: int = 1) -> None:
        for _ in range(times):
            self._on.release()

    @asynccontextmanager
    async def sent(self, body: bytes, head: bytes = HEAD) -> AsyncIterator[asyncio.StreamReader]:
        reader, writer = await asyncio.open_connection(*self.address)
        writer.write(head + b"\r\n" + body)
        try:
            yield reader
        finally:
            writer.transport.abort()


@asynccontextmanager
async def slow(seconds: float = 60.0) -> AsyncIterator[Slow]:
    slow_app = Slow()
    app = create_application("sample", create_registry(), [Route("/slow", slow_app.post, methods=["POST"])])
    queue = AdmissionQueue(b"POST /slow", MOST, seconds)
    async with asyncio.timeout(30), serve(app, Address("127.0.0.1", 0), admission_queue=queue) as slow_app.address:
        yield slow_app


async def answer(reader: asyncio.StreamReader, body: bytes) -> bytes:
    return await reader.readuntil(b"\r\n\r\n" + body)


async def test_those_that_come_first_are_in_progress_and_the_next_follow_one_by_one() -> None:
    async with slow() as it, it.sent(b"aaaa") as a, it.sent(b"bbbb") as b:
        await until(lambda: sorted(it.in_progress) == ["aaaa", "bbbb"])
        async with it.sent(b"cccc") as c, it.sent(b"dddd") as d:
            it.go_on()
            await until(lambda: len(it.in_progress) == MOST and "cccc" in it.in_progress)
            it.go_on(3)
            for reader, body in ((a, b"aaaa"), (b, b"bbbb"), (c, b"cccc"), (d, b"dddd")):
                assert (await answer(reader, body)).startswith(b"HTTP/1.1 200")
    assert it.most == MOST


async def test_what_is_of_another_kind_does_not_wait() -> None:
    async with slow() as it, it.sent(b"aaaa"), it.sent(b"bbbb"):
        await until(lambda: len(it.in_progress) == MOST)
        async with it.sent(b"cccc"), it.sent(b"", b"GET /-/healthy HTTP/1.1\r\nHost: localhost\r\n") as healthy:
            assert (await answer(healthy, b"healthy\n")).startswith(b"HTTP/1.1 200")
        it.go_on(9)


async def test_the_slot_of_one_that_went_away_is_the_next_ones() -> None:
    async with slow() as it, it.sent(b"aaaa"):
        async with it.sent(b"bbbb"):
            await until(lambda: len(it.in_progress) == MOST)
            async with it.sent(b"gone"):
                pass  # while it waits
            await asyncio.sleep(0)
        # Starlette notices nothing; the connection's end gives the turn all the same.
        async with it.sent(b"cccc"):
            await until(lambda: "cccc" in it.in_progress)
            it.go_on(9)
    assert "gone" not in it.in_progress


async def test_one_that_waited_for_too_long_is_processed_all_the_same() -> None:
    async with slow(0.1) as it, it.sent(b"aaaa"), it.sent(b"bbbb"), it.sent(b"cccc"):
        await until(lambda: len(it.in_progress) == MOST + 1)
        async with it.sent(b"dddd"):
            await until(lambda: len(it.in_progress) == MOST + 2)
            it.go_on(9)


async def test_a_connection_is_queued_for_each_of_its_requests() -> None:
    async with slow() as it:
        it.go_on(6)
        reader, writer = await asyncio.open_connection(*it.address)
        for body in (b"aaaa", b"bbbb", b"cccc"):
            writer.write(HEAD + b"\r\n" + body)
            assert (await answer(reader, body)).startswith(b"HTTP/1.1 200")
        writer.transport.abort()
        it.go_on(3)
        async with it.sent(b"dddd") as d, it.sent(b"eeee") as e, it.sent(b"ffff") as f:
            for reader, body in ((d, b"dddd"), (e, b"eeee"), (f, b"ffff")):
                assert (await answer(reader, body)).startswith(b"HTTP/1.1 200")


async def test_a_long_body_that_waited_arrives_whole() -> None:
    head = b"POST /slow HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000000\r\n"
    async with slow() as it, it.sent(b"aaaa"), it.sent(b"bbbb"):
        await until(lambda: len(it.in_progress) == MOST)
        async with it.sent(b"x" * 1_000_000, head) as long:
            it.go_on(9)
            assert (await answer(long, b"x")).startswith(b"HTTP/1.1 200")
            assert len(await long.readexactly(999_999)) == 999_999


async def test_a_connection_that_was_kept_open_waits_like_others() -> None:
    async with slow() as it:
        reader, writer = await asyncio.open_connection(*it.address)
        writer.write(HEAD + b"\r\nkept")
        it.go_on()
        await answer(reader, b"kept")
        async with it.sent(b"aaaa"), it.sent(b"bbbb"):
            await until(lambda: len(it.in_progress) == MOST)
            writer.write(HEAD + b"\r\nmore")
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(reader.read(1), 5.5)  # uvicorn closes a connection that is idle for 5 s
            it.go_on(3)
            assert (await answer(reader, b"more")).startswith(b"HTTP/1.1 200")
        writer.transport.abort()


@pytest.mark.parametrize("piece", [b"POST /slow", HEAD, HEAD + b"\r\nab"])
async def test_what_does_not_arrive_keeps_its_slot_for_a_moment_only(
    piece: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shared.http.limits._ARRIVAL_SECONDS", 0.1)
    async with slow() as it, it.sent(b"", piece[:-2]), it.sent(b"", piece[:-2]), it.sent(b"cccc"):
        await until(lambda: it.in_progress == ["cccc"])
        it.go_on(9)


async def test_what_has_arrived_keeps_its_slot(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shared.http.limits._ARRIVAL_SECONDS", 0.05)
    async with slow() as it, it.sent(b"aaaa"), it.sent(b"bbbb"), it.sent(b"cccc"):
        await until(lambda: len(it.in_progress) == MOST)
        await asyncio.sleep(0.2)
        assert len(it.in_progress) == MOST
        it.go_on(9)


async def test_what_waits_when_the_server_stops_is_answered() -> None:
    async with AsyncExitStack() as clients:
        async with slow() as it:
            readers = [await clients.enter_async_context(it.sent(body)) for body in (b"aaaa", b"bbbb", b"cccc")]
            await until(lambda: len(it.in_progress) == MOST)
            asyncio.get_running_loop().call_later(0.5, it.go_on, 9)  # by then the stop has begun
        for reader, body in zip(readers, (b"aaaa", b"bbbb", b"cccc"), strict=True):
            assert (await answer(reader, body)).startswith(b"HTTP/1.1 200")
