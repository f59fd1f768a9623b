"""Asks something in the background while somebody looks, at a bounded pace, and remembers the answer for a while.

No page waits for it, and nothing is asked while nobody looks. So the last answer may be from long ago: then it says
nothing of now, and counts as none.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final, Generic, TypeVar

import structlog

from shared.process.logs import describe_exception

T = TypeVar("T")
INTERVAL: Final = 15.0
"""Seconds from one question to the next, at least."""
_MAX_AGE: Final = 4 * INTERVAL
"""Seconds for which an answer counts: some questions of a person who looks may take their time, or fail."""

log = structlog.get_logger(__name__)


class BackgroundWatch(Generic[T]):
    """One question, asked while `run` runs.

    Args:
        ask: gives the answer, in bounded time.
        on_answer: called after each.
        interval: seconds from one question to the next, at least.
    """

    def __init__(
        self, ask: Callable[[], Awaitable[T]], on_answer: Callable[[], None], interval: float = INTERVAL
    ) -> None:
        self.answer: T | None = None
        """The last one, of whatever age; None before the first."""
        self._answered_at = 0.0
        self._ask = ask
        self._on_answer = on_answer
        self._interval = interval
        self._requested = asyncio.Event()

    def read(self) -> T | None:
        """The last answer, None if it is too old; it is asked again when its time has come."""
        self._requested.set()
        is_current = asyncio.get_running_loop().time() - self._answered_at <= _MAX_AGE
        return self.answer if is_current else None

    async def run(self) -> None:
        """Asks until it is cancelled."""
        while True:
            await self._requested.wait()
            self._requested.clear()
            try:
                self.answer = await self._ask()
                self._answered_at = asyncio.get_running_loop().time()
            except Exception as error:  # noqa: BLE001  # it is asked again
                log.error("unexpected error in a watch of the console", **describe_exception(error))  # noqa: TRY400
            self._on_answer()
            await asyncio.sleep(self._interval)
