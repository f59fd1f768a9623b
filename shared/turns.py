"""How many requests of one kind a server has in hand at once; the others wait unread, which costs next to no memory.

Thousands of requests at once, each with its task and with all that looks at it, take more memory than everything else.
"""

import asyncio
from collections import deque
from typing import Any, ClassVar, Final

_SMALL: Final = 16 * 1024
"""Bytes that wait unread at most; a request of which more is there is taken in hand at once."""
_ARRIVES_SECONDS: Final = 1.0
"""How long a request keeps its turn while it is still arriving: nobody waits for long for one that never comes."""


class Turns:
    """Of one server.

    Args:
        begins: how a request of this kind begins, such as `POST /alerts`.
        most: how many are in hand before others have to wait.
        seconds: how long one waits at most; then it is taken in hand all the same.
    """

    def __init__(self, begins: bytes, most: int, seconds: float) -> None:
        self.begins = begins
        self._most = most
        self._seconds = seconds
        self._in_hand = 0
        self._waiting: deque[tuple[float, InTurn]] = deque()
        self._late: asyncio.TimerHandle | None = None

    @property
    def full(self) -> bool:
        """Whether the next one has to wait."""
        return self._in_hand >= self._most

    def take(self) -> None:
        """One more is in hand."""
        self._in_hand += 1

    def give(self) -> None:
        """One is done with."""
        self._in_hand -= 1
        while self._waiting and not self.full:
            self._waiting.popleft()[1].go()

    def wait(self, connection: "InTurn") -> None:
        """Its turn comes when those before it had theirs, or when it has waited for too long."""
        loop = asyncio.get_running_loop()
        self._waiting.append((loop.time() + self._seconds, connection))
        if self._late is None:
            self._late = loop.call_later(self._seconds, self._too_late)

    def _too_late(self) -> None:
        loop, self._late = asyncio.get_running_loop(), None
        while self._waiting and self._waiting[0][0] <= loop.time():
            self._waiting.popleft()[1].go()
        if self._waiting:
            self._late = loop.call_at(self._waiting[0][0], self._too_late)


class InTurn(asyncio.Protocol):
    """Stands before one of uvicorn's protocols."""

    turns: ClassVar[Turns]

    transport: Any
    flow: Any
    cycle: Any
    loop: Any
    _arriving: asyncio.TimerHandle | None = None
    """While it has a turn."""
    _unread = b""

    def data_received(self, data: bytes) -> None:
        """Called by asyncio."""
        if self._unread:  # some transports have read more by the time they are told to pause
            self._unread += data
        elif self._arriving or not data.startswith(self.turns.begins) or not self._idle():
            super().data_received(data)
        elif self.turns.full and len(data) <= _SMALL:
            self._unread = data
            self._unset_keepalive_if_required()  # type: ignore[attr-defined]  # uvicorn's: its connection is not idle
            self.flow.pause_reading()
            self.turns.wait(self)
        else:
            self._take(data)

    def on_response_complete(self) -> None:
        """Called by the protocol behind."""
        super().on_response_complete()  # type: ignore[misc]  # of uvicorn, which asyncio does not know
        self._done()

    def connection_lost(self, exc: Exception | None) -> None:
        """Called by asyncio."""
        self._unread = b""
        super().connection_lost(exc)
        self._done()

    def shutdown(self) -> None:
        """Called by uvicorn at a stop: what waits is answered as well."""
        self.go()
        super().shutdown()  # type: ignore[misc]  # as above

    def go(self) -> None:
        """Has its turn, where it still waits for it."""
        data, self._unread = self._unread, b""
        if data:
            self.flow.resume_reading()
            self._take(data)

    def _idle(self) -> bool:
        return self.cycle is None or self.cycle.response_complete

    def _take(self, data: bytes) -> None:
        self.turns.take()
        self._arriving = self.loop.call_later(_ARRIVES_SECONDS, self._slow)
        super().data_received(data)

    def _slow(self) -> None:
        if self._idle() or self.cycle.more_body:
            self._done()

    def _done(self) -> None:
        if self._arriving:
            self._arriving.cancel()
            self._arriving = None
            self.turns.give()
