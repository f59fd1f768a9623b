"""Many clients that post as fast as they are answered: what to post goes in, how long each answer took comes out.

Written on bare sockets, because a client library costs more than some of the servers that are measured with it.
"""

import asyncio
import re
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from tests.bench.stage import TOKEN, BenchError, Running

_ANSWER: Final = re.compile(rb"(?is)^HTTP/1\.1 (\d{3}) .*?\r\ncontent-length: *(\d+)\r\n")
_TIMEOUT: Final = 60.0


@dataclass(frozen=True, slots=True)
class Load:
    """How long some requests took."""

    seconds: float
    """All of them together."""
    each: Sequence[float]
    """Seconds of each, shortest first."""

    @property
    def per_second(self) -> float:
        """Requests answered in a second."""
        return len(self.each) / self.seconds

    def percentile(self, percent: int) -> float:
        """The milliseconds within which so many of a hundred were answered."""
        return 1000 * self.each[min(len(self.each) * percent // 100, len(self.each) - 1)]


async def load(server: Running, bodies: Iterable[bytes], clients: int) -> Load:
    """Posts `bodies` to `/alerts`, each client on a connection of its own, one after the other.

    Raises:
        BenchError: one of them was answered with something else than success, or not at all.
    """
    requests = iter([_request(server.address, body) for body in bodies])
    host, _, port = server.address.rpartition(":")
    loop = asyncio.get_running_loop()
    each: list[float] = []

    async def post() -> None:
        client = _Client(requests, each, loop.create_future())
        await loop.create_connection(lambda: client, host, int(port))
        await client.done

    started = time.perf_counter()
    try:
        async with asyncio.timeout(_TIMEOUT):
            await asyncio.gather(*(post() for _ in range(clients)))
    except (OSError, TimeoutError) as error:
        raise BenchError(f"{server.url} did not answer every request: {error!r}") from None
    return Load(time.perf_counter() - started, sorted(each))


class _Client(asyncio.Protocol):
    """One connection; `done` when there is nothing left to post."""

    def __init__(self, requests: Iterator[bytes], each: list[float], done: "asyncio.Future[None]") -> None:
        self.done = done
        self._requests = requests
        self._each = each
        self._buffer = b""
        self._sent_at = 0.0
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._next()

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        end = self._buffer.find(b"\r\n\r\n")
        answer = _ANSWER.match(self._buffer[: end + 2])
        if end < 0 or answer is None or len(self._buffer) < end + 4 + int(answer[2]):
            return
        self._each.append(time.perf_counter() - self._sent_at)
        text, self._buffer = self._buffer, b""
        if answer[1][:1] == b"2":
            self._next()
        elif not self.done.done():
            self.done.set_exception(BenchError(f"a request was answered with {text.decode(errors='replace')!r}"))

    def connection_lost(self, error: Exception | None) -> None:
        if not self.done.done():
            self.done.set_exception(error or ConnectionResetError("the connection was closed"))

    def _next(self) -> None:
        request = next(self._requests, None)
        assert self._transport is not None
        if request is None:
            self.done.set_result(None)
            self._transport.close()
        else:
            self._sent_at = time.perf_counter()
            self._transport.write(request)


def _request(address: str, body: bytes) -> bytes:
    head = f"POST /alerts HTTP/1.1\r\nHost: {address}\r\nAuthorization: Bearer {TOKEN}\r\n"
    return f"{head}Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body
