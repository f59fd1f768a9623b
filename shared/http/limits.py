"""Limits before a caller is authenticated: a request's head, its body's bytes and time, requests handled at once.

uvicorn closes no connection on which a request does not arrive, and buffers a head of any size, any number of headers
(each takes fifty times its four bytes once parsed) and of pipelined requests. Of a body that nobody reads it buffers
64 KiB at most, so a reader waits, in order of arrival, until its budget has space. A body takes none before its first
byte; up to `SMALL_BODY_BYTES` it counts against the small budget, a larger one then needs its whole size from the large
one at once, so no two wait for each other. A sender that is too slow while others wait loses its space.
"""

import asyncio
import math
from collections import deque
from collections.abc import AsyncIterator
from contextlib import suppress
from http import HTTPStatus
from typing import Any, ClassVar, Final

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol


class ByteBudget:
    """A budget of bytes that are in memory at once."""

    def __init__(self, limit: int) -> None:
        self._available = limit
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()

    @property
    def waiting_count(self) -> int:
        return len(self._waiting)

    async def acquire(self, size: int, seconds: float) -> None:
        """Reserve `size` bytes, which the caller releases. Raises TimeoutError after `seconds`."""
        if not self._waiting and size <= self._available:
            self._available -= size
            return
        granted: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((size, granted))
        try:
            async with asyncio.timeout(seconds):
                await granted
        except BaseException:
            if granted.done() and not granted.cancelled():  # it was granted at the same moment
                self.release(size)
            else:
                with suppress(ValueError):
                    self._waiting.remove((size, granted))
                self._wake_waiting()
            raise

    def release(self, size: int) -> None:
        self._available += size
        self._wake_waiting()

    def _wake_waiting(self) -> None:
        while self._waiting and self._waiting[0][0] <= self._available:
            size, granted = self._waiting.popleft()
            if not granted.done():  # else its waiter is gone
                self._available -= size
                granted.set_result(None)


SMALL_BODY_BYTES: Final = 64 * 1024
BODY_SECONDS: Final = 30.0
"""How long a body may take to arrive, without its waits for budget."""
BUDGET_WAIT_SECONDS: Final = 8.0
"""How long a body waits for budget; then its sender may try again."""
SLOW_BODY_SECONDS: Final = 5.0
"""How long a body keeps budget that others wait for without progress: the same share of it as of `BODY_SECONDS`."""
DISCARD_SECONDS: Final = 1.0
"""How long before its deadline a body stops waiting for budget, so that its rest can be read and the answer arrives."""
_MAX_WAITING: Final = 128
"""How many may wait for the large budget: each still occupies some of the small one."""


class BodyTooLargeError(Exception):
    """A body is longer than allowed."""


class BodyBudgetExhaustedError(Exception):
    """The budget had no space in time."""


class SlowBodyError(Exception):
    """A body did not arrive in time; one sentence."""


async def read_body(stream: AsyncIterator[bytes], max_bytes: int) -> bytes:
    """Return a body that needs no budget, as of a test server. Raises BodyTooLargeError past `max_bytes`."""
    body = bytearray()
    async for chunk in stream:
        body += chunk
        if len(body) > max_bytes:
            raise BodyTooLargeError
    return bytes(body)


class BodyBudgets:
    """The budgets of one server.

    Args:
        small: bytes for all small bodies.
        large: bytes for all larger ones; one must fit.
    """

    def __init__(self, small: int, large: int) -> None:
        self.small = ByteBudget(small)
        self.large = ByteBudget(large)


class BodyReader:
    """Reads one body within the budgets; call `release` at the end.

    Args:
        budgets: of the server.
        stream: the chunks.
        limit: bytes that the body may have.
        content_length: bytes that it declares, or None.
        deadline: when the request has to be answered, by the event loop's clock; the reader is cancelled then.
    """

    def __init__(
        self,
        budgets: BodyBudgets,
        stream: AsyncIterator[bytes],
        limit: int,
        content_length: int | None,
        deadline: float = math.inf,
    ) -> None:
        self.body = bytearray()
        self.is_complete = False
        """Whether the whole body was read or discarded."""
        self._budgets = budgets
        self._stream = stream
        self._limit = limit
        self._deadline = deadline
        self._expected_size = limit if content_length is None else min(content_length, limit)
        self._budget: ByteBudget | None = None
        self._reserved = 0
        self._is_waiting = False
        self._measured_at = 0.0
        self._measured_bytes = 0
        """Its bytes at `_measured_at`."""
        self._is_evicted = False
        self._progress_timer: asyncio.TimerHandle

    async def read(self) -> None:
        """Read the whole body into `body`.

        Raises:
            BodyTooLargeError: `body` has the beginning.
            BodyBudgetExhaustedError: other bodies take the budget.
            SlowBodyError: it did not arrive in time.
        """
        try:
            async with asyncio.timeout(BODY_SECONDS) as deadline:
                self._check_progress(deadline)
                try:
                    async for chunk in self._stream:
                        await self._reserve(len(self.body) + len(chunk), deadline)
                        self.body += chunk
                        if len(self.body) > self._limit:
                            raise BodyTooLargeError
                finally:
                    self._progress_timer.cancel()
        except TimeoutError:
            if self._is_evicted:
                raise SlowBodyError("others waited, and too little of the body arrived") from None
            raise SlowBodyError(f"the body did not arrive within {BODY_SECONDS:g} s") from None
        self.is_complete = True
        if self._budget and self._reserved > len(self.body):
            self._budget.release(self._reserved - len(self.body))
            self._reserved = len(self.body)

    async def discard_rest(self) -> None:
        """Read and drop the rest: a client that is still sending would see a lost connection, not the response."""
        left = self._limit - len(self.body)
        with suppress(TimeoutError):
            async with asyncio.timeout(BODY_SECONDS):
                async for chunk in self._stream:
                    left -= len(chunk)
                    if left < 0:
                        return
                self.is_complete = True

    def release(self) -> None:
        """Give its bytes back to the budget."""
        if self._budget:
            self._budget.release(self._reserved)
        self._budget, self._reserved = None, 0

    def release_after(self, work: "asyncio.Future[Any]") -> None:
        """Releases its part of the budget once `work` is done, which still references the body though nobody waits."""
        budget, reserved = self._budget, self._reserved
        self._budget, self._reserved = None, 0
        if budget is not None:
            work.add_done_callback(lambda _: budget.release(reserved))

    async def _reserve(self, size: int, deadline: asyncio.Timeout) -> None:
        if size and self._budget is None:
            await self._acquire(self._budgets.small, min(self._expected_size, SMALL_BODY_BYTES), deadline)
        if size > SMALL_BODY_BYTES and self._budget is self._budgets.small and size <= self._limit:
            if self._budgets.large.waiting_count >= _MAX_WAITING:
                raise BodyBudgetExhaustedError
            await self._acquire(self._budgets.large, self._expected_size, deadline)

    async def _acquire(self, budget: ByteBudget, size: int, deadline: asyncio.Timeout) -> None:
        now, when = asyncio.get_running_loop().time, deadline.when() or 0.0
        started_at, self._is_waiting, self._is_evicted = now(), True, False
        deadline.reschedule(None)
        try:
            await budget.acquire(size, min(BUDGET_WAIT_SECONDS, self._deadline - DISCARD_SECONDS - now()))
        except TimeoutError:
            raise BodyBudgetExhaustedError from None
        finally:
            self._is_waiting = False
        self.release()  # what it has of the small budget
        self._budget, self._reserved = budget, size
        self._measured_at, self._measured_bytes = now(), len(self.body)
        deadline.reschedule(when + now() - started_at)

    def _check_progress(self, deadline: asyncio.Timeout) -> None:
        loop = asyncio.get_running_loop()
        if self._budget and not self._is_waiting:
            if len(self.body) - self._measured_bytes >= max(1, self._reserved * SLOW_BODY_SECONDS / BODY_SECONDS):
                self._measured_at, self._measured_bytes = loop.time(), len(self.body)
            elif self._budget.waiting_count and loop.time() - self._measured_at >= SLOW_BODY_SECONDS:
                self._is_evicted = True
                deadline.reschedule(loop.time())
                return
        self._progress_timer = loop.call_later(SLOW_BODY_SECONDS / 5, self._check_progress, deadline)


MAX_HEAD_BYTES: Final = 16 * 1024
"""Of a request's line and headers."""
MAX_HEADERS: Final = 100
"""Of a request, trailers included."""
MAX_UNFINISHED_HEADS: Final = 512
"""Heads that have begun and not ended, of all connections of a server: together less than 32 MB."""
HEAD_SECONDS: Final = 30.0
"""How long a head may take to arrive."""
RECEIVED_AT: Final = "keypulse.received_at"
"""The key of an ASGI scope with the time of the request's first byte, by the event loop's clock."""
READ_BYTES: Final = 32 * 1024
"""What is read at once of a connection; a request that is refused has no more in memory."""
MAX_PIPELINED_REQUESTS: Final = 2
"""Requests on one connection that may arrive before the first is answered."""


class UnfinishedHeads:
    """The connections of one server on which a head has begun and not ended. Closes the oldest if there are too many.

    A usual head arrives in one piece, and is never among them.
    """

    def __init__(self) -> None:
        self._connections: dict[HttpProtocol, None] = {}

    def add(self, connection: "HttpProtocol") -> None:
        """Add a connection, unless it is there already."""
        self._connections.setdefault(connection)
        if len(self._connections) > MAX_UNFINISHED_HEADS:
            oldest = next(iter(self._connections))
            self.discard(oldest)
            oldest.transport.close()

    def discard(self, connection: "HttpProtocol") -> None:
        """Remove a connection, if it is there."""
        self._connections.pop(connection, None)


class HttpProtocol(HttpToolsProtocol):
    """uvicorn's protocol with limits; `serve` makes a class of it for each server."""

    unfinished_heads: ClassVar[UnfinishedHeads]

    transport: Any
    _head_timer: asyncio.TimerHandle | None = None
    _received_at: float | None = None
    """When the first byte of the next request came."""
    _buffered = 0
    """Bytes since the last complete head or part of a body."""
    _header_count = 0
    _is_head_too_large = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as in uvicorn
        super().connection_made(transport)
        self._head_timer = self.loop.call_later(HEAD_SECONDS, transport.close)

    def data_received(self, data: bytes) -> None:
        """Called by asyncio, with up to 256 KiB."""
        for start in range(0, len(data), MAX_HEAD_BYTES):
            piece = data[start : start + MAX_HEAD_BYTES]
            self._buffered += len(piece)
            super().data_received(piece)
            if self._buffered > MAX_HEAD_BYTES and not self.transport.is_closing():
                self._refuse_head()
            if self.transport.is_closing():
                break
        # While uvicorn's own timeout runs, no byte of the next request has arrived.
        is_active = not (self.cycle is None or self.cycle.response_complete)
        if self.timeout_keep_alive_task or is_active or self.transport.is_closing():
            self._end_head()
            return
        self.unfinished_heads.add(self)
        if self._head_timer is None:
            self._head_timer = self.loop.call_later(HEAD_SECONDS, self.transport.close)

    def connection_lost(self, exc: Exception | None) -> None:
        self._end_head()
        super().connection_lost(exc)

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._header_count = 0
        if self._received_at is None:
            self._received_at = self.loop.time()

    def on_header(self, name: bytes, value: bytes) -> None:
        self._header_count += 1
        if self._header_count > MAX_HEADERS:
            self._is_head_too_large = True
            raise ValueError("too many headers")  # uvicorn calls `send_400_response` for any exception
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._buffered = 0
        if len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers) > MAX_HEAD_BYTES:
            self._is_head_too_large = True
            raise ValueError("too large a head")
        if len(self.pipeline) >= MAX_PIPELINED_REQUESTS:
            raise ValueError("too many requests at once")
        super().on_headers_complete()
        self.cycle.scope[RECEIVED_AT], self._received_at = self._received_at, None  # type: ignore[typeddict-unknown-key]
        self.cycle.transport = _CoalescingTransport(self.transport, self.loop)  # type: ignore[assignment]

    def on_body(self, body: bytes) -> None:
        self._buffered = 0
        super().on_body(body)

    def send_400_response(self, msg: str) -> None:
        """Called by uvicorn for what is not HTTP, and for exceptions of the methods above."""
        if self._is_head_too_large:
            self._refuse_head()
        else:
            super().send_400_response(msg)

    def _refuse_head(self) -> None:
        status = HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE
        text = f"Expected at most {MAX_HEADERS} headers, and {MAX_HEAD_BYTES} bytes with the request's line.\n"
        head = f"HTTP/1.1 {status} {status.phrase}\r\nContent-Type: text/plain\r\nContent-Length: {len(text)}\r\n"
        self.transport.write(f"{head}Connection: close\r\n\r\n{text}".encode())
        self.transport.close()

    def _end_head(self) -> None:
        self.unfinished_heads.discard(self)
        if self._head_timer:
            self._head_timer.cancel()
            self._head_timer = None


class PieceReader(asyncio.BufferedProtocol):
    """Gives a protocol what arrives, in pieces of READ_BYTES.

    Args:
        protocol: gets them.
        buffer: of all connections of an event loop: nothing happens between a read and its `buffer_updated`. For TLS
            asyncio slices it and writes there, which only a memoryview sees.
    """

    def __init__(self, protocol: asyncio.Protocol, buffer: memoryview) -> None:
        self.connection_made = protocol.connection_made  # type: ignore[method-assign]
        self.connection_lost = protocol.connection_lost  # type: ignore[method-assign]
        self.eof_received = protocol.eof_received  # type: ignore[method-assign]
        self.pause_writing = protocol.pause_writing  # type: ignore[method-assign]
        self.resume_writing = protocol.resume_writing  # type: ignore[method-assign]
        self._data_received = protocol.data_received
        self._buffer = buffer

    def get_buffer(self, _sizehint: int) -> memoryview:
        """Called by asyncio before it reads."""
        return self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        """Called by asyncio with how much it has read."""
        self._data_received(bytes(self._buffer[:nbytes]))


class _CoalescingTransport:
    """A transport that sends a response's head in one packet with what is written directly after it.

    uvloop, unlike asyncio, sends each write at once, and two cost twice as much.
    """

    def __init__(self, transport: Any, loop: asyncio.AbstractEventLoop) -> None:
        self._transport = transport
        self._loop = loop
        self._head: bytes | None = None
        self._sent = False

    def write(self, data: bytes) -> None:
        if self._sent:
            self._transport.write(data)
        elif self._head is None:
            self._head = data
            self._loop.call_soon(self._flush)
        else:
            self._head += data
            self._flush()

    def is_closing(self) -> bool:
        return bool(self._transport.is_closing())

    def close(self) -> None:
        self._flush()
        self._transport.close()

    def _flush(self) -> None:
        if not self._sent and self._head is not None:
            self._sent = True
            self._transport.write(self._head)


_MAX_DEFERRED_BYTES: Final = 16 * 1024
"""Bytes of a waiting request, at most; one with more is admitted at once."""
_ARRIVAL_SECONDS: Final = 1.0
"""How long a request counts as active while it is still arriving: others do not wait for one that never arrives."""


class AdmissionQueue:
    """The requests of one kind that wait at one server.

    Args:
        request_prefix: how a request of this kind begins, such as `POST /alerts`.
        max_active: how many are handled before others have to wait.
        max_wait: how long one waits at most; then it is admitted anyway.
    """

    def __init__(self, request_prefix: bytes, max_active: int, max_wait: float) -> None:
        self.request_prefix = request_prefix
        self._max_active = max_active
        self._max_wait = max_wait
        self._active_count = 0
        self._waiting: deque[tuple[float, AdmissionProtocol]] = deque()
        self._expiry_timer: asyncio.TimerHandle | None = None

    @property
    def is_full(self) -> bool:
        """Whether the next request has to wait."""
        return self._active_count >= self._max_active

    def admit(self) -> None:
        self._active_count += 1

    def release(self) -> None:
        """Count a request as done, and admit the next one."""
        self._active_count -= 1
        while self._waiting and not self.is_full:
            self._waiting.popleft()[1].resume()

    def enqueue(self, connection: "AdmissionProtocol") -> None:
        """Admit the connection's request after those before it, or after `max_wait`."""
        loop = asyncio.get_running_loop()
        self._waiting.append((loop.time() + self._max_wait, connection))
        if self._expiry_timer is None:
            self._expiry_timer = loop.call_later(self._max_wait, self._admit_expired)

    def _admit_expired(self) -> None:
        loop, self._expiry_timer = asyncio.get_running_loop(), None
        while self._waiting and self._waiting[0][0] <= loop.time():
            self._waiting.popleft()[1].resume()
        if self._waiting:
            self._expiry_timer = loop.call_at(self._waiting[0][0], self._admit_expired)


class AdmissionProtocol(asyncio.Protocol):
    """A mixin before one of uvicorn's protocols."""

    queue: ClassVar[AdmissionQueue]

    transport: Any
    flow: Any
    cycle: Any
    loop: Any
    _arrival_timer: asyncio.TimerHandle | None = None
    """While its request is active."""
    _deferred_data = b""
    _received_at: float | None

    def data_received(self, data: bytes) -> None:
        if self._deferred_data:  # some transports deliver what they had read before the pause
            self._deferred_data += data
        elif self._arrival_timer or not data.startswith(self.queue.request_prefix) or not self._is_idle():
            super().data_received(data)
        elif self.queue.is_full and len(data) <= _MAX_DEFERRED_BYTES:
            self._deferred_data = data
            self._received_at = self.loop.time()
            self._unset_keepalive_if_required()  # type: ignore[attr-defined]  # uvicorn's: its connection is not idle
            self.flow.pause_reading()
            self.queue.enqueue(self)
        else:
            self._start_request(data)

    def on_response_complete(self) -> None:
        super().on_response_complete()  # type: ignore[misc]  # of uvicorn, which asyncio does not know
        self._release()

    def connection_lost(self, exc: Exception | None) -> None:
        self._deferred_data = b""
        super().connection_lost(exc)
        self._release()

    def shutdown(self) -> None:
        """Called by uvicorn at a stop: waiting requests are answered, too."""
        self.resume()
        super().shutdown()  # type: ignore[misc]  # as above

    def resume(self) -> None:
        """Start its request, if it is waiting."""
        data, self._deferred_data = self._deferred_data, b""
        if data:
            self.flow.resume_reading()
            self._start_request(data)

    def _is_idle(self) -> bool:
        return self.cycle is None or self.cycle.response_complete

    def _start_request(self, data: bytes) -> None:
        self.queue.admit()
        self._arrival_timer = self.loop.call_later(_ARRIVAL_SECONDS, self._release_if_incomplete)
        super().data_received(data)

    def _release_if_incomplete(self) -> None:
        if self._is_idle() or self.cycle.more_body:
            self._release()

    def _release(self) -> None:
        if self._arrival_timer:
            self._arrival_timer.cancel()
            self._arrival_timer = None
            self.queue.release()
