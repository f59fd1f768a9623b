"""When: runs named jobs, each once in every interval, for as long as it is not cancelled.

What comes in are jobs without arguments or results; whose they are, and what they found, is not known here. The only
clock is the event loop's.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from random import Random

import structlog

START_SPACING = 0.1
"""Seconds between the first runs of two jobs; less where they would not fit into one interval."""
JITTER = 0.1
"""How late a run may come, as a part of the interval, so that many exporters do not stay in step with one another."""

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Job:
    """Something to do again and again."""

    name: str
    run: Callable[[], Awaitable[None]]


async def repeat(jobs: Sequence[Job], *, interval: float, concurrency: int, random: Random) -> None:
    """Runs every job at each beat of its own grid: first beat + n * `interval`, plus a jitter that never adds up.

    A job never overlaps itself. One that is late, because it is slow or because no place was free, runs as soon as it
    can, and the beats that it missed meanwhile are left out. A job's exception is logged once, with its trace, until
    the job succeeds or fails differently; the job goes on at its next beat.

    Args:
        jobs: the first runs come in this order, `START_SPACING` apart, all of them within one interval.
        interval: seconds between two beats of a job.
        concurrency: how many jobs run at the same time.
        random: where the jitter comes from.

    Returns only where there are no jobs; cancelled, it leaves nothing running.
    """
    places = asyncio.Semaphore(concurrency)
    spacing = min(START_SPACING, interval / max(len(jobs), 1))
    start = asyncio.get_running_loop().time()
    async with asyncio.TaskGroup() as group:
        for n, job in enumerate(jobs):
            beats = _Beats(start + n * spacing, interval, random)
            group.create_task(_repeat(job, beats, places), name=job.name)


class _Beats:
    """The grid of one job."""

    def __init__(self, first: float, interval: float, random: Random) -> None:
        self._first = first
        self._interval = interval
        self._random = random
        self._number = -1

    def next(self, now: float) -> float:
        """When the next run is due: a beat to come, or the latest of those that are past."""
        latest = int((now - self._first) // self._interval)
        self._number = max(self._number + 1, latest)
        jitter = self._random.uniform(0, JITTER * self._interval) if self._number else 0.0
        return self._first + self._number * self._interval + jitter


async def _repeat(job: Job, beats: _Beats, places: asyncio.Semaphore) -> None:
    loop = asyncio.get_running_loop()
    known: str | None = None
    while True:
        await asyncio.sleep(max(0.0, beats.next(loop.time()) - loop.time()))
        async with places:
            known = await _survive(job, known)


async def _survive(job: Job, known: str | None) -> str | None:
    """Runs the job; returns what it raised, in words, or None. `known` is what the log already says."""
    try:
        await job.run()
    except asyncio.CancelledError as error:
        # A library may raise it although nobody cancelled us; let through, it would end this job without a word.
        task = asyncio.current_task()
        if task is None or task.cancelling():
            raise
        return _tell(job, error, known)
    except Exception as error:  # noqa: BLE001  whatever a job raises, the others and its next run go on
        return _tell(job, error, known)
    return None


def _tell(job: Job, error: BaseException, known: str | None) -> str:
    words = repr(error)
    if words != known:
        log.error("a job failed in an unexpected way; it is tried again at its next turn", job=job.name, exc_info=error)
    return words
