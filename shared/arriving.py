"""Bodies as they arrive: how many bytes of them are in memory at once, and how long one may take.

None takes room before its first byte is there. Up to `SMALL` bytes it has its place among the small ones; to go on, it
needs all its room among the large ones, so that no two of them wait for each other. Whoever holds room that others wait
for, and brings so little that it would not arrive in time, loses it.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Final

from shared.budget import Budget

SMALL: Final = 64 * 1024
BODY_SECONDS: Final = 30.0
"""How long a body may take to arrive, beside its waits for room."""
WAIT_SECONDS: Final = 8.0
"""How long one waits for room; then its sender may ask again."""
PATIENCE_SECONDS: Final = 5.0
"""How long one keeps room that others wait for without bringing its share: as much of it as of `BODY_SECONDS`."""
_MOST_WAITING: Final = 128
"""How many wait for room among the large ones: each holds some of what the small ones have."""


class OverLimitError(Exception):
    """A body of more bytes than it may have."""


class CrowdedError(Exception):
    """No room for it came in time."""


class SlowError(Exception):
    """It did not arrive in time; one sentence."""


class Room:
    """Of one server.

    Args:
        small: bytes of all small bodies.
        large: bytes of all larger ones; one must fit.
    """

    def __init__(self, small: int, large: int) -> None:
        self.small = Budget(small)
        self.large = Budget(large)


class Arrival:
    """One body. Whoever reads it lets go of it in the end.

    Args:
        room: where it finds its own.
        stream: what comes.
        limit: bytes that it may have.
        declared: bytes that it says that it has; None where it does not.
    """

    def __init__(self, room: Room, stream: AsyncIterator[bytes], limit: int, declared: int | None) -> None:
        self.body = bytearray()
        self.whole = False
        """Whether all that was sent was read, or dropped."""
        self._room = room
        self._stream = stream
        self._limit = limit
        self._size = limit if declared is None else min(declared, limit)
        self._budget: Budget | None = None
        self._held = 0
        self._waiting = False
        self._since = 0.0
        self._had = 0
        """Its bytes at `_since`."""
        self._lost = False
        self._watch: asyncio.TimerHandle

    async def read(self) -> None:
        """Has the whole of it in `body`.

        Raises:
            OverLimitError: `body` has its beginning.
            CrowdedError: other ones come first.
            SlowError: it did not arrive in time.
        """
        try:
            async with asyncio.timeout(BODY_SECONDS) as deadline:
                self._look(deadline)
                try:
                    async for chunk in self._stream:
                        await self._make_room(len(self.body) + len(chunk), deadline)
                        self.body += chunk
                        if len(self.body) > self._limit:
                            raise OverLimitError
                finally:
                    self._watch.cancel()
        except TimeoutError:
            if self._lost:
                raise SlowError("others waited, and too little of the body arrived") from None
            raise SlowError(f"the body did not arrive within {BODY_SECONDS:g} s") from None
        self.whole = True
        if self._budget and self._held > len(self.body):
            self._budget.give(self._held - len(self.body))
            self._held = len(self.body)

    async def skip(self) -> None:
        """Reads the rest and drops it: a sender that is not done hears of a lost connection, and not the answer."""
        left = self._limit - len(self.body)
        with suppress(TimeoutError):
            async with asyncio.timeout(BODY_SECONDS):
                async for chunk in self._stream:
                    left -= len(chunk)
                    if left < 0:
                        return
                self.whole = True

    def let_go(self) -> None:
        """Others may have its room."""
        if self._budget:
            self._budget.give(self._held)
        self._budget, self._held = None, 0

    async def _make_room(self, size: int, deadline: asyncio.Timeout) -> None:
        if size and self._budget is None:
            await self._take(self._room.small, min(self._size, SMALL), deadline)
        if size > SMALL and self._budget is self._room.small and size <= self._limit:
            if self._room.large.waiting >= _MOST_WAITING:
                raise CrowdedError
            await self._take(self._room.large, self._size, deadline)

    async def _take(self, budget: Budget, size: int, deadline: asyncio.Timeout) -> None:
        now, when = asyncio.get_running_loop().time, deadline.when() or 0.0
        began, self._waiting, self._lost = now(), True, False
        deadline.reschedule(None)
        try:
            await budget.take(size, WAIT_SECONDS)
        except TimeoutError:
            raise CrowdedError from None
        finally:
            self._waiting = False
        self.let_go()  # of its place among the small ones
        self._budget, self._held = budget, size
        self._since, self._had = now(), len(self.body)
        deadline.reschedule(when + now() - began)

    def _look(self, deadline: asyncio.Timeout) -> None:
        loop = asyncio.get_running_loop()
        if self._budget and not self._waiting:
            if len(self.body) - self._had >= max(1, self._held * PATIENCE_SECONDS / BODY_SECONDS):
                self._since, self._had = loop.time(), len(self.body)
            elif self._budget.waiting and loop.time() - self._since >= PATIENCE_SECONDS:
                self._lost = True
                deadline.reschedule(loop.time())
                return
        self._watch = loop.call_later(PATIENCE_SECONDS / 5, self._look, deadline)
