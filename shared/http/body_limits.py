"""Limits how many bytes of request bodies are in memory at once, and how long a body may take to arrive.

A reader waits until its budget has space, in order of arrival. While it waits, nothing is read: uvicorn buffers at most
64 KiB for a connection that nobody reads.

A body takes no budget before its first byte. Up to `SMALL_BODY_BYTES` it counts against the small budget. A larger body
then needs its whole size from the large budget at once, so no two bodies wait for each other. A sender that occupies
budget while others wait, and is too slow to finish in time, loses it.
"""

import asyncio
import math
from collections import deque
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any, Final


class ByteBudget:
    """A budget of bytes that are in memory at once.

    Args:
        limit: bytes.
    """

    def __init__(self, limit: int) -> None:
        self._available = limit
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()

    @property
    def waiting_count(self) -> int:
        """How many are waiting."""
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
        """Release reserved bytes."""
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
