"""The open outbox: functions on a transaction go in, and their results come out once the commit is on the disk.

One thread commits all waiting jobs together (group commit): many webhooks and receipts share one fsync. On SQLite all
jobs share one transaction; on PostgreSQL each handler has its own, so that it locks rows in the same order in every
replica. A job that fails undoes itself alone. The queue is bounded in number and in bytes, and a job leaves it when
nobody awaits it any more: while a database hangs, Alertmanager sends the same webhooks again and again.

Reads have their threads and connections, and never wait for the writer.
"""

import asyncio
import math
import threading
import time
import traceback
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import asynccontextmanager
from dataclasses import dataclass
from itertools import islice
from typing import Any, Final, NamedTuple, TypeVar

import structlog
from sqlalchemy import Connection, Dialect, Engine, Insert, Update, exc

from services.relay.outbox import database as dialect
from services.relay.outbox.database import UnknownDatabaseError, check_tables, create_tables
from shared.check import HintedError
from shared.config.file_checks import FileCheckError
from shared.sql.database_url import DatabaseUrl
from shared.sql.engine import AnswerTimeout, is_retryable, open_transaction
from shared.sql.read_only import DATABASE_HINT

RETRY_SECONDS: Final = 1.0
"""How long a caller waits after a StoreUnavailableError before it tries again."""

log = structlog.get_logger(__name__)

I = TypeVar("I")  # noqa: E741  # an item of work
T = TypeVar("T")


class StoreUnavailableError(Exception):
    """Nothing is known to be committed: locked, full, read-only, closed, or too much is waiting. Try again later.

    In almost all cases nothing was. But a connection may be lost between a COMMIT and its answer, and a caller that
    waits no longer does not stop a transaction that has started: then it was done, or will be.
    """


class StoreDamagedError(StoreUnavailableError):
    """Nothing was committed, since the database cannot read what it holds; other parts of it may work."""


class StoreUnusableError(HintedError):
    """The database cannot be opened at all."""


class Transaction(NamedTuple):
    connection: Connection
    now: float
    """Unix seconds by the database's clock."""
    unmerged_channels: frozenset[str]
    """The channels that merge nothing: they get a delivery for each event."""


Handler = Callable[[Transaction, Sequence[Any]], Sequence[Any]]
"""Does all of its items at once, and gives the result of each in its place."""
JobResult = tuple[Any, Exception | None]
"""A result, or what was raised instead."""


@dataclass(frozen=True, slots=True, eq=False)
class Job:
    """An item for a handler, who awaits the result, and the size in bytes where that may be large."""

    handler: Handler
    item: Any
    future: "asyncio.Future[Any]"
    size: int = 0

    def fail(self, error: str) -> None:
        """The caller gets a StoreUnavailableError, where the job has not ended."""
        if not self.future.done():
            self.future.set_exception(StoreUnavailableError(error))


def _group_by_handler(jobs: Sequence[Job]) -> Iterable[list[Job]]:
    groups: dict[Handler, list[Job]] = {}
    for job in jobs:
        groups.setdefault(job.handler, []).append(job)
    return groups.values()


def _run_in_savepoint(transaction: Transaction, handler: Handler, items: list[Any]) -> list[JobResult]:
    """Where one of several items raises, each is done by itself. Raises DBAPIError, and then nothing was done."""
    # Not `begin_nested`: if the database fails, SQLite has ended the transaction, and a rollback of the savepoint fails
    # too.
    connection = transaction.connection
    connection.exec_driver_sql("SAVEPOINT work")
    try:
        outcomes: list[JobResult] = [(result, None) for result in handler(transaction, items)]
    except exc.DBAPIError:
        raise
    except Exception as error:  # noqa: BLE001  # raised for the caller who waits for this job
        connection.exec_driver_sql("ROLLBACK TO SAVEPOINT work")
        connection.exec_driver_sql("RELEASE SAVEPOINT work")
        if len(items) == 1:
            return [(None, error)]
        return [outcome for item in items for outcome in _run_in_savepoint(transaction, handler, [item])]
    connection.exec_driver_sql("RELEASE SAVEPOINT work")
    return outcomes


RowValues = Mapping[str, Any]


class BulkStatement:
    """An insert or an update of many rows, compiled once for each kind of database.

    SQLAlchemy inspects every value of every row at each execution, which takes longer than SQLite needs for the row.
    Values go to the driver as they are: texts, numbers, bytes, None.

    Args:
        statement: without RETURNING.
        columns: of an insert; each row has all of them.
    """

    def __init__(self, statement: Insert | Update, columns: Sequence[str] | None = None) -> None:
        self._statement = statement
        self._columns = columns
        self._compiled: dict[str, tuple[str, Callable[[RowValues], Any]]] = {}

    def execute(self, connection: Connection, rows: Sequence[RowValues]) -> None:
        """Does it for each row; there has to be one."""
        compiled = self._compiled.get(connection.dialect.name)
        if compiled is None:
            compiled = self._compiled[connection.dialect.name] = self._compile(connection.dialect)
        sql, to_parameters = compiled
        connection.exec_driver_sql(sql, [to_parameters(row) for row in rows])

    def _compile(self, dialect: Dialect) -> tuple[str, Callable[[RowValues], Any]]:
        """The text for a driver, and what it takes for a row: a tuple or a mapping."""
        compiled = self._statement.compile(dialect=dialect, column_keys=self._columns, for_executemany=True)
        # The statement holds some values itself, and awaits the others of each row.
        constants = {name: value for name, value in compiled.params.items() if not compiled.binds[name].required}
        order = compiled.positiontup
        if order is None:
            return compiled.string, lambda row: {**constants, **row}
        return compiled.string, lambda row: tuple(map({**constants, **row}.__getitem__, order))


_MAX_JOBS: Final = 8192
"""How many jobs may wait; one more is refused."""
_MAX_BYTES: Final = 64 * 1024 * 1024
"""Total size of waiting and running jobs, at most: as much as the intake receives at once."""


class _WorkQueue:
    """The jobs that wait for the thread, in order of arrival, and the running ones."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._queued: dict[Job, None] = {}
        self._running: set[Job] = set()
        self._bytes = 0
        self._closed = False

    def put(self, job: Job) -> None:
        """Adds a job. Raises StoreUnavailableError."""
        with self._changed:
            if self._closed:
                raise StoreUnavailableError("the outbox is closed")
            if len(self._queued) >= _MAX_JOBS:
                raise StoreUnavailableError(f"{_MAX_JOBS} jobs wait for the outbox already")
            if self._bytes + job.size > _MAX_BYTES:
                raise StoreUnavailableError(f"{self._bytes} bytes wait for the outbox already")
            self._queued[job] = None
            self._bytes += job.size
            self._changed.notify()

    def cancel(self, job: Job) -> None:
        """Nobody awaits it any more; where it has not started, it is not done."""
        with self._changed:
            if job in self._queued:
                del self._queued[job]
                self._bytes -= job.size

    def start_next(self, limit: int) -> Sequence[Job]:
        """Waits for jobs; they run until `set_results`, `return_job` or `discard`. None once the queue is closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._queued or self._closed)
            batch = list(islice(self._queued, limit))
            for job in batch:
                del self._queued[job]
            self._running.update(batch)
            return batch

    def return_job(self, job: Job) -> bool:
        """Puts a running job at the end of the queue; False if that is closed."""
        with self._changed:
            if not self._closed:
                self._running.remove(job)
                self._queued[job] = None
            return not self._closed

    def set_results(self, results: Mapping[Job, JobResult]) -> None:
        """Gives the results to those who await them, all at once."""
        self.discard(results)  # first: a caller with a result may put the next job at once
        loop = next(iter(results)).future.get_loop()
        try:
            loop.call_soon_threadsafe(_set_results, results)
        except RuntimeError:  # the loop has ended, and with it everybody who waited
            log.warning("event loop ended before the result was returned")

    def discard(self, jobs: Iterable[Job]) -> None:
        with self._changed:
            for job in self._running.intersection(jobs):
                self._running.remove(job)
                self._bytes -= job.size

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify()

    def fail_all(self, error: str) -> None:
        """Every caller gets a StoreUnavailableError now; for their event loop."""
        with self._changed:
            jobs = [*self._running, *self._queued]
        for job in jobs:
            job.fail(error)


def _set_results(results: Mapping[Job, JobResult]) -> None:
    for job, (result, problem) in results.items():
        if job.future.done():
            continue  # the caller has given up
        if problem is None:
            job.future.set_result(result)
        else:
            job.future.set_exception(problem)


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


_REPLY_TIMEOUT: Final = 7.5
"""How long a caller waits, in the queue and for the result: less than the 10 s that Alertmanager gives a webhook."""
_SCRAPE_TIMEOUT: Final = 2.0
"""Seconds that a scrape waits for its query, so that it still returns the other metrics in time."""
_STOP_SECONDS: Final = 4.0
"""How long callers wait after `stop`: less than the server's drain, so that a webhook still gets its 503."""
_CLOSE_SECONDS: Final = 1.0
"""How long `close` waits for the database."""
_CLOSING_TIMEOUT: Final = 0.5
"""How long the connections to it then wait for an answer."""

_DAMAGE_SECONDS: Final = 5.0
"""For how long a damage counts; a worker that met one tries again every second or two."""


class Store:
    """The open database; see `open_store`."""

    def __init__(
        self,
        database: DatabaseUrl,
        clock: Callable[[], float],
        unmerged_channels: frozenset[str],
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self.clock = clock
        self.unmerged_channels = unmerged_channels
        self.committed_at: float | None = None
        """When this process last committed something, unix seconds by this machine; None before the first time."""
        self._database = database
        self._monotonic = monotonic
        self._answer_timeout = AnswerTimeout()
        self._engines = dialect.create_engines(database, self._answer_timeout)
        self._is_prepared = False
        """Whether the tables are there."""
        self._error: str | None = None
        self._transaction_started: float | None = None
        self._damage = ""
        self._damage_ends = -math.inf
        self._queue = _WorkQueue()
        self._writer = threading.Thread(target=self._run_jobs, name="outbox", daemon=True)
        self._readers = ThreadPoolExecutor(dialect.READERS, "outbox read")
        self._reads: set[Future[Any]] = set()

    @property
    def error(self) -> str | None:
        """Why the last transaction failed, or that one hangs; None while healthy."""
        started_at = self._transaction_started
        if self._error is None and started_at is not None and self._monotonic() - started_at > _SLOW_TRANSACTION:
            return f"a transaction has been running for more than {_SLOW_TRANSACTION:g} s"
        return self._error or self.damage

    @property
    def damage(self) -> str | None:
        """What says that the workers cannot read the outbox; None once they have not met that for a while."""
        return f"it is damaged, restore a backup: {self._damage}" if self._monotonic() < self._damage_ends else None

    async def run(self, work: Callable[[Transaction], T]) -> T:
        """What `work` returns, once it is on the disk; an exception of `work` undoes it alone.

        Raises StoreUnavailableError.
        """
        return await self._do(lambda transaction, _: [work(transaction)], None)

    async def batch(self, handler: Callable[[Transaction, Sequence[I]], Sequence[T]], item: I, size: int = 0) -> T:
        """What `handler` returns for `item`, once it is on the disk.

        `handler` gets all items that wait for it in one call. Deliveries depend on it: see `damage`.

        Raises StoreUnavailableError.
        """
        try:
            return await self._do(handler, item, size)
        except StoreDamagedError as error:
            if self.damage is None:
                log.error("outbox is damaged; nothing is accepted", error=str(error), hint="restore a backup")  # noqa: TRY400
            self._damage, self._damage_ends = str(error), self._monotonic() + _DAMAGE_SECONDS
            raise

    async def _do(self, handler: Callable[[Transaction, Sequence[I]], Sequence[T]], item: I, size: int = 0) -> T:
        loop = asyncio.get_running_loop()
        done: asyncio.Future[T] = loop.create_future()
        job = Job(handler, item, done, size)
        self._queue.put(job)
        timeout = loop.call_later(_REPLY_TIMEOUT, job.fail, f"no answer within {_REPLY_TIMEOUT:g} s")
        try:
            return await done
        finally:
            timeout.cancel()
            self._queue.cancel(job)
            # An exception that `done` holds holds this frame: without a cycle, all of it is gone at once.
            del job, done

    async def read(self, query: Callable[[Connection], T], *, engine: Engine | None = None) -> T:
        """The result of `query`, on another connection than the writer's. Raises StoreUnavailableError."""
        reading = asyncio.wrap_future(self._submit(query, engine or self._engines.reading))
        try:
            async with asyncio.timeout(_REPLY_TIMEOUT):
                return await reading
        except TimeoutError:
            raise StoreUnavailableError(f"no answer within {_REPLY_TIMEOUT:g} s") from None
        finally:
            del reading  # as above

    async def read_at(self, query: Callable[[Connection, float], T]) -> T:
        """The same; `query` also gets the time by the database's clock, unix seconds."""
        return await self.read(lambda connection: query(connection, dialect.read_clock(connection, self.clock)))

    async def read_change_marker(self) -> str:
        """A text that differs from the last one wherever any process has committed something since.

        Raises StoreUnavailableError.
        """
        return await self.read(dialect.read_change_marker, engine=self._engines.watching)

    def read_blocking(self, query: Callable[[Connection], T]) -> T:
        """The same for the thread of a scrape, within 2 s. Raises StoreUnavailableError."""
        reading = self._submit(query, self._engines.reading)
        try:
            return reading.result(_SCRAPE_TIMEOUT)
        except TimeoutError:
            reading.cancel()
            raise StoreUnavailableError(f"no answer within {_SCRAPE_TIMEOUT:g} s") from None

    def _submit(self, query: Callable[[Connection], T], engine: Engine) -> Future[T]:
        try:
            read = self._readers.submit(self._read, query, engine)
        except RuntimeError:
            raise StoreUnavailableError("the outbox is closed") from None
        self._reads.add(read)
        read.add_done_callback(self._reads.discard)
        return read

    def _read(self, query: Callable[[Connection], T], engine: Engine) -> T:
        if not self._is_prepared:
            raise StoreUnavailableError(self.error or "the outbox is not open yet")
        pool = engine.pool
        try:
            with open_transaction(engine) as connection:
                return query(connection)
        except (exc.DBAPIError, exc.TimeoutError) as error:
            engine.dispose()
            raise StoreUnavailableError(dialect.describe_error(error)) from None
        finally:
            if pool is not engine.pool:
                pool.dispose()  # another read failed meanwhile and closed what was idle; ours is so only now

    def start(self) -> None:
        """Opens the database, brings its tables up to date, and starts the thread. Blocks.

        One that is locked, full or not there at the moment is tried again with each transaction.

        Raises:
            StoreUnusableError: waiting would not help.
        """
        try:
            self._prepare()
        except OSError as error:
            if not dialect.is_disk_full(error):
                raise StoreUnusableError(f"{error.strerror}") from None
            self._fail([], f"{error.strerror}")
        except UnknownDatabaseError as error:
            raise StoreUnusableError(error.error, error.hint) from None
        except exc.DBAPIError as error:
            if not dialect.is_temporary(error, self._database):
                raise StoreUnusableError(dialect.describe_error(error)) from None
            self._fail([], dialect.describe_error(error))
        self._writer.start()

    def start_read_only(self) -> None:
        """Opens the database of a running relay for reading alone: makes and changes nothing. Blocks.

        Raises:
            StoreUnusableError: waiting would not help, for example if the tables are of another version.
            StoreUnavailableError: the database cannot be read now.
        """
        try:
            with self._engines.reading.begin() as connection:
                check_tables(connection)
        except UnknownDatabaseError as error:
            raise StoreUnusableError(error.error, error.hint) from None
        except exc.DBAPIError as error:
            passing = dialect.is_temporary(error, self._database)
            raise (StoreUnavailableError if passing else StoreUnusableError)(dialect.describe_error(error)) from None
        self._is_prepared = True

    def stop(self) -> None:
        """The process is about to end; soon nobody waits any more for a database that hangs. For the event loop."""
        asyncio.get_running_loop().call_later(_STOP_SECONDS, self._stop_waiting)

    def _stop_waiting(self) -> None:
        self._answer_timeout.seconds = _CLOSING_TIMEOUT
        if self.error is not None:
            self._queue.fail_all(self.error)

    def close(self) -> None:
        """Does what waits, then closes the database. Blocks, for a second at most where that hangs."""
        ends = time.monotonic() + _CLOSE_SECONDS
        self._answer_timeout.seconds = _CLOSING_TIMEOUT
        self._queue.close()
        self._readers.shutdown(wait=False, cancel_futures=True)
        wait(self._reads, _CLOSE_SECONDS)
        if self._writer.is_alive():
            self._writer.join(max(0.0, ends - time.monotonic()))
        if self._writer.is_alive():
            log.warning("outbox closed during a transaction", error=self.error)
        self._engines.reading.dispose()
        self._engines.watching.dispose()

    # What follows runs on the writer's thread, and before that starts.

    def _prepare(self) -> None:
        """Makes the tables once, where there are none. Raises what `create_tables` raises, and OSError."""
        if self._is_prepared:
            return
        try:
            dialect.make_file(self._database)
        except FileCheckError as error:
            raise UnknownDatabaseError(error.error, error.hint) from None
        with open_transaction(self._engines.writing) as connection:
            created = create_tables(connection)
        if created:
            log.warning("new tables created in an empty database", database=str(self._database))
        self._is_prepared = True

    def _run_jobs(self) -> None:
        while count := self._run_next_batch():
            if count > _SMALL_BATCH:
                time.sleep(_BATCH_DELAY)
        self._engines.writing.dispose()

    def _run_next_batch(self) -> int:
        """How many jobs it was; none once the queue is closed. Nothing keeps them while the next ones are awaited."""
        jobs = self._queue.start_next(_MAX_BATCH)
        for group in [jobs] if dialect.is_sqlite(self._database) else _group_by_handler(jobs):
            self._commit(group)
        self._queue.discard(jobs)
        return len(jobs)

    def _commit(self, jobs: Sequence[Job], tries: int = _MAX_TRIES, *, short_lock_timeout: bool = False) -> None:
        jobs = [job for job in jobs if not job.future.done()]
        if not jobs:
            return
        try:
            results = self._run_transaction(jobs, short_lock_timeout=short_lock_timeout)
        except exc.DBAPIError as error:
            # SQLAlchemy's frames reference their own error, and with it all data of the job, until the next garbage
            # collection.
            traceback.clear_frames(error.__traceback__)
            if dialect.is_lock_timeout(error) and self._is_prepared:
                self._retry_locked(jobs, StoreUnavailableError(dialect.describe_error(error)))
            elif is_retryable(error) and tries > 1:
                self._commit(jobs, tries - 1, short_lock_timeout=short_lock_timeout)
            elif dialect.is_damaged(error) or dialect.is_query_error(error):
                self._commit_one_by_one(jobs, error)
            else:
                self._fail(jobs, dialect.describe_error(error))
        except UnknownDatabaseError as error:
            self._fail(jobs, str(error))
        except Exception as error:  # noqa: BLE001  # this thread outlives whatever happens to the database
            self._fail(jobs, repr(error))
        else:
            if self._error is not None:
                log.info("outbox can commit again")
                self._error = None
            self.committed_at = self.clock()
            self._queue.set_results(results)

    def _run_transaction(self, jobs: Sequence[Job], *, short_lock_timeout: bool) -> dict[Job, JobResult]:
        self._transaction_started = self._monotonic()
        try:
            self._prepare()
            with open_transaction(self._engines.writing) as connection:
                if not connection.info.get(_REVISION_CHECKED):  # a new connection may be to another database
                    check_tables(connection)
                    connection.info[_REVISION_CHECKED] = True
                if short_lock_timeout:
                    dialect.set_short_lock_timeout(connection)
                transaction = Transaction(
                    connection, dialect.read_clock(connection, self.clock), self.unmerged_channels
                )
                results: dict[Job, JobResult] = {}
                for group in _group_by_handler(jobs):
                    items = [job.item for job in group]
                    results |= zip(group, _run_in_savepoint(transaction, group[0].handler, items), strict=True)
                return results
        finally:
            self._transaction_started = None

    def _retry_locked(self, jobs: Sequence[Job], error: Exception) -> None:
        """Another process has locked what some of them need: the others are done, and these are queued again."""
        if len(jobs) > 1:
            for job in jobs:
                self._commit([job], short_lock_timeout=True)
        elif not self._queue.return_job(jobs[0]):
            self._queue.set_results({jobs[0]: (None, error)})

    def _commit_one_by_one(self, jobs: Sequence[Job], error: exc.DBAPIError) -> None:
        """Each is done alone, so that one that is wrong, or needs what is damaged, fails alone."""
        is_damaged = dialect.is_damaged(error)
        if is_damaged:
            self._dispose_engines()
        if len(jobs) == 1:
            result = StoreDamagedError(dialect.describe_error(error)) if is_damaged else error
            self._queue.set_results({jobs[0]: (None, result)})
            return
        for job in jobs:
            self._commit([job])

    def _fail(self, jobs: Sequence[Job], error: str) -> None:
        """Nothing can be committed for now; the callers of these jobs get the error."""
        if self._error != error:
            log.error("outbox cannot commit", error=error)
            self._error = error
        self._dispose_engines()
        if jobs:
            self._queue.set_results({job: (None, StoreUnavailableError(error)) for job in jobs})

    def _dispose_engines(self) -> None:
        """The next transaction reconnects: to the database that was mounted, replaced, repaired or restarted."""
        for engine in self._engines:
            engine.dispose()


@asynccontextmanager
async def open_store(
    database: DatabaseUrl,
    clock: Callable[[], float],
    unmerged_channels: frozenset[str] = frozenset(),
    monotonic: Callable[[], float] = time.monotonic,
    *,
    read_only: bool = False,
) -> AsyncIterator[Store]:
    """The store of a database; its tables are made if there are none.

    Args:
        database: a file, whose folder must exist, or a database of PostgreSQL.
        clock: unix seconds.
        unmerged_channels: the channels that get a delivery for each event.
        monotonic: seconds, to see how long a transaction takes.
        read_only: it is only read; nothing is made or changed.

    Raises:
        StoreUnusableError: the folder is missing, it is something else, or a newer keypulse wrote it.
    """
    store = Store(database, clock, unmerged_channels, monotonic)
    try:
        await asyncio.to_thread(store.start_read_only if read_only else store.start)
        yield store
    except StoreUnusableError as error:
        name = database.database if dialect.is_sqlite(database) else database
        cause = f"cannot use the database {name}: {error.error}"
        raise StoreUnusableError(cause, error.hint or DATABASE_HINT) from None
    finally:
        await asyncio.to_thread(store.close)
