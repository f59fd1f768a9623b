"""An SQLite file or a PostgreSQL database behind asyncio: functions on a connection go in, results come out.

Writes of this process wait for each other on one thread; reads have connections of their own and never wait for a
write. What `write` and `change` return is committed, and durable.
"""

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import Executor, ThreadPoolExecutor
from typing import Final, Self, TypeVar

import structlog
from sqlalchemy import URL, Connection, Engine, MetaData, exc, func, inspect, select

from shared.keyring import engine
from shared.sql.engine import is_retryable, open_transaction
from shared.sql.sqlite_file import FileLostError

ANSWER_TIMEOUT_SECONDS: Final = 5.0
"""How long a caller waits, its turn behind other writers included."""
_MAX_TRIES: Final = 3
_CLOCK_QUERY: Final = select(func.extract("epoch", func.clock_timestamp()))

T = TypeVar("T")
log = structlog.get_logger(__name__)


class DatabaseError(Exception):
    """The one error of this room: locked, full, unreachable. Its text is the database's own, and shows no values."""


class Database:
    """An open database. `close` it.

    Args:
        url: of SQLite or PostgreSQL; see `shared.sql.location.parse_database_url`.
        clock: unix seconds by this machine, which is SQLite's clock too; PostgreSQL has its own.
    """

    def __init__(self, url: URL, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._write_engine, self._read_engine = engine.create_engines(url)
        self._write_thread = ThreadPoolExecutor(1, "database-writer")
        self._read_threads = ThreadPoolExecutor(engine.READER_COUNT, "database-reader")

    @classmethod
    async def open(cls, url: URL, *tables: MetaData, clock: Callable[[], float] = time.time) -> Self:
        """Opens `url`, makes a missing file and the missing ones of `tables`. Raises DatabaseError."""
        database = cls(url, clock)
        try:
            await asyncio.to_thread(_create_missing_file, url)
            if await database.complete(*tables):
                log.warning("created tables in an empty database", database=str(url))
        except BaseException:
            await database.close()
            raise
        return database

    async def complete(self, *tables: MetaData) -> bool:
        """Makes those of `tables` that are missing; whether there were none before. Raises DatabaseError."""

        def create(connection: Connection) -> bool:
            there = inspect(connection)
            empty = not any(there.has_table(name) for some in tables for name in some.tables)
            for some in tables:
                some.create_all(connection)
                _check_columns(connection, some)
            return empty and bool(tables)

        return await self.write_exclusively(create)

    async def read(self, work: Callable[[Connection], T], *, seconds: float = ANSWER_TIMEOUT_SECONDS) -> T:
        """What `work` finds, within `seconds`. Raises DatabaseError."""

        def unhurried(connection: Connection) -> T:
            engine.extend_statement_timeout(connection, seconds)
            try:
                return work(connection)
            finally:
                engine.reset_statement_timeout(connection)

        patient = seconds > ANSWER_TIMEOUT_SECONDS
        return await self._run(self._read_threads, self._read_engine, unhurried if patient else work, seconds)

    async def write(self, work: Callable[[Connection], T]) -> T:
        """What `work` returns, once it is committed; an exception of `work` rolls it back.

        Raises:
            DatabaseError: nothing is committed; after "no answer" alone it may still be.
        """
        return await self._run(self._write_thread, self._write_engine, work)

    async def write_exclusively(self, work: Callable[[Connection], T]) -> T:
        """Like `write`, and no other `change` of any process goes on meanwhile: what `work` reads stays true."""

        def undisturbed(connection: Connection) -> T:
            engine.lock_keyring(connection)
            return work(connection)

        return await self.write(undisturbed)

    def read_clock(self, connection: Connection) -> float:
        """The time by the database's clock, unix seconds."""
        return self._clock() if connection.dialect.name == "sqlite" else float(connection.execute(_CLOCK_QUERY).scalar_one())

    async def close(self) -> None:
        """Waits for the statements under way, each of which is bounded, and closes all connections."""
        for threads in (self._write_thread, self._read_threads):
            await asyncio.to_thread(threads.shutdown, cancel_futures=True)
        for some in (self._write_engine, self._read_engine):
            some.dispose()

    async def _run(
        self, threads: Executor, engine: Engine, work: Callable[[Connection], T], seconds: float = ANSWER_TIMEOUT_SECONDS
    ) -> T:
        try:
            async with asyncio.timeout(seconds):
                return await asyncio.get_running_loop().run_in_executor(threads, _run_transaction, engine, work)
        except TimeoutError:
            raise DatabaseError(f"no answer within {seconds:g} s") from None


def _run_transaction(engine: Engine, work: Callable[[Connection], T], tries_left: int = _MAX_TRIES) -> T:
    try:
        with open_transaction(engine) as connection:
            return work(connection)
    except exc.IntegrityError:
        raise  # a lost race: its meaning is known only to `work`'s owner
    except exc.SQLAlchemyError as error:
        if tries_left > 1 and is_retryable(error):
            return _run_transaction(engine, work, tries_left - 1)
        raise DatabaseError(engine.words(error)) from None


def _create_missing_file(url: URL) -> None:
    try:
        engine.create_file(url)
    except FileLostError as error:
        raise DatabaseError(str(error)) from None
    except OSError as error:
        raise DatabaseError(f"unable to open database file: {error.strerror}") from None


def _check_columns(connection: Connection, tables: MetaData) -> None:
    """Whether the tables that were there already have the columns that we need."""
    found = inspect(connection)
    for table in tables.sorted_tables:
        there = {column["name"] for column in found.get_columns(table.name)}
        missing = {column.name for column in table.columns} - there
        if missing:
            raise DatabaseError(
                f"its table {table.name} has no column {', '.join(sorted(missing))}: an older keypulse or another "
                "program made it; set another `database`"
            )
