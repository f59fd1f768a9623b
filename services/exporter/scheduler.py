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

from shared.cancelled import task_is_cancelled

START_SPACING = 0.1
"""Seconds between the first runs of two jobs, so that they do not all begin in the same moment."""
JITTER = 0.1
"""How late a run may come, as a part of the interval, so that many exporters do not stay in step with one another."""
SLOWEST = 60.0
"""Seconds to which the pause of a job that asks for a slower beat grows; the interval where that is longer."""

log = structlog.get_logger(__name__)


class Beat(Enum):
    """When a job wants its next run."""

    NEXT = "next"
    """At the next beat of its grid."""
    SLOWER = "slower"
    """After twice the last pause, such as while a quota is exhausted."""


@dataclass(frozen=True, slots=True)
class Job:
    """Something to do again and again."""

    name: str
    run: Callable[[], Awaitable[Beat]]


async def repeat(
    jobs: Sequence[Job], *, interval: float, concurrency: int, random: Random, spacing: float = START_SPACING
) -> None:
    """Runs every job at each beat of its own grid: first beat + n * `interval`, plus a jitter that never adds up.

    A job never overlaps itself. One that is late, because it is slow or because no place was free, runs as soon as it
    can, and the beats that it missed meanwhile are left out. One that asks for `Beat.SLOWER` pauses twice as long each
    time, up to `SLOWEST`, and is back on its grid as soon as it asks no longer. A job's exception is logged once, with
    its trace, until the job succeeds or fails differently; the job goes on at its next beat.

    Args:
        jobs: the first runs come in this order, all of them within one interval.
        interval: seconds between two beats of a job.
        concurrency: how many jobs run at the same time.
        random: where the jitter comes from.
        spacing: seconds between the first runs of two jobs; less where they would not fit into one interval.

    Returns only where there are no jobs; cancelled, it leaves nothing running.
    """
    places = asyncio.Semaphore(concurrency)
    spacing = min(spacing, interval / max(len(jobs), 1))
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
        self._number = 0
        self._pause = interval
        self.due = first
        """When the next run is due."""

    def move(self, beat: Beat, now: float) -> None:
        """After a run: to a beat to come, or to the latest of those that are past."""
        if beat is Beat.SLOWER:
            self._pause = min(2 * self._pause, max(SLOWEST, self._interval))
            self.due = now + self._pause
            self._number = self._latest(self.due)
            return
        self._pause = self._interval
        self._number = max(self._number + 1, self._latest(now))
        jitter = self._random.uniform(0, JITTER * self._interval)
        self.due = self._first + self._number * self._interval + jitter

    def _latest(self, now: float) -> int:
        return int((now - self._first) // self._interval)


async def _repeat(job: Job, beats: _Beats, places: asyncio.Semaphore) -> None:
    loop = asyncio.get_running_loop()
    known: str | None = None
    while True:
        await asyncio.sleep(max(0.0, beats.due - loop.time()))
        async with places:
            beat, known = await _survive(job, known)
        beats.move(beat, loop.time())


async def _survive(job: Job, known: str | None) -> tuple[Beat, str | None]:
    """Runs the job; gives what it asks for, and what it raised, in words, or None. The log says `known` already."""
    try:
        return await job.run(), None
    except asyncio.CancelledError as error:
        # A library may raise it although nobody cancelled us; let through, it would end this job without a word.
        if task_is_cancelled():
            raise
        return Beat.NEXT, _tell(job, error, known)
    except Exception as error:  # noqa: BLE001  whatever a job raises, the others and its next run go on
        return Beat.NEXT, _tell(job, error, known)


def _tell(job: Job, error: BaseException, known: str | None) -> str:
    words = repr(error)
    if words != known:
        log.error("a job failed in an unexpected way; it is tried again at its next turn", job=job.name, exc_info=error)
    return words
