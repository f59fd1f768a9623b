"""The thread that writes: takes the waiting jobs, does them in few transactions, and returns the result of each.

On SQLite all jobs share one transaction; on PostgreSQL each handler has its own, so that it locks rows in the same
order in every replica.
"""

import threading
import time
import traceback
from collections.abc import Callable, Sequence
from typing import Final

import structlog
from sqlalchemy import Connection, exc

from services.relay.outbox.engine import dialect
from services.relay.outbox.engine.batching import JobResult, Transaction, group_by_handler, run_jobs
from services.relay.outbox.engine.revision import UnknownDatabaseError, check_tables, create_tables
from services.relay.outbox.engine.work_queue import QueuedJob, StoreDamagedError, StoreUnavailableError, WorkQueue
from shared.sql.database_url import DatabaseUrl
from shared.sql.engine import is_retryable, open_transaction
from shared.sql.sqlite_file import FileLostError

_MAX_BATCH: Final = 256
"""How many jobs share one transaction at most."""
_SMALL_BATCH: Final = 4
"""Jobs in one transaction after which the next one waits a moment, so that it finds more of them."""
_BATCH_DELAY: Final = 0.004
"""That moment, in seconds. It makes a busy outbox faster, since a flush to the disk costs the same for one and many."""
_MAX_TRIES: Final = 3
_REVISION_CHECKED: Final = "the tables are ours"
"""The key in a connection's `info` that records it."""
_SLOW_TRANSACTION: Final = 3.0
"""Seconds after which a transaction is reported as hanging."""

log = structlog.get_logger(__name__)


class Writer:
    """Works until its queue is closed and empty.

    Args:
        database: where it is.
        engines: of which it uses `writing`; the others are also reopened after the database failed.
        queue: of jobs.
        clock: unix seconds, by this machine.
        unmerged_channels: the channels that get every event as a delivery of its own.
        monotonic: seconds, to see how long a transaction takes.
    """

    def __init__(
        self,
        database: DatabaseUrl,
        engines: dialect.Engines,
        queue: WorkQueue,
        clock: Callable[[], float],
        unmerged_channels: frozenset[str],
        monotonic: Callable[[], float],
    ) -> None:
        self.is_prepared = False
        """Whether the tables are there."""
        self.committed_at: float | None = None
        """When it last committed something, unix seconds by this machine; None before the first time."""
        self._database = database
        self._engine = engines.writing
        self._engines = engines
        self._queue = queue
        self._clock = clock
        self.unmerged_channels = unmerged_channels
        self._monotonic = monotonic
        self._error: str | None = None
        self._transaction_started: float | None = None
        self._thread = threading.Thread(target=self._run, name="outbox", daemon=True)

    @property
    def error(self) -> str | None:
        """Why the last transaction failed, or that one hangs; None while healthy."""
        started_at = self._transaction_started
        if self._error is None and started_at is not None and self._monotonic() - started_at > _SLOW_TRANSACTION:
            return f"a transaction has been running for more than {_SLOW_TRANSACTION:g} s"
        return self._error

    def start(self) -> None:
        """Begins to work."""
        self._thread.start()

    def join(self, seconds: float) -> bool:
        """Whether the work is over, at the latest after so long."""
        if self._thread.is_alive():
            self._thread.join(seconds)
        return not self._thread.is_alive()

    def prepare(self) -> None:
        """Makes the tables once, where there are none. Raises what `create_tables` raises, and OSError."""
        if self.is_prepared:
            return
        try:
            dialect.make_file(self._database)
        except FileLostError as error:
            raise UnknownDatabaseError(str(error)) from None
        with open_transaction(self._engine) as connection:
            created = create_tables(connection)
        if created:
            log.warning("new tables created in an empty database", database=str(self._database))
        self.is_prepared = True

    def fail(self, jobs: Sequence[QueuedJob], error: str) -> None:
        """Nothing can be committed for now; the callers of these jobs get the error."""
        if self._error != error:
            log.error("outbox cannot commit", error=error)
            self._error = error
        self._dispose_engines()
        self._queue.set_results(jobs, [(None, StoreUnavailableError(error)) for _ in jobs])

    def _dispose_engines(self) -> None:
        """The next transaction reconnects: to the database that was mounted, replaced, repaired or restarted."""
        for engine in self._engines:
            engine.dispose()

    def _run(self) -> None:
        before = 0
        while self._queue.wait_for_job():
            if before > _SMALL_BATCH:
                time.sleep(_BATCH_DELAY)
            before = self._run_next_batch()
        self._engine.dispose()

    def _run_next_batch(self) -> int:
        """Does what waits; gives how many jobs it was."""
        works = self._queue.start_next(_MAX_BATCH)
        if dialect.is_sqlite(self._database):
            self._commit(works)
        else:
            for indexes in group_by_handler([work.job for work in works]).values():
                self._commit([works[index] for index in indexes])
        self._queue.discard(works)
        return len(works)

    def _commit(self, jobs: Sequence[QueuedJob], tries: int = _MAX_TRIES, *, short_lock_timeout: bool = False) -> None:
        jobs = [work for work in jobs if not work.future.done()]
        if not jobs:
            return
        try:
            outcomes = self._run_transaction(jobs, short_lock_timeout=short_lock_timeout)
        except exc.DBAPIError as error:
            # SQLAlchemy's frames reference their own error, and with it all data of the job, until the next garbage
            # collection.
            traceback.clear_frames(error.__traceback__)
            if dialect.is_lock_timeout(error) and self.is_prepared:
                self._retry_locked(jobs, StoreUnavailableError(dialect.describe_error(error)))
            elif is_retryable(error) and tries > 1:
                self._commit(jobs, tries - 1, short_lock_timeout=short_lock_timeout)
            elif dialect.is_damaged(error) or dialect.is_query_error(error):
                self._commit_one_by_one(jobs, error)
            else:
                self.fail(jobs, dialect.describe_error(error))
        except UnknownDatabaseError as error:
            self.fail(jobs, str(error))
        except Exception as error:  # noqa: BLE001  # this thread outlives whatever happens to the database
            self.fail(jobs, repr(error))
        else:
            if self._error is not None:
                log.info("outbox can commit again")
                self._error = None
            self.committed_at = self._clock()
            self._queue.set_results(jobs, outcomes)

    def _run_transaction(self, jobs: Sequence[QueuedJob], *, short_lock_timeout: bool) -> list[JobResult]:
        self._transaction_started = self._monotonic()
        try:
            self.prepare()
            with open_transaction(self._engine) as connection:
                _check_new_connection(connection)
                if short_lock_timeout:
                    dialect.set_short_lock_timeout(connection)
                now = dialect.read_clock(connection, self._clock)
                return run_jobs(Transaction(connection, now, self.unmerged_channels), [work.job for work in jobs])
        finally:
            self._transaction_started = None

    def _retry_locked(self, jobs: Sequence[QueuedJob], error: Exception) -> None:
        """Another process has locked what some of them need: the others are done, and these are queued again."""
        if len(jobs) > 1:
            for work in jobs:
                self._commit([work], short_lock_timeout=True)
        elif not self._queue.return_job(jobs[0]):
            self._queue.set_results(jobs, [(None, error)])

    def _commit_one_by_one(self, jobs: Sequence[QueuedJob], error: exc.DBAPIError) -> None:
        """Each is done alone, so that one that is wrong, or needs what is damaged, fails alone."""
        is_damaged = dialect.is_damaged(error)
        if is_damaged:
            self._dispose_engines()
        if len(jobs) == 1:
            result = StoreDamagedError(dialect.describe_error(error)) if is_damaged else error
            self._queue.set_results(jobs, [(None, result)])
        for work in jobs if len(jobs) > 1 else ():
            self._commit([work])


def _check_new_connection(connection: Connection) -> None:
    """After a new connection the database may be another one. Raises UnknownDatabaseError."""
    if not connection.info.get(_REVISION_CHECKED):
        check_tables(connection)
        connection.info[_REVISION_CHECKED] = True
