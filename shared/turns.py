"""How many requests of one kind a server has in hand at once; the others wait unread, which costs next to no memory.

Thousands of requests at once, each with its task and with all that looks at it, take more memory than everything else.
"""

import asyncio
from collections import deque
from typing import Any, ClassVar, Final

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

    def data_received(self, data: bytes) -> None:
        """Called by asyncio."""
        if self._deferred_data:  # some transports have read more by the time they are told to pause
            self._deferred_data += data
        elif self._arrival_timer or not data.startswith(self.queue.request_prefix) or not self._is_idle():
            super().data_received(data)
        elif self.queue.is_full and len(data) <= _MAX_DEFERRED_BYTES:
            self._deferred_data = data
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
