"""Two days, a week with `FAULTS=long`, pass by the event loop's clock: no drift, no growth."""

import asyncio
import gc
import time
from random import Random

import pytest

from services.exporter.scheduler import JITTER_FRACTION, NextRun, ScheduledJob, run_schedule
from tests.iterations import LONG

pytestmark = pytest.mark.looptime

RANDOM = Random(1)  # noqa: S311  jitter, no secret
INTERVAL = 60.0
HOUR = 3600.0
INSPECTIONS = 10_080 if LONG else 2_880


def count_objects() -> tuple[int, int, int]:
    """Tasks, timers of the loop, and all objects that the collector knows."""
    loop = asyncio.get_running_loop()
    gc.collect()
    return len(asyncio.all_tasks()), len(loop._scheduled), len(gc.get_objects())  # type: ignore[attr-defined]


async def test_it_stays_on_the_grid_and_leaves_nothing_behind() -> None:
    loop = asyncio.get_running_loop()
    begun: float | None = None
    earliest = latest = 0.0
    runs = 0

    async def run() -> NextRun:
        nonlocal begun, earliest, latest, runs
        begun = loop.time() if begun is None else begun
        late = loop.time() - begun - runs * INTERVAL
        earliest, latest = min(earliest, late), max(latest, late)
        runs += 1
        await asyncio.sleep(1.3)
        return NextRun.ON_GRID

    task = asyncio.create_task(
        run_schedule([ScheduledJob("job", run)], interval=INTERVAL, concurrency=1, random=RANDOM)
    )
    await asyncio.sleep(HOUR)
    after_an_hour = count_objects()
    await asyncio.sleep(INSPECTIONS * INTERVAL - HOUR - 1)
    at_the_end = count_objects()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert runs == INSPECTIONS
    assert earliest >= -0.001
    assert latest <= JITTER_FRACTION * INTERVAL + 0.001
    assert at_the_end[:2] == after_an_hour[:2]
    assert at_the_end[2] - after_an_hour[2] < INSPECTIONS / 100  # one object each would show


async def test_a_wall_clock_that_jumps_moves_no_interval(monkeypatch: pytest.MonkeyPatch) -> None:
    loop = asyncio.get_running_loop()
    begun: list[float] = []

    async def run() -> NextRun:
        begun.append(loop.time())
        jumps = (-1) ** len(begun) * 86_400.0 * len(begun)
        monkeypatch.setattr(time, "time", lambda: 1_800_000_000.0 + jumps)
        return NextRun.ON_GRID

    with pytest.raises(TimeoutError):
        async with asyncio.timeout(100 * INTERVAL):
            await run_schedule([ScheduledJob("job", run)], interval=INTERVAL, concurrency=1, random=RANDOM)
    late = [at - begun[0] - n * INTERVAL for n, at in enumerate(begun)]
    assert len(begun) in {100, 101}
    assert min(late) >= -0.001
    assert max(late) <= JITTER_FRACTION * INTERVAL + 0.001
