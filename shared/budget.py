"""How many bytes of bodies are in memory at once. Who wants to read one waits until there is room, in order of arrival.

What waits is read no further: uvicorn lets a connection bring 64 KiB and no more until somebody reads.
"""

import asyncio
from collections import deque
from contextlib import suppress


class ByteBudget:
    """Room for bodies.

    Args:
        limit: bytes.
    """

    def __init__(self, limit: int) -> None:
        self._available = limit
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()

    @property
    def waiting_count(self) -> int:
        """How many wait for room."""
        return len(self._waiting)

    async def acquire(self, size: int, seconds: float) -> None:
        """Returns once `size` bytes are its caller's, who gives them back. Raises TimeoutError after `seconds`."""
        if not self._waiting and size <= self._available:
            self._available -= size
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((size, turn))
        try:
            async with asyncio.timeout(seconds):
                await turn
        except BaseException:
            if turn.done() and not turn.cancelled():  # its turn came in the same moment
                self.release(size)
            else:
                with suppress(ValueError):
                    self._waiting.remove((size, turn))
                self._wake_waiting()
            raise

    def release(self, size: int) -> None:
        """They are free again."""
        self._available += size
        self._wake_waiting()

    def _wake_waiting(self) -> None:
        while self._waiting and self._waiting[0][0] <= self._available:
            size, turn = self._waiting.popleft()
            if not turn.done():  # else nobody waits for it any more
                self._available -= size
                turn.set_result(None)
