"""The open outbox: functions on a transaction go in, their results come out after the commit.

One thread commits all waiting jobs together (group commit): many webhooks and receipts share one fsync, and each is
answered only after it. Reads have threads and connections of their own, and never wait for the writer.
"""

import asyncio
import math
import time
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final, TypeVar

import structlog
from sqlalchemy import Connection, Engine, exc

from services.relay.outbox.engine import dialect
from services.relay.outbox.engine.batching import Job, Transaction
from services.relay.outbox.engine.read_batching import ReadBatches, ReadHandler
from services.relay.outbox.engine.revision import UnknownDatabaseError, check_tables
from services.relay.outbox.engine.work_queue import (
    QueuedJob,
    StoreDamagedError,
    StoreUnavailableError,
    WorkQueue,
    fail_job,
)
from services.relay.outbox.engine.writer import Writer
from shared.sql.answer_timeout import AnswerTimeout
from shared.sql.database_url import DatabaseUrl
from shared.sql.engine import open_transaction

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
"""For how long a damage counts. Whoever met one tries again every second or two."""

T = TypeVar("T")
I = TypeVar("I")  # noqa: E741  # an item of work
log = structlog.get_logger(__name__)


class StoreUnusableError(Exception):
    """The database cannot be opened at all; the message is one sentence with the next step."""


class Store:
    """The open database.

    Args:
        database: where it is.
        clock: unix seconds, by this machine.
        unmerged_channels: the channels that get every event as a delivery of its own.
        monotonic: seconds, to see how long a transaction takes.
    """

    def __init__(
        self,
        database: DatabaseUrl,
        clock: Callable[[], float],
        unmerged_channels: frozenset[str],
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self.clock = clock
        self._database = database
        self._answer_timeout = AnswerTimeout()
        self._engines = dialect.create_engines(database, self._answer_timeout)
        self._read_engine = self._engines.reading
        self._queue = WorkQueue()
        self._writer = Writer(database, self._engines, self._queue, clock, unmerged_channels, monotonic)
        self._readers = ThreadPoolExecutor(dialect.READERS, "outbox read")
        self._reads: set[Future[Any]] = set()
        self._read_batches = ReadBatches(self.read)
        self._monotonic = monotonic
        self._damage = ""
        self._damage_ends = -math.inf

    @property
    def error(self) -> str | None:
        """Why the last transaction failed, or that one hangs; None while healthy."""
        return self._writer.error or self.damage

    @property
    def damage(self) -> str | None:
        """What says that the workers cannot read the outbox; None once they have not met that for a while."""
        return f"it is damaged, restore a backup: {self._damage}" if self._monotonic() < self._damage_ends else None

    @property
    def committed_at(self) -> float | None:
        """When this process last committed something, unix seconds by this machine; None before the first time."""
        return self._writer.committed_at

    def set_unmerged_channels(self, unmerged_channels: frozenset[str]) -> None:
        """From now on, these channels alone get every event as a delivery of its own."""
        self._writer.unmerged_channels = unmerged_channels

    async def run(self, work: Callable[[Transaction], T]) -> T:
        """What `work` returns, once it is on the disk; an exception of `work` undoes it alone.

        Raises:
            StoreUnavailableError: it is not known to be committed.
        """
        return await self._do(lambda transaction, _: [work(transaction)], None)

    async def batch(self, handler: Callable[[Transaction, Sequence[I]], Sequence[T]], item: I, size: int = 0) -> T:
        """What `handler` returns for `item`, once it is on the disk.

        `handler` gets all items that wait for it in one call. Deliveries depend on it: see `damage`.

        Args:
            handler: does its items in one transaction.
            item: one of them.
            size: its bytes, where they may be many.

        Raises:
            StoreUnavailableError: it is not known to be committed.
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
        work = QueuedJob(Job(handler, item), done, size)
        self._queue.put(work)
        timeout = loop.call_later(_REPLY_TIMEOUT, fail_job, done, f"no answer within {_REPLY_TIMEOUT:g} s")
        try:
            return await done
        finally:
            timeout.cancel()
            self._queue.cancel(work)
            # An exception that `done` holds holds this frame: without a cycle, all of it is gone at once.
            del work, done

    async def read(self, query: Callable[[Connection], T]) -> T:
        """What `query` reads, on a connection of its own. Raises StoreUnavailableError."""
        return await self._wait_for(self._submit(query))

    async def read_change_marker(self) -> str:
        """A text that differs from the last one wherever any process has committed something since.

        Raises:
            StoreUnavailableError: the database cannot be read.
        """
        return await self._wait_for(self._submit(dialect.read_change_marker, self._engines.watching))

    async def _wait_for(self, future: Future[T]) -> T:
        reading = asyncio.wrap_future(future)
        try:
            async with asyncio.timeout(_REPLY_TIMEOUT):
                return await reading
        except TimeoutError:
            raise StoreUnavailableError(f"no answer within {_REPLY_TIMEOUT:g} s") from None
        finally:
            del reading  # as above

    async def read_batch(self, handler: ReadHandler[I, T], item: I) -> T:
        """What `handler` reads for `item`, together with other items that wait for it. Raises StoreUnavailableError."""
        return await self._read_batches.read(handler, item)

    def read_blocking(self, query: Callable[[Connection], T]) -> T:
        """The same for the thread of a scrape, within 2 s. Raises StoreUnavailableError."""
        reading = self._submit(query)
        try:
            return reading.result(_SCRAPE_TIMEOUT)
        except TimeoutError:
            reading.cancel()
            raise StoreUnavailableError(f"no answer within {_SCRAPE_TIMEOUT:g} s") from None

    def start(self) -> None:
        """Opens the database, brings its tables up to date, and starts the thread. Blocks.

        One that is locked, full or not there at the moment is tried again with each transaction.

        Raises:
            StoreUnusableError: waiting would not help.
        """
        try:
            self._writer.prepare()
        except OSError as error:
            if not dialect.is_disk_full(error):
                raise StoreUnusableError(f"{error.strerror}") from None
            self._writer.fail([], f"{error.strerror}")
        except UnknownDatabaseError as error:
            raise StoreUnusableError(str(error)) from None
        except exc.DBAPIError as error:
            if not dialect.is_temporary(error, self._database):
                raise StoreUnusableError(dialect.describe_error(error)) from None
            self._writer.fail([], dialect.describe_error(error))
        self._writer.start()

    def start_read_only(self) -> None:
        """For who only reads, beside whoever writes: makes and changes nothing. Blocks.

        Raises:
            StoreUnusableError: waiting would not help, for example if the tables are of another version.
            StoreUnavailableError: the database cannot be read now.
        """
        try:
            with self._read_engine.begin() as connection:
                check_tables(connection)
        except UnknownDatabaseError as error:
            raise StoreUnusableError(str(error)) from None
        except exc.DBAPIError as error:
            passing = dialect.is_temporary(error, self._database)
            raise (StoreUnavailableError if passing else StoreUnusableError)(dialect.describe_error(error)) from None
        self._writer.is_prepared = True

    def stop(self) -> None:
        """The process is about to end; soon nobody waits any more for a database that hangs. For the event loop."""
        asyncio.get_running_loop().call_later(_STOP_SECONDS, self._stop_waiting)

    def close(self) -> None:
        """Does what waits, then closes the database. Blocks, for a second at most where that hangs."""
        ends = time.monotonic() + _CLOSE_SECONDS
        self._answer_timeout.seconds = _CLOSING_TIMEOUT
        self._queue.close()
        self._readers.shutdown(wait=False, cancel_futures=True)
        wait(self._reads, _CLOSE_SECONDS)
        if not self._writer.join(max(0.0, ends - time.monotonic())):
            log.warning("outbox closed during a transaction", error=self.error)
        self._read_engine.dispose()
        self._engines.watching.dispose()

    def _stop_waiting(self) -> None:
        self._answer_timeout.seconds = _CLOSING_TIMEOUT
        if self.error is not None:
            self._queue.fail_all(self.error)

    def _submit(self, query: Callable[[Connection], T], engine: Engine | None = None) -> Future[T]:
        try:
            read = self._readers.submit(self._read, query, engine or self._read_engine)
        except RuntimeError:
            raise StoreUnavailableError("the outbox is closed") from None
        self._reads.add(read)
        read.add_done_callback(self._reads.discard)
        return read

    def _read(self, query: Callable[[Connection], T], engine: Engine) -> T:
        if not self._writer.is_prepared:
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
        unmerged_channels: the channels that get every event as a delivery of its own.
        monotonic: seconds, to see how long a transaction takes.
        read_only: it is only read; nothing is made or changed.

    Raises:
        StoreUnusableError: the folder is missing, it is something else, or a newer keypulse wrote it.
    """
    store = Store(database, clock, unmerged_channels, monotonic)
    folder = Path(str(database.database)).parent
    if dialect.is_sqlite(database) and not await asyncio.to_thread(folder.is_dir):
        raise StoreUnusableError(f"the folder {folder} does not exist; create it, or set another `database`")
    try:
        await asyncio.to_thread(store.start_read_only if read_only else store.start)
        yield store
    except StoreUnusableError as error:
        name = database.database if dialect.is_sqlite(database) else database
        raise StoreUnusableError(f"cannot use the database {name}: {error}") from None
    finally:
        await asyncio.to_thread(store.close)
