import asyncio
from collections.abc import Awaitable, Callable
from itertools import pairwise
from random import Random

import pytest
from structlog.testing import capture_logs

from services.exporter.scheduler import JITTER_FRACTION, NextRun, ScheduledJob, run_schedule

pytestmark = pytest.mark.looptime

DAY = 86_400.0
RANDOM = Random(1)  # noqa: S311  jitter, no secret


def now() -> float:
    return asyncio.get_running_loop().time()


class Diary:
    """Remembers when a job's runs began and ended."""

    def __init__(self, seconds: float = 0.0) -> None:
        self.begun: list[float] = []
        self.ended: list[float] = []
        self._seconds = seconds

    async def run(self) -> NextRun:
        self.begun.append(now())
        await asyncio.sleep(self._seconds)
        self.ended.append(now())
        return NextRun.ON_GRID


async def run_for(
    seconds: float, *runs: Callable[[], Awaitable[NextRun]], interval: float, concurrency: int = 16
) -> None:
    jobs = [ScheduledJob(f"job {n}", run) for n, run in enumerate(runs)]
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(seconds):
            await run_schedule(jobs, interval=interval, concurrency=concurrency, random=RANDOM)


async def test_a_job_does_not_drift_over_a_day() -> None:
    diary = Diary(seconds=1.7)
    await run_for(DAY, diary.run, interval=30)
    assert len(diary.begun) in {2880, 2881}
    late = [at - n * 30 - diary.begun[0] for n, at in enumerate(diary.begun)]
    assert min(late) >= 0
    assert max(late) <= JITTER_FRACTION * 30 + 0.001


async def test_runs_are_jittered_so_that_exporters_do_not_stay_in_step() -> None:
    diary = Diary()
    await run_for(3000, diary.run, interval=30)
    assert len({round(at % 30, 3) for at in diary.begun}) > 50


async def test_the_first_runs_of_a_thousand_jobs_are_spread_over_one_interval() -> None:
    diaries = [Diary() for _ in range(1000)]
    begin = now()
    await run_for(29.99, *(diary.run for diary in diaries), interval=30)
    firsts = sorted(diary.begun[0] - begin for diary in diaries)
    gaps = [later - earlier for earlier, later in pairwise(firsts)]
    assert max(gaps) == pytest.approx(0.03, abs=0.002)


async def test_no_more_jobs_run_at_once_than_allowed() -> None:
    running = most = 0

    async def run() -> NextRun:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(5)
        running -= 1
        return NextRun.ON_GRID

    await run_for(300, *[run] * 50, interval=10, concurrency=4)
    assert most == 4


async def test_a_job_slower_than_its_interval_never_overlaps_itself_and_runs_again_at_once() -> None:
    diary = Diary(seconds=12)
    await run_for(1000, diary.run, interval=10)
    pauses = [begun - ended for ended, begun in zip(diary.ended, diary.begun[1:], strict=False)]
    assert min(pauses) >= 0
    assert max(pauses) <= JITTER_FRACTION * 10
    assert len(diary.begun) >= 1000 / (12 + JITTER_FRACTION * 10)


async def test_a_job_that_raises_goes_on_and_harms_no_other() -> None:
    diary = Diary()
    tries = 0

    async def broken() -> NextRun:
        nonlocal tries
        tries += 1
        raise ZeroDivisionError("defect")

    with capture_logs() as logs:
        await run_for(299, broken, diary.run, interval=10)
    assert tries == 30
    assert len(diary.begun) == 30
    (line,) = logs
    assert line["job"] == "job 0"
    assert isinstance(line["exc_info"], ZeroDivisionError)
    assert line["exc_info"].__traceback__ is not None


async def test_a_library_that_raises_cancelled_error_does_not_end_the_job() -> None:
    tries = 0

    async def run() -> NextRun:
        nonlocal tries
        tries += 1
        raise asyncio.CancelledError

    with capture_logs() as logs:
        await run_for(99, run, interval=10)
    assert tries == 10
    assert len(logs) == 1


async def test_cancelled_in_the_middle_of_its_jobs_it_leaves_no_task_behind() -> None:
    before = asyncio.all_tasks()
    diaries = [Diary(seconds=100) for _ in range(20)]
    jobs = [ScheduledJob(str(n), diary.run) for n, diary in enumerate(diaries)]
    task = asyncio.create_task(run_schedule(jobs, interval=10, concurrency=3, random=RANDOM))
    await asyncio.sleep(5)
    assert sum(len(diary.begun) for diary in diaries) == 3
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert asyncio.all_tasks() == before
    assert not any(diary.ended for diary in diaries)
