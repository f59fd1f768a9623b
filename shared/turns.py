"""How many requests of one kind a server has in hand at once; the others wait unread, which costs next to no memory.

Thousands of requests at once, each with its task and with all that looks at it, take more memory than everything else.
"""

import asyncio
from collections import deque
from typing import Any, ClassVar


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

    def take(self) -> bool:
        """Takes one more in hand, if there is room."""
        if self._in_hand >= self._most:
            return False
        self._in_hand += 1
        return True

    def wait(self, connection: "InTurn") -> None:
        """Its turn comes when those before it had theirs, or when it has waited for too long."""
        loop = asyncio.get_running_loop()
        self._waiting.append((loop.time() + self._seconds, connection))
        if self._late is None:
            self._late = loop.call_later(self._seconds, self._too_late)

    def give(self) -> None:
        """One is done with."""
        self._in_hand -= 1
        while self._waiting and self._in_hand < self._most:
            self._next()

    def _next(self) -> None:
        _, connection = self._waiting.popleft()
        if connection.go():
            self._in_hand += 1

    def _too_late(self) -> None:
        loop, self._late = asyncio.get_running_loop(), None
        while self._waiting and self._waiting[0][0] <= loop.time():
            self._next()
        if self._waiting:
            self._late = loop.call_at(self._waiting[0][0], self._too_late)


class InTurn(asyncio.Protocol):
    """Stands before one of uvicorn's protocols."""

    turns: ClassVar[Turns]

    transport: Any
    flow: Any
    cycle: Any
    _in_hand = False
    _unread = b""

    def data_received(self, data: bytes) -> None:
        """Called by asyncio."""
        if self._unread:  # some transports have read more by the time they are told to pause
            self._unread += data
            return
        begins = not self._in_hand and data.startswith(self.turns.begins)
        if begins and (self.cycle is None or self.cycle.response_complete):
            self._in_hand = self.turns.take()
            if not self._in_hand:
                self._unread = data
                self.flow.pause_reading()
                self.turns.wait(self)
                return
        super().data_received(data)

    def on_response_complete(self) -> None:
        """Called by the protocol behind."""
        super().on_response_complete()  # type: ignore[misc]  # of uvicorn, which asyncio does not know
        self._done()

    def connection_lost(self, exc: Exception | None) -> None:
        """Called by asyncio."""
        self._unread = b""
        super().connection_lost(exc)
        self._done()

    def go(self) -> bool:
        """Has its turn; whether it is in hand now, and not gone."""
        data, self._unread = self._unread, b""
        if not data:
            return False
        self._in_hand = True
        self.flow.resume_reading()
        super().data_received(data)
        return True

    def _done(self) -> None:
        if self._in_hand:
            self._in_hand = False
            self.turns.give()
