"""A job that backs off, for example while a quota is exhausted."""

import asyncio
from collections.abc import Callable
from itertools import pairwise
from random import Random

import pytest

from services.exporter.scheduler import JITTER_FRACTION, NextRun, ScheduledJob, run_schedule

pytestmark = pytest.mark.looptime

RANDOM = Random(1)  # noqa: S311  jitter, no secret


async def begins(
    seconds: float, interval: float, get_next_run: Callable[[int], NextRun], duration: float = 0.0
) -> list[float]:
    """When the runs of a job began, since the first; its run `n` takes so long and then `asks(n)`."""
    loop = asyncio.get_running_loop()
    begun: list[float] = []

    async def run() -> NextRun:
        begun.append(loop.time())
        await asyncio.sleep(duration)
        return get_next_run(len(begun) - 1)

    with pytest.raises(TimeoutError):
        async with asyncio.timeout(seconds):
            await run_schedule([ScheduledJob("job", run)], interval=interval, concurrency=1, random=RANDOM)
    return [at - begun[0] for at in begun]


def pauses(begun: list[float]) -> list[float]:
    return [later - earlier for earlier, later in pairwise(begun)]


async def test_its_pause_doubles_up_to_a_minute() -> None:
    begun = await begins(400, 5, lambda _: NextRun.BACK_OFF)
    assert pauses(begun)[:6] == pytest.approx([10, 20, 40, 60, 60, 60], abs=0.01)


async def test_an_interval_over_a_minute_is_no_further_stretched() -> None:
    begun = await begins(3600, 120, lambda _: NextRun.BACK_OFF)
    assert pauses(begun) == pytest.approx([120] * 29, abs=0.01)


async def test_the_first_run_that_asks_no_longer_brings_it_back_to_its_grid() -> None:
    begun = await begins(300, 7, lambda n: NextRun.BACK_OFF if n in {1, 2} else NextRun.ON_GRID)
    assert begun[2] - begun[1] == pytest.approx(14, abs=0.01)
    assert begun[3] - begun[2] == pytest.approx(28, abs=0.01)
    assert begun[4] - begun[3] >= 7 - JITTER_FRACTION * 7 - 0.01  # not at once: the time of this run is done
    back = begun[4:]
    assert len(back) > 30
    late = [at % 7 for at in back]
    assert max(late) <= JITTER_FRACTION * 7 + 0.01
    assert all(gap == pytest.approx(7, abs=JITTER_FRACTION * 7 + 0.01) for gap in pauses(back))
