"""Jobs that callers await on an event loop while the outbox's thread does them.

The queue is bounded in number and in bytes, and a job leaves it when nobody awaits it any more: while a database hangs,
Alertmanager sends the same webhooks again and again.
"""

import asyncio
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Final

import structlog

from services.relay.outbox.engine.batching import Job, JobResult

_MAX_JOBS: Final = 8192
"""How many jobs may wait; one more is refused."""
_MAX_BYTES: Final = 64 * 1024 * 1024
"""Total size of waiting and running jobs, at most: as much as the intake receives at once."""

RETRY_SECONDS: Final = 1.0
"""How long a caller waits after a StoreUnavailableError before it tries again."""

log = structlog.get_logger(__name__)


class StoreUnavailableError(Exception):
    """Nothing is known to be committed: locked, full, read-only, closed, or too much is waiting. Try again later.

    In almost all cases nothing was. But a connection may be lost between a COMMIT and its answer, and a caller that
    waits no longer does not stop a transaction that has started: then it was done, or will be.
    """


class StoreDamagedError(StoreUnavailableError):
    """Nothing was committed, since the database cannot read what it holds; other parts of it may work."""


@dataclass(frozen=True, slots=True, eq=False)
class QueuedJob:
    """A job, who awaits it, and its size in bytes where that may be large."""

    job: Job
    future: "asyncio.Future[Any]"
    size: int = 0


class WorkQueue:
    """The jobs that wait for the thread, in order of arrival, and those that it runs."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._queued: dict[QueuedJob, None] = {}
        self._running: set[QueuedJob] = set()
        self._bytes = 0
        self._closed = False

    def put(self, work: QueuedJob) -> None:
        """Adds a job. Raises StoreUnavailableError."""
        with self._changed:
            if self._closed:
                raise StoreUnavailableError("the outbox is closed")
            if len(self._queued) >= _MAX_JOBS:
                raise StoreUnavailableError(f"{_MAX_JOBS} jobs wait for the outbox already")
            if self._bytes + work.size > _MAX_BYTES:
                raise StoreUnavailableError(f"{self._bytes} bytes wait for the outbox already")
            self._queued[work] = None
            self._bytes += work.size
            self._changed.notify()

    def cancel(self, queued: QueuedJob) -> None:
        """Nobody awaits it any more; where it has not started, it is not done."""
        with self._changed:
            if queued in self._queued:
                del self._queued[queued]
                self._bytes -= queued.size

    def wait_for_job(self) -> bool:
        """True once something waits, False once the queue is closed and nothing does; for the thread."""
        with self._changed:
            self._changed.wait_for(lambda: self._queued or self._closed)
            return bool(self._queued)

    def start_next(self, limit: int) -> Sequence[QueuedJob]:
        """The next jobs, which run until `set_results`, `return_job` or `discard`; for the thread."""
        with self._changed:
            batch = list(islice(self._queued, limit))
            for work in batch:
                del self._queued[work]
            self._running.update(batch)
            return batch

    def return_job(self, work: QueuedJob) -> bool:
        """Puts a running job at the end of the queue; False if that is closed. For the thread."""
        with self._changed:
            if not self._closed:
                self._running.remove(work)
                self._queued[work] = None
            return not self._closed

    def set_results(self, jobs: Sequence[QueuedJob], results: Sequence[JobResult]) -> None:
        """Gives the results to those who await them, all at once; for the thread."""
        self.discard(jobs)  # first: whoever gets a result may put the next job at once
        ended = list(zip(jobs, results, strict=True))
        for loop in {work.future.get_loop() for work in jobs}:
            try:
                loop.call_soon_threadsafe(_set_results, [each for each in ended if each[0].future.get_loop() is loop])
            except RuntimeError:  # the loop has ended, and with it everybody who waited
                log.warning("event loop ended before the result was returned")

    def discard(self, jobs: Sequence[QueuedJob]) -> None:
        """These jobs run no more; for the thread."""
        with self._changed:
            for work in self._running.intersection(jobs):
                self._running.remove(work)
                self._bytes -= work.size

    def close(self) -> None:
        """Takes nothing more."""
        with self._changed:
            self._closed = True
            self._changed.notify()

    def fail_all(self, error: str) -> None:
        """Every caller gets a StoreUnavailableError now; for their event loop."""
        with self._changed:
            works = [*self._running, *self._queued]
        for work in works:
            fail_job(work.future, error)


def fail_job(future: "asyncio.Future[Any]", error: str) -> None:
    """The caller gets a StoreUnavailableError, where the job has not ended."""
    if not future.done():
        future.set_exception(StoreUnavailableError(error))


def _set_results(results: list[tuple[QueuedJob, JobResult]]) -> None:
    for work, (result, problem) in results:
        if work.future.done():
            continue  # the caller has given up
        if problem is None:
            work.future.set_result(result)
        else:
            work.future.set_exception(problem)
