"""One target's probe for everybody who wants it, the schedule and `GET /probe` alike → one ProbeResult for all of them.

Who comes while a probe is under way waits for that one. It belongs to nobody of those who wait: one that goes away ends
nothing, and what was found is observed once, however many waited. `close` ends what is under way.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

from services.exporter.model import ProbeResult
from shared.kms.provider import Phase

T = TypeVar("T")


class ClosedError(Exception):
    """The target is watched no more: the exporter stops, or a reload took it out."""

    def __init__(self) -> None:
        super().__init__("this target is not watched any more")


class Demand:
    """A target that can be probed at any time.

    Args:
        service: the label.
        target: its name.
        probe: one round trip; bounds itself.
        way: measures the way to the service anew; bounds itself.
        observe: takes each result, once.
        places: one for each probe that may run at the same time, of all targets of one endpoint.
        min_interval: seconds for which the last result answers who asks again.
    """

    def __init__(
        self,
        service: str,
        target: str,
        *,
        probe: Callable[[], Awaitable[ProbeResult]],
        way: Callable[[], Awaitable[tuple[Phase, ...]]],
        observe: Callable[[ProbeResult], None],
        places: asyncio.Semaphore,
        min_interval: float,
    ) -> None:
        self.began: float | None = None
        """When the last probe was given a place, by the loop's clock; None while it waits for one."""

        async def observed() -> ProbeResult:
            self.began = None
            async with places:
                self.began = asyncio.get_running_loop().time()
                result = await probe()
            observe(result)
            return result

        self.service = service
        self.target = target
        self._probe = _Once(observed, min_interval)
        self._way = _Once(way, min_interval)

    async def now(self) -> ProbeResult:
        """For the schedule: the probe that is under way, or else a new one. Raises ClosedError."""
        return await self._probe.now()

    async def recent(self) -> ProbeResult:
        """For who asks: likewise, or the last one, where it ended less than `min_interval` ago. Raises ClosedError."""
        return await self._probe.recent()

    async def way(self) -> tuple[Phase, ...]:
        """The way to the service, measured as seldom as `recent` probes. Raises ClosedError."""
        return await self._way.recent()

    def end(self) -> None:
        """Ends what is under way, so that nobody waits for it any more; from then on nothing begins."""
        self._probe.end()
        self._way.end()

    async def close(self) -> None:
        """The same, and waits for its end."""
        await self._probe.close()
        await self._way.close()


class _Once(Generic[T]):
    """Something that is done once for all who ask for it meanwhile; what it raises, each of them gets."""

    def __init__(self, work: Callable[[], Awaitable[T]], min_interval: float) -> None:
        self._work = work
        self._min_interval = min_interval
        self._task: asyncio.Task[T] | None = None
        self._last: tuple[float, T] | None = None
        """When it ended, by the loop's clock, and what it gave."""
        self._closed = False

    async def now(self) -> T:
        if self._closed:
            raise ClosedError
        if self._task is None:
            self._task = asyncio.create_task(self._run())
        task = self._task
        await asyncio.wait({task})  # unlike `await task`, it does not cancel the task where it is cancelled itself
        if self._closed and task.cancelled():
            raise ClosedError
        return task.result()

    async def recent(self) -> T:
        fresh = self._last and asyncio.get_running_loop().time() - self._last[0] < self._min_interval
        return self._last[1] if self._last and fresh and self._task is None else await self.now()

    def end(self) -> None:
        self._closed = True
        if self._task:
            self._task.cancel()

    async def close(self) -> None:
        self.end()
        if task := self._task:
            await asyncio.wait({task})

    async def _run(self) -> T:
        try:
            found = await self._work()
            self._last = asyncio.get_running_loop().time(), found
            return found
        finally:
            self._task = None
