"""Runs named jobs, each once in every interval, until it is cancelled.

A job takes no arguments and returns only when it wants to run again. The only clock is the event loop's, which no
change of the wall clock moves.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from random import Random

import structlog

from shared.process.concurrency import is_task_cancelled

START_SPACING = 0.1
"""Seconds between the first runs of two jobs, so that they do not all begin at the same moment."""
JITTER_FRACTION = 0.1
"""How late a run may come, as a part of the interval, so that many exporters do not stay in step with one another."""
MAX_BACKOFF = 60.0
"""The longest pause of a job that backs off, in seconds; the interval where that is longer."""
RETRY_PAUSE = 5.0
"""Seconds from one run of a job that retries to its next; a job with a shorter interval does not retry."""
RETRY_PERIOD = 60.0
"""How long a job retries, in seconds from the end of its first failure."""

log = structlog.get_logger(__name__)


class NextRun(Enum):
    """When a job wants its next run."""

    ON_GRID = "next"
    """At the next tick of its grid."""
    BACK_OFF = "slower"
    """After twice the last pause, such as while a quota is exhausted."""
    RETRY = "sooner"
    """Soon, such as after a failure that may be noise; at the next tick once it has retried for `RETRY_PERIOD`."""


@dataclass(frozen=True, slots=True)
class ScheduledJob:
    """Something to do again and again."""

    name: str
    run: Callable[[], Awaitable[NextRun]]


async def run_schedule(
    jobs: Sequence[ScheduledJob],
    *,
    interval: float,
    concurrency: int,
    random: Random,
    start_spacing: float = START_SPACING,
) -> None:
    """Runs every job at each tick of its own grid: first run + n * `interval`, plus a jitter that never adds up.

    A job never overlaps itself. A job that is late, because it is slow or because of `concurrency`, runs as soon as it
    can, and the ticks that it missed are skipped. A job that returns `NextRun.BACK_OFF` pauses twice as long each time,
    up to `MAX_BACKOFF`, and returns to its grid after the first run that does not. One that returns `NextRun.RETRY`
    runs each `RETRY_PAUSE`, with a jitter of the same fraction, for `RETRY_PERIOD` at most, until a run returns
    `NextRun.ON_GRID`. A job's exception is logged once, with its trace, until the job succeeds or fails differently;
    the job runs again at its next tick.

    Args:
        jobs: the first runs come in this order, all of them within one interval.
        interval: seconds between two ticks of a job.
        concurrency: how many jobs run at the same time.
        random: where the jitter comes from.
        start_spacing: seconds between the first runs of two jobs; less where they would not fit into one interval.

    Returns only where there are no jobs; cancelled, it leaves nothing running.
    """
    semaphore = asyncio.Semaphore(concurrency)
    start_spacing = min(start_spacing, interval / max(len(jobs), 1))
    start = asyncio.get_running_loop().time()
    async with asyncio.TaskGroup() as group:
        for n, job in enumerate(jobs):
            grid = _Grid(start + n * start_spacing, interval, random)
            group.create_task(_repeat_job(job, grid, semaphore), name=job.name)


class _Grid:
    def __init__(self, first_run_at: float, interval: float, random: Random) -> None:
        self._first = first_run_at
        self._interval = interval
        self._random = random
        self._tick = 0
        self._pause = interval
        self._retry_until: float | None = None
        """When the job stops retrying; None while it does not fail."""
        self.next_run_at = first_run_at
        """When the next run is due."""

    def advance(self, next_run: NextRun, begun: float, now: float) -> None:
        """After a run that began at `begun`: to the next tick, or to the latest one that is past."""
        if next_run is NextRun.BACK_OFF:
            self._pause = min(2 * self._pause, max(MAX_BACKOFF, self._interval))
            self._leave_grid(now + self._pause)
            return
        self._pause = self._interval
        if next_run is NextRun.ON_GRID:
            self._retry_until = None
        elif self._interval > RETRY_PAUSE:
            self._retry_until = self._retry_until or now + RETRY_PERIOD
            retry_at = max(now, begun + RETRY_PAUSE + self._draw_jitter(RETRY_PAUSE))
            if retry_at < self._retry_until:
                self._leave_grid(retry_at)
                return
        self._tick = max(self._tick + 1, self._latest_tick(now))
        self.next_run_at = self._first + self._tick * self._interval + self._draw_jitter(self._interval)

    def _leave_grid(self, next_run_at: float) -> None:
        self.next_run_at = next_run_at
        self._tick = self._latest_tick(next_run_at)

    def _draw_jitter(self, pause: float) -> float:
        return self._random.uniform(0, JITTER_FRACTION * pause)

    def _latest_tick(self, now: float) -> int:
        return int((now - self._first) // self._interval)


async def _repeat_job(job: ScheduledJob, grid: _Grid, semaphore: asyncio.Semaphore) -> None:
    loop = asyncio.get_running_loop()
    logged_error: str | None = None
    while True:
        await asyncio.sleep(max(0.0, grid.next_run_at - loop.time()))
        async with semaphore:
            begun = loop.time()
            next_run, logged_error = await _run_once(job, logged_error)
        grid.advance(next_run, begun, loop.time())


async def _run_once(job: ScheduledJob, logged_error: str | None) -> tuple[NextRun, str | None]:
    """Runs the job. Returns when it wants to run again, and its error or None; `logged_error` is not logged again."""
    try:
        return await job.run(), None
    except asyncio.CancelledError as error:
        # A library may raise it although nobody cancelled this task; not caught, it would end the job silently.
        if is_task_cancelled():
            raise
        return NextRun.ON_GRID, _log_failure(job, error, logged_error)
    except Exception as error:  # noqa: BLE001  whatever a job raises, the others and its next run go on
        return NextRun.ON_GRID, _log_failure(job, error, logged_error)


def _log_failure(job: ScheduledJob, error: BaseException, logged_error: str | None) -> str:
    described = repr(error)
    if described != logged_error:
        log.error("job failed unexpectedly; it runs again at its next time", job=job.name, exc_info=error)
    return described
