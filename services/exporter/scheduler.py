"""When: runs named jobs, each once in every interval, for as long as it is not cancelled.

What comes in are jobs without arguments; whose they are, and what they found, is not known here, only whether one asks
to come less often. The only clock is the event loop's, which no change of the wall clock moves.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from random import Random

import structlog

from shared.process.concurrency import is_task_cancelled

START_SPACING = 0.1
"""Seconds between the first runs of two jobs, so that they do not all begin in the same moment."""
JITTER_FRACTION = 0.1
"""How late a run may come, as a part of the interval, so that many exporters do not stay in step with one another."""
MAX_BACKOFF = 60.0
"""Seconds to which the pause of a job that asks for a slower beat grows; the interval where that is longer."""

log = structlog.get_logger(__name__)


class NextRun(Enum):
    """When a job wants its next run."""

    ON_GRID = "next"
    """At the next beat of its grid."""
    BACK_OFF = "slower"
    """After twice the last pause, such as while a quota is exhausted."""


@dataclass(frozen=True, slots=True)
class Job:
    """Something to do again and again."""

    name: str
    run: Callable[[], Awaitable[NextRun]]


async def run_jobs(
    jobs: Sequence[Job], *, interval: float, concurrency: int, random: Random, start_spacing: float = START_SPACING
) -> None:
    """Runs every job at each beat of its own grid: first beat + n * `interval`, plus a jitter that never adds up.

    A job never overlaps itself. One that is late, because it is slow or because no place was free, runs as soon as it
    can, and the beats that it missed meanwhile are left out. One that asks for `Beat.SLOWER` pauses twice as long each
    time, up to `MAX_BACKOFF`, and is back on its grid as soon as it asks no longer. A job's exception is logged once, with
    its trace, until the job succeeds or fails differently; the job goes on at its next beat.

    Args:
        jobs: the first runs come in this order, all of them within one interval.
        interval: seconds between two beats of a job.
        concurrency: how many jobs run at the same time.
        random: where the jitter comes from.
        start_spacing: seconds between the first runs of two jobs; less where they would not fit into one interval.

    Returns only where there are no jobs; cancelled, it leaves nothing running.
    """
    places = asyncio.Semaphore(concurrency)
    start_spacing = min(start_spacing, interval / max(len(jobs), 1))
    start = asyncio.get_running_loop().time()
    async with asyncio.TaskGroup() as group:
        for n, job in enumerate(jobs):
            beats = _Grid(start + n * start_spacing, interval, random)
            group.create_task(_repeat_job(job, beats, places), name=job.name)


class _Grid:
    """The grid of one job."""

    def __init__(self, first_run_at: float, interval: float, random: Random) -> None:
        self._first = first_run_at
        self._interval = interval
        self._random = random
        self._tick = 0
        self._pause = interval
        self.next_run_at = first_run_at
        """When the next run is due."""

    def advance(self, next_run: NextRun, now: float) -> None:
        """After a run: to a beat to come, or to the latest of those that are past."""
        if next_run is NextRun.BACK_OFF:
            self._pause = min(2 * self._pause, max(MAX_BACKOFF, self._interval))
            self.next_run_at = now + self._pause
            self._tick = self._latest_tick(self.next_run_at)
            return
        self._pause = self._interval
        self._tick = max(self._tick + 1, self._latest_tick(now))
        jitter = self._random.uniform(0, JITTER_FRACTION * self._interval)
        self.next_run_at = self._first + self._tick * self._interval + jitter

    def _latest_tick(self, now: float) -> int:
        return int((now - self._first) // self._interval)


async def _repeat_job(job: Job, grid: _Grid, semaphore: asyncio.Semaphore) -> None:
    loop = asyncio.get_running_loop()
    known: str | None = None
    while True:
        await asyncio.sleep(max(0.0, grid.next_run_at - loop.time()))
        async with semaphore:
            beat, known = await _run_once(job, known)
        grid.advance(beat, loop.time())


async def _run_once(job: Job, logged_error: str | None) -> tuple[NextRun, str | None]:
    """Runs the job; gives what it asks for, and what it raised, in words, or None. The log says `logged_error` already."""
    try:
        return await job.run(), None
    except asyncio.CancelledError as error:
        # A library may raise it although nobody cancelled us; let through, it would end this job without a word.
        if is_task_cancelled():
            raise
        return NextRun.ON_GRID, _log_failure(job, error, logged_error)
    except Exception as error:  # noqa: BLE001  whatever a job raises, the others and its next run go on
        return NextRun.ON_GRID, _log_failure(job, error, logged_error)


def _log_failure(job: Job, error: BaseException, logged_error: str | None) -> str:
    words = repr(error)
    if words != logged_error:
        log.error("job failed unexpectedly; it runs again at its next time", job=job.name, exc_info=error)
    return words
