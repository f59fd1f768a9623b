"""A job that backs off, for example while a quota is exhausted, or retries after a failure."""

import asyncio
from collections.abc import Callable
from itertools import pairwise
from random import Random

import pytest

from services.exporter.scheduler import JITTER_FRACTION, RETRY_PERIOD, NextRun, ScheduledJob, run_schedule

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


@pytest.mark.parametrize(("interval", "duration", "longest"), [(30, 0.0, 5.5), (300, 0.0, 5.5), (30, 8.0, 8.0)])
async def test_after_a_failure_it_runs_each_5_seconds_or_as_soon_as_it_can_for_a_minute_and_then_each_interval(
    interval: float, duration: float, longest: float
) -> None:
    begun = await begins(4 * interval + 120, interval, lambda n: NextRun.RETRY if n else NextRun.ON_GRID, duration)
    over = begun[1] + duration + RETRY_PERIOD
    retries, later = [at for at in begun[1:] if at < over], [at for at in begun if at >= over]
    assert all(max(5, duration) <= gap <= longest + 0.001 for gap in pauses(retries))
    assert over - retries[-1] <= longest + duration
    assert later[0] - retries[-1] <= 1.1 * interval + duration
    assert all(at % interval <= JITTER_FRACTION * interval + 0.001 for at in later)


async def test_a_job_whose_interval_is_shorter_does_not_retry() -> None:
    begun = await begins(60, 3, lambda _: NextRun.RETRY)
    assert all(at % 3 <= JITTER_FRACTION * 3 + 0.001 for at in begun)


async def test_a_success_ends_the_retries_and_the_next_failure_has_a_minute_again() -> None:
    begun = await begins(300, 30, lambda n: NextRun.ON_GRID if n in {0, 3, 4} else NextRun.RETRY)
    assert all(5 <= gap <= 5.501 for gap in pauses(begun)[1:3])
    assert all(begun[n] % 30 <= 3.001 for n in (1, 4, 5))
    assert len([at for at in begun[5:] if at - begun[5] < RETRY_PERIOD]) >= 11
