"""One thread that owns the SQLite file: functions on a connection go in, their results come out after the commit.

All that waits is done in one transaction (group commit): many webhooks and receipts share one fsync, and each is
answered only after it. The file is in WAL mode with `synchronous=FULL`, so what was answered survives a loss of power.
"""

import asyncio
import queue
import sqlite3
import threading
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Future
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeVar

import structlog
from sqlalchemy import URL, Connection, QueuePool, create_engine, event, exc
from sqlalchemy.pool import ConnectionPoolEntry

from services.relay.outbox import schema

_WAITING: Final = 1024
"""How many pieces of work may wait; one more is refused, so that memory is bounded."""
_TOGETHER: Final = 256
"""How many of them share one transaction at most."""
_LOCK_SECONDS: Final = 2.0
"""How long a transaction waits for another process's lock on the file."""
_ANSWER_SECONDS: Final = 8.0
"""How long a caller waits, its turn included: less than the 10 s that Alertmanager gives a webhook at least."""

T = TypeVar("T")
log = structlog.get_logger(__name__)


class StoreUnavailableError(Exception):
    """Nothing was committed: locked, full, read-only, closed, or too much is waiting. Try again later."""


class StoreUnusableError(Exception):
    """The file cannot be opened at all; the message is one sentence with the next step."""


class _Work(NamedTuple):
    do: Callable[[Connection], Any]
    done: "Future[Any]"


class Store:
    """The open file. `problem` says why the last transaction failed; None where it did not."""

    def __init__(self, file: Path, clock: Callable[[], float]) -> None:
        self.clock = clock
        self.problem: str | None = None
        self._file = file
        self._engine = create_engine(
            URL.create("sqlite", database=str(file)),
            poolclass=QueuePool,
            pool_size=1,
            max_overflow=0,
            connect_args={"timeout": _LOCK_SECONDS, "check_same_thread": False},
            hide_parameters=True,  # an error's text must show no payload
        )
        event.listen(self._engine, "connect", _on_connect)
        event.listen(self._engine, "begin", _on_begin)
        self._work: queue.Queue[_Work | None] = queue.Queue(_WAITING)
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="outbox", daemon=True)

    def submit(self, do: Callable[[Connection], T]) -> "Future[T]":
        """Lets the thread do it. The future holds the result once it is on the disk; cancelled before, it is not done.

        Raises:
            StoreUnavailableError: also the future may hold it.
        """
        done: Future[T] = Future()
        if self._closed:
            raise StoreUnavailableError("the outbox is closed")
        try:
            self._work.put_nowait(_Work(do, done))
        except queue.Full:
            raise StoreUnavailableError(f"{_WAITING} pieces of work wait for the outbox already") from None
        return done

    async def run(self, do: Callable[[Connection], T]) -> T:
        """What `do` returns, once it is on the disk; an exception of `do` undoes it alone.

        Raises:
            StoreUnavailableError: nothing was committed; after "no answer" alone it may still be.
        """
        try:
            async with asyncio.timeout(_ANSWER_SECONDS):
                return await asyncio.wrap_future(self.submit(do))
        except TimeoutError:
            raise StoreUnavailableError(f"no answer within {_ANSWER_SECONDS:g} s") from None

    def start(self) -> None:
        """Opens the file, makes its tables, and starts the thread. Blocks. Raises StoreUnusableError."""
        try:
            self._file.touch(mode=0o600)  # it will hold what alerts say; SQLite gives its other files the same mode
            with self._engine.begin() as connection:
                _prepare(connection)
        except OSError as error:
            raise StoreUnusableError(f"{error.strerror}") from None
        except exc.DBAPIError as error:
            raise StoreUnusableError(str(error.orig)) from None
        self._thread.start()

    def close(self) -> None:
        """Does what waits, then closes the file. Blocks for as long as that takes."""
        self._closed = True
        if self._thread.is_alive():
            self._work.put(None)
            self._thread.join()
        self._engine.dispose()

    def _run(self) -> None:
        going = True
        while going:
            batch = [self._work.get()]
            while len(batch) < _TOGETHER and not self._work.empty():
                batch.append(self._work.get())
            going = None not in batch
            work = [work for work in batch if work is not None and work.done.set_running_or_notify_cancel()]
            if work:
                self._commit(work)

    def _commit(self, batch: list[_Work]) -> None:
        try:
            with self._engine.begin() as connection:
                results = [_alone(connection, work.do) for work in batch]
        except Exception as error:  # noqa: BLE001  # this thread outlives whatever happens to the file
            self._failed(batch, str(error.orig) if isinstance(error, exc.DBAPIError) else repr(error))
            return
        if self.problem is not None:
            log.info("the outbox works again")
            self.problem = None
        for work, (result, problem) in zip(batch, results, strict=True):
            if problem is None:
                work.done.set_result(result)
            else:
                work.done.set_exception(problem)

    def _failed(self, batch: list[_Work], problem: str) -> None:
        if self.problem != problem:
            log.error("the outbox cannot commit", problem=problem)
            self.problem = problem
        self._engine.dispose()  # the next transaction opens the file anew: what was mounted or replaced is seen
        for work in batch:
            work.done.set_exception(StoreUnavailableError(problem))


@asynccontextmanager
async def opened(file: Path, clock: Callable[[], float]) -> AsyncIterator[Store]:
    """The store of `file`, made where it does not exist.

    Args:
        file: the SQLite file; its folder must exist.
        clock: unix seconds.

    Raises:
        StoreUnusableError: the folder is missing, it is no database, or a newer keypulse wrote it.
    """
    store = Store(file, clock)
    if not await asyncio.to_thread(file.parent.is_dir):
        raise StoreUnusableError(f"the folder {file.parent} does not exist; create it, or set another `database`")
    try:
        await asyncio.to_thread(store.start)
    except StoreUnusableError as error:
        raise StoreUnusableError(f"cannot use the database {file}: {error}") from None
    try:
        yield store
    finally:
        await asyncio.to_thread(store.close)


def _alone(connection: Connection, do: Callable[[Connection], Any]) -> tuple[Any, Exception | None]:
    """One piece of work in a savepoint: its own exception undoes it alone, the database's fails the whole batch."""
    # By hand: where the database fails, SQLite has ended the transaction, and undoing the savepoint would fail again.
    connection.exec_driver_sql("SAVEPOINT work")
    try:
        result, problem = do(connection), None
    except exc.DBAPIError:
        raise
    except Exception as error:  # noqa: BLE001  # handed to whoever waits for this piece of work
        result, problem = None, error
        connection.exec_driver_sql("ROLLBACK TO work")
    connection.exec_driver_sql("RELEASE work")
    return result, problem


def _prepare(connection: Connection) -> None:
    version = connection.exec_driver_sql("PRAGMA user_version").scalar_one()
    if version > schema.VERSION:
        raise StoreUnusableError(
            f"a newer keypulse wrote it (its version is {version}, this program knows {schema.VERSION}); "
            "run that one, or set another `database`"
        )
    if version == 0:
        if connection.exec_driver_sql("SELECT count(*) FROM sqlite_schema").scalar_one():
            raise StoreUnusableError("another program's tables are in it; set another `database`")
        schema.metadata.create_all(connection)
        connection.exec_driver_sql(f"PRAGMA user_version = {schema.VERSION}")


def _on_connect(connection: sqlite3.Connection, _entry: ConnectionPoolEntry) -> None:
    connection.isolation_level = None  # transactions begin where `_on_begin` says, not where the driver guesses
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=FULL")
    connection.execute("PRAGMA foreign_keys=ON")


def _on_begin(connection: Connection) -> None:
    connection.exec_driver_sql("BEGIN IMMEDIATE")
