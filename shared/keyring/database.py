"""An SQLite file behind asyncio: functions on a connection go in, their results come out, off the event loop.

Writes wait for each other on one thread, as SQLite allows a single writer anyway; reads never wait for a write (WAL).
A commit is on the disk before `write` returns (`synchronous=FULL`).
"""

import asyncio
import sqlite3
from collections.abc import Callable
from concurrent.futures import Executor, ThreadPoolExecutor
from pathlib import Path
from typing import Final, Self, TypeVar

from sqlalchemy import URL, Connection, MetaData, create_engine, event, exc
from sqlalchemy.pool import ConnectionPoolEntry

_LOCK_SECONDS: Final = 2.0
"""How long a statement waits for another process's lock."""
_ANSWER_SECONDS: Final = 5.0
"""How long a caller waits, its turn behind other writers included."""

T = TypeVar("T")


class DatabaseError(Exception):
    """The one error of this room: locked, full, unreadable, no database. Its text is SQLite's own, without values."""


class Database:
    """An open SQLite file. `close` it."""

    def __init__(self, file: Path) -> None:
        self._engine = create_engine(
            URL.create("sqlite", database=str(file)),
            connect_args={"timeout": _LOCK_SECONDS},
            hide_parameters=True,  # an error's text must never show a record or a wrapped key
        )
        event.listen(self._engine, "connect", _durable)
        self._writer = ThreadPoolExecutor(1, "database-writer")
        self._readers = ThreadPoolExecutor(2, "database-reader")

    @classmethod
    async def opened(cls, file: Path, *tables: MetaData) -> Self:
        """Opens `file`, makes it and the missing ones of `tables` where needed. Raises DatabaseError."""

        def create(connection: Connection) -> None:
            for some in tables:
                some.create_all(connection)

        database = cls(file)
        try:
            await database.write(create)
        except BaseException:
            await database.close()
            raise
        return database

    async def read(self, work: Callable[[Connection], T]) -> T:
        """What `work` finds. Raises DatabaseError."""
        return await self._run(self._readers, work)

    async def write(self, work: Callable[[Connection], T]) -> T:
        """What `work` returns, once it is committed; an exception of `work` rolls it back.

        Raises:
            DatabaseError: nothing is committed; after "no answer" alone it may still be.
        """
        return await self._run(self._writer, work)

    async def close(self) -> None:
        """Waits for the statements under way (each ends within the wait for a lock) and closes the file."""
        for threads in (self._writer, self._readers):
            await asyncio.to_thread(threads.shutdown, cancel_futures=True)
        self._engine.dispose()

    async def _run(self, threads: Executor, work: Callable[[Connection], T]) -> T:
        def transaction() -> T:
            with self._engine.begin() as connection:
                return work(connection)

        try:
            async with asyncio.timeout(_ANSWER_SECONDS):
                return await asyncio.get_running_loop().run_in_executor(threads, transaction)
        except TimeoutError:
            raise DatabaseError(f"no answer within {_ANSWER_SECONDS:g} s") from None
        except exc.IntegrityError:
            raise  # a lost race: its meaning is known only to `work`'s owner
        except exc.DBAPIError as error:
            raise DatabaseError(str(error.orig)) from None


def _durable(connection: sqlite3.Connection, _entry: ConnectionPoolEntry) -> None:
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=FULL")
