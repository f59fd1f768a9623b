"""One probe of a target for all its callers, the schedule and `GET /probe` alike → one ProbeResult for all of them.

A caller that comes while a probe runs waits for that one. A caller that is cancelled ends nothing, and each result is
added once, however many waited. `close` ends what runs.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

from services.exporter.model import ProbeResult
from shared.kms.port import ConnectivityPhase
from shared.kms.profile import GENERIC_PROFILE, KmsProfile

T = TypeVar("T")


class ProbeClosedError(Exception):
    """The target is watched no more: the exporter stops, or a reload took it out."""

    def __init__(self) -> None:
        super().__init__("this target is not watched any more")


class CoalescedProbe:
    """A target that can be probed at any time.

    Args:
        service: the label.
        target: its name.
        probe: one round trip; bounds itself.
        measure_connectivity: measures the connection to the service; has its own timeout.
        add_result: takes each result, once.
        semaphore: one for each probe that may run at the same time, of all targets of one endpoint.
        min_interval: seconds for which the last result is reused.
        profile: the provider's, for advice.
    """

    def __init__(  # noqa: PLR0913  all by name
        self,
        service: str,
        target: str,
        *,
        probe: Callable[[], Awaitable[ProbeResult]],
        measure_connectivity: Callable[[], Awaitable[tuple[ConnectivityPhase, ...]]],
        add_result: Callable[[ProbeResult], None],
        semaphore: asyncio.Semaphore,
        min_interval: float,
        profile: KmsProfile = GENERIC_PROFILE,
    ) -> None:
        self.started_at: float | None = None
        """When the last probe was given a place, by the loop's clock; None while it waits for one."""

        async def observed() -> ProbeResult:
            self.started_at = None
            async with semaphore:
                self.started_at = asyncio.get_running_loop().time()
                result = await probe()
            add_result(result)
            return result

        self.service = service
        self.target = target
        self.profile = profile
        self._probe = _CoalescedCall(observed, min_interval)
        self._connectivity = _CoalescedCall(measure_connectivity, min_interval)

    async def run(self) -> ProbeResult:
        """For the schedule: joins the running probe, or starts one. Raises ProbeClosedError."""
        return await self._probe.run()

    async def run_or_reuse(self) -> ProbeResult:
        """Run a probe, or return the last one if it ended less than `min_interval` ago. Raises ProbeClosedError."""
        return await self._probe.run_or_reuse()

    async def measure_connectivity(self) -> tuple[ConnectivityPhase, ...]:
        """Measures the connectivity, at most as often as `recent` probes. Raises ProbeClosedError."""
        return await self._connectivity.run_or_reuse()

    def cancel(self) -> None:
        """Cancels the running probe, so that nobody waits for it any more; no other one starts."""
        self._probe.cancel()
        self._connectivity.cancel()

    async def close(self) -> None:
        """The same, and waits for its end."""
        await self._probe.close()
        await self._connectivity.close()


class _CoalescedCall(Generic[T]):
    """Runs a function once for all who call it meanwhile; all of them get its result or its exception."""

    def __init__(self, call: Callable[[], Awaitable[T]], min_interval: float) -> None:
        self._work = call
        self._min_interval = min_interval
        self._task: asyncio.Task[T] | None = None
        self._last_result: tuple[float, T] | None = None
        """When it ended, by the loop's clock, and what it gave."""
        self._closed = False

    async def run(self) -> T:
        if self._closed:
            raise ProbeClosedError
        if self._task is None:
            self._task = asyncio.create_task(self._call_once())
        task = self._task
        await asyncio.wait({task})  # unlike `await task`, it does not cancel the task where it is cancelled itself
        if self._closed and task.cancelled():
            raise ProbeClosedError
        return task.result()

    async def run_or_reuse(self) -> T:
        fresh = self._last_result and asyncio.get_running_loop().time() - self._last_result[0] < self._min_interval
        return self._last_result[1] if self._last_result and fresh and self._task is None else await self.run()

    def cancel(self) -> None:
        self._closed = True
        if self._task:
            self._task.cancel()

    async def close(self) -> None:
        self.cancel()
        if task := self._task:
            await asyncio.wait({task})

    async def _call_once(self) -> T:
        try:
            found = await self._work()
            self._last_result = asyncio.get_running_loop().time(), found
            return found
        finally:
            self._task = None
