"""The open outbox: functions on a transaction go in, their results come out after the commit.

All that waits is done together by one thread (group commit): many webhooks and receipts share one fsync, and each is
answered only after it. Reads have threads and connections of their own, and never wait for the writer.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final, TypeVar

import structlog
from sqlalchemy import Connection, exc

from services.relay.outbox import dialect
from services.relay.outbox.migrate import UnknownDatabaseError, check
from services.relay.outbox.together import Piece, Transaction
from services.relay.outbox.waiting import Queue, StoreUnavailableError, Work, too_late
from services.relay.outbox.writer import Writer
from shared.sql.engine import transaction
from shared.sql.location import Database
from shared.sql.patience import Patience

_ANSWER_SECONDS: Final = 8.0
"""How long a caller waits, its turn included: less than the 10 s that Alertmanager gives a webhook at least."""
_SCRAPE_SECONDS: Final = 2.0
"""How long a scrape waits for what it asks, so that it still brings the other metrics in time."""
_STOP_SECONDS: Final = 4.0
"""How long callers wait after `stop`: less than the server's drain, so that a webhook still gets its 503."""
_CLOSE_SECONDS: Final = 1.0
"""How long `close` waits for the database."""
_LAST_SECONDS: Final = 0.5
"""How long the connections to it then wait for an answer."""

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
        unmerged: the channels on which every event is told by itself.
        monotonic: seconds, to see how long a transaction takes.
    """

    def __init__(
        self,
        database: Database,
        clock: Callable[[], float],
        unmerged: frozenset[str],
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self.clock = clock
        self._database = database
        self._patience = Patience()
        writing, self._reading = dialect.engines(database, self._patience)
        self._queue = Queue()
        self._writer = Writer(database, writing, self._reading, self._queue, clock, unmerged, monotonic)
        self._readers = ThreadPoolExecutor(dialect.READERS, "outbox read")
        self._reads: set[Future[Any]] = set()

    @property
    def problem(self) -> str | None:
        """Why the last transaction failed, or that one hangs; None where all is well."""
        return self._writer.problem

    def tell_alone(self, unmerged: frozenset[str]) -> None:
        """From now on, every event is told by itself on these channels alone."""
        self._writer.unmerged = unmerged

    async def run(self, do: Callable[[Transaction], T]) -> T:
        """What `do` returns, once it is on the disk; an exception of `do` undoes it alone.

        Raises:
            StoreUnavailableError: it is not known to be committed.
        """
        return await self.batch(lambda transaction, _: [do(transaction)], None)

    async def batch(self, do: Callable[[Transaction, Sequence[I]], Sequence[T]], item: I, size: int = 0) -> T:
        """What `do` returns for `item`, once it is on the disk; `do` gets all items that wait for it in one call.

        Args:
            do: does its items in one transaction.
            item: one of them.
            size: its bytes, where they may be many.

        Raises:
            StoreUnavailableError: it is not known to be committed.
        """
        loop = asyncio.get_running_loop()
        done: asyncio.Future[T] = loop.create_future()
        work = Work(Piece(do, item), done, size)
        self._queue.put(work)
        late = loop.call_later(_ANSWER_SECONDS, too_late, done, f"no answer within {_ANSWER_SECONDS:g} s")
        try:
            return await done
        finally:
            late.cancel()
            self._queue.leave(work)
            # An exception that `done` holds holds this frame: without a cycle, all of it is gone at once.
            del work, done

    async def read(self, do: Callable[[Connection], T]) -> T:
        """What `do` reads, on a connection of its own. Raises StoreUnavailableError."""
        reading = asyncio.wrap_future(self._submitted(do))
        try:
            async with asyncio.timeout(_ANSWER_SECONDS):
                return await reading
        except TimeoutError:
            raise StoreUnavailableError(f"no answer within {_ANSWER_SECONDS:g} s") from None
        finally:
            del reading  # as above

    def read_blocking(self, do: Callable[[Connection], T]) -> T:
        """The same for the thread of a scrape, within 2 s. Raises StoreUnavailableError."""
        reading = self._submitted(do)
        try:
            return reading.result(_SCRAPE_SECONDS)
        except TimeoutError:
            reading.cancel()
            raise StoreUnavailableError(f"no answer within {_SCRAPE_SECONDS:g} s") from None

    def start(self) -> None:
        """Opens the database, brings its tables up to date, and starts the thread. Blocks.

        One that is locked, full or not there at the moment is tried again with each transaction.

        Raises:
            StoreUnusableError: waiting would not help.
        """
        try:
            self._writer.prepare()
        except OSError as error:
            if not dialect.is_full(error):
                raise StoreUnusableError(f"{error.strerror}") from None
            self._writer.failed([], f"{error.strerror}")
        except UnknownDatabaseError as error:
            raise StoreUnusableError(str(error)) from None
        except exc.DBAPIError as error:
            if not dialect.is_passing(error, self._database):
                raise StoreUnusableError(dialect.words(error)) from None
            self._writer.failed([], dialect.words(error))
        self._writer.start()

    def start_reading(self) -> None:
        """For who only reads, beside whoever writes: makes and changes nothing. Blocks.

        Raises:
            StoreUnusableError: waiting would not help, as where the tables are of another version.
            StoreUnavailableError: the database cannot be read now.
        """
        try:
            with self._reading.begin() as connection:
                check(connection)
        except UnknownDatabaseError as error:
            raise StoreUnusableError(str(error)) from None
        except exc.DBAPIError as error:
            passing = dialect.is_passing(error, self._database)
            raise (StoreUnavailableError if passing else StoreUnusableError)(dialect.words(error)) from None
        self._writer.prepared = True

    def stop(self) -> None:
        """The process is about to end; soon nobody waits any more for a database that hangs. For the event loop."""
        asyncio.get_running_loop().call_later(_STOP_SECONDS, self._give_up)

    def close(self) -> None:
        """Does what waits, then closes the database. Blocks, for a second at most where that hangs."""
        ends = time.monotonic() + _CLOSE_SECONDS
        self._patience.seconds = _LAST_SECONDS
        self._queue.close()
        self._readers.shutdown(wait=False, cancel_futures=True)
        wait(self._reads, _CLOSE_SECONDS)
        if not self._writer.join(max(0.0, ends - time.monotonic())):
            log.warning("the outbox is left in the middle of a transaction", problem=self.problem)
        self._reading.dispose()

    def _give_up(self) -> None:
        self._patience.seconds = _LAST_SECONDS
        if self.problem is not None:
            self._queue.give_up(self.problem)

    def _submitted(self, do: Callable[[Connection], T]) -> Future[T]:
        try:
            read = self._readers.submit(self._read, do)
        except RuntimeError:
            raise StoreUnavailableError("the outbox is closed") from None
        self._reads.add(read)
        read.add_done_callback(self._reads.discard)
        return read

    def _read(self, do: Callable[[Connection], T]) -> T:
        if not self._writer.prepared:
            raise StoreUnavailableError(self.problem or "the outbox is not open yet")
        pool = self._reading.pool
        try:
            with transaction(self._reading) as connection:
                return do(connection)
        except (exc.DBAPIError, exc.TimeoutError) as error:
            self._reading.dispose()
            raise StoreUnavailableError(dialect.words(error)) from None
        finally:
            if pool is not self._reading.pool:
                pool.dispose()  # another read failed meanwhile and closed what was idle; ours is so only now


@asynccontextmanager
async def opened(
    database: Database,
    clock: Callable[[], float],
    unmerged: frozenset[str] = frozenset(),
    monotonic: Callable[[], float] = time.monotonic,
    *,
    to_read: bool = False,
) -> AsyncIterator[Store]:
    """The store of a database; its tables are made where there are none.

    Args:
        database: a file, whose folder must exist, or a database of PostgreSQL.
        clock: unix seconds.
        unmerged: the channels on which every event is told by itself.
        monotonic: seconds, to see how long a transaction takes.
        to_read: it is only read; nothing is made or changed.

    Raises:
        StoreUnusableError: the folder is missing, it is something else, or a newer keypulse wrote it.
    """
    store = Store(database, clock, unmerged, monotonic)
    folder = Path(str(database.database)).parent
    if dialect.is_sqlite(database) and not await asyncio.to_thread(folder.is_dir):
        raise StoreUnusableError(f"the folder {folder} does not exist; create it, or set another `database`")
    try:
        await asyncio.to_thread(store.start_reading if to_read else store.start)
        yield store
    except StoreUnusableError as error:
        name = database.database if dialect.is_sqlite(database) else database
        raise StoreUnusableError(f"cannot use the database {name}: {error}") from None
    finally:
        await asyncio.to_thread(store.close)
