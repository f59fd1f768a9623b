"""uvicorn's protocols, with bounds on what a connection may hold before anybody has looked at who is there.

uvicorn itself ends no connection on which a request does not arrive. Its protocol with httptools keeps a head of any
size, and any number of requests that come before the first is answered; the one with h11 bounds both.
"""

import asyncio
from typing import Any, Final

from uvicorn.protocols.http.h11_impl import H11Protocol

MAX_HEAD_BYTES: Final = 64 * 1024
"""Of a request's line and headers, as h11 has it; what comes in one piece with them does not count."""
HEAD_SECONDS: Final = 30.0
"""How long they may take to arrive."""
MAX_PIPELINED_REQUESTS: Final = 16
"""Requests on one connection that may come before the first of them is answered."""


class _HeadTimeoutProtocol(asyncio.Protocol):
    """Ends a connection on which no whole head arrives in time."""

    transport: Any
    cycle: Any
    timeout_keep_alive_task: Any
    loop: Any
    _head_timer: asyncio.TimerHandle | None = None

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

    class _WithHttptools(_HeadTimeoutProtocol, HttpToolsProtocol):
        _kept = 0
        """Bytes of which the parser has made nothing yet, or only headers."""

        def data_received(self, data: bytes) -> None:
            self._kept += len(data)
            super().data_received(data)
            if self._kept > MAX_HEAD_BYTES and not self.transport.is_closing():
                self.send_400_response(f"Over {MAX_HEAD_BYTES} bytes of headers.")

        def on_headers_complete(self) -> None:
            self._kept = 0
            if len(self.pipeline) >= MAX_PIPELINED_REQUESTS:
                raise ValueError("too many requests at once")  # whatever is raised here is a 400
            super().on_headers_complete()
            self.cycle.transport = _CoalescingTransport(self.transport, self.loop)

        def on_body(self, body: bytes) -> None:
            self._kept = 0
            super().on_body(body)

    HttpProtocol = _WithHttptools
