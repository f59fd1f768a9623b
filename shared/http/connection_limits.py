"""uvicorn's protocols, with bounds on what a connection may hold before anybody has looked at who is there.

uvicorn itself ends no connection on which a request does not arrive. Its protocol with httptools keeps a head of any
size, and any number of requests that come before the first is answered; the one with h11 bounds both.

How many requests of one kind a server has in hand at once; the others wait unread, which costs next to no memory.

Thousands of requests at once, each with its task and with all that looks at it, take more memory than everything else.

"""

import asyncio
from collections import deque
from typing import Any, ClassVar, Final

from uvicorn.protocols.http.h11_impl import H11Protocol

MAX_HEAD_BYTES: Final = 64 * 1024
"""Of a request's line and headers, as h11 has it; what comes in one piece with them does not count."""
HEAD_SECONDS: Final = 30.0
"""How long they may take to arrive."""
RECEIVED_AT: Final = "keypulse.received_at"
"""The key of an ASGI scope with the time of the request's first byte, by the event loop's clock."""
MAX_PIPELINED_REQUESTS: Final = 16
"""Requests on one connection that may come before the first of them is answered."""


class _HeadTimeoutProtocol(asyncio.Protocol):
    """Ends a connection on which no whole head arrives in time."""

    transport: Any
    cycle: Any
    timeout_keep_alive_task: Any
    loop: Any
    _head_timer: asyncio.TimerHandle | None = None
    _received_at: float | None = None
    """When the first byte of the next request came."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._head_timer = self.loop.call_later(HEAD_SECONDS, transport.close)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        # While uvicorn's own time-out runs, nothing of the next request has come.
        if self.timeout_keep_alive_task or not (self.cycle is None or self.cycle.response_complete):
            self._cancel_head_timer()
        elif self._head_timer is None:
            self._head_timer = self.loop.call_later(HEAD_SECONDS, self.transport.close)

    def connection_lost(self, exc: Exception | None) -> None:
        self._cancel_head_timer()
        super().connection_lost(exc)

    def _cancel_head_timer(self) -> None:
        if self._head_timer:
            self._head_timer.cancel()
            self._head_timer = None


class _CoalescingTransport:
    """What an answer is written to: its head waits for what is written in the same turn, since two pieces cost twice.

    uvloop, unlike asyncio, sends each piece at once.
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


class _LimitedH11Protocol(_HeadTimeoutProtocol, H11Protocol):
    pass


HttpProtocol: type[asyncio.Protocol] = _LimitedH11Protocol
"""What speaks HTTP here: the one with httptools where that is installed."""

try:
    from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
except ImportError:
    pass
else:

    class _LimitedHttptoolsProtocol(_HeadTimeoutProtocol, HttpToolsProtocol):
        _kept = 0
        """Bytes of which the parser has made nothing yet, or only headers."""

        def data_received(self, data: bytes) -> None:
            self._kept += len(data)
            super().data_received(data)
            if self._kept > MAX_HEAD_BYTES and not self.transport.is_closing():
                self.send_400_response(f"Over {MAX_HEAD_BYTES} bytes of headers.")

        def on_message_begin(self) -> None:
            super().on_message_begin()
            if self._received_at is None:
                self._received_at = self.loop.time()

        def on_headers_complete(self) -> None:
            self._kept = 0
            if len(self.pipeline) >= MAX_PIPELINED_REQUESTS:
                raise ValueError("too many requests at once")  # whatever is raised here is a 400
            super().on_headers_complete()
            self.cycle.scope[RECEIVED_AT], self._received_at = self._received_at, None
            self.cycle.transport = _CoalescingTransport(self.transport, self.loop)

        def on_body(self, body: bytes) -> None:
            self._kept = 0
            super().on_body(body)

    HttpProtocol = _LimitedHttptoolsProtocol


_MAX_DEFERRED_BYTES: Final = 16 * 1024
"""Bytes that wait unread at most; a request of which more is there is taken in hand at once."""
_ARRIVAL_SECONDS: Final = 1.0
"""How long a request keeps its turn while it is still arriving: nobody waits for long for one that never comes."""


class AdmissionQueue:
    """Of one server.

    Args:
        request_prefix: how a request of this kind begins, such as `POST /alerts`.
        max_active: how many are in hand before others have to wait.
        max_wait: how long one waits at most; then it is taken in hand all the same.
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
        """Whether the next one has to wait."""
        return self._active_count >= self._max_active

    def admit(self) -> None:
        """One more is in hand."""
        self._active_count += 1

    def release(self) -> None:
        """One is done with."""
        self._active_count -= 1
        while self._waiting and not self.is_full:
            self._waiting.popleft()[1].resume()

    def enqueue(self, connection: "AdmissionProtocol") -> None:
        """Its turn comes when those before it had theirs, or when it has waited for too long."""
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
    """Stands before one of uvicorn's protocols."""

    queue: ClassVar[AdmissionQueue]

    transport: Any
    flow: Any
    cycle: Any
    loop: Any
    _arrival_timer: asyncio.TimerHandle | None = None
    """While it has a turn."""
    _deferred_data = b""
    _received_at: float | None

    def data_received(self, data: bytes) -> None:
        """Called by asyncio."""
        if self._deferred_data:  # some transports have read more by the time they are told to pause
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
        """Called by the protocol behind."""
        super().on_response_complete()  # type: ignore[misc]  # of uvicorn, which asyncio does not know
        self._release()

    def connection_lost(self, exc: Exception | None) -> None:
        """Called by asyncio."""
        self._deferred_data = b""
        super().connection_lost(exc)
        self._release()

    def shutdown(self) -> None:
        """Called by uvicorn at a stop: what waits is answered as well."""
        self.resume()
        super().shutdown()  # type: ignore[misc]  # as above

    def resume(self) -> None:
        """Has its turn, where it still waits for it."""
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
