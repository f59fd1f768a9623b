"""What SQLite and PostgreSQL do differently; the rest of the outbox is written once.

SQLite: WAL with `synchronous=FULL`, one writer at a time, its transactions `IMMEDIATE`; the clock is this machine's.
PostgreSQL: a commit waits for the disk; every other wait is bounded, so that neither a server that hangs nor a replica
that is stopped in the middle of a transaction blocks anybody for long; the clock is the server's, which all replicas
share.
"""

import errno
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, NamedTuple

from sqlalchemy import Connection, Engine, Table, exc, func, select, text
from sqlalchemy.dialects import postgresql, sqlite

from shared.sql.answer_timeout import AnswerTimeout
from shared.sql.database_url import DatabaseUrl
from shared.sql.engine import create_postgresql_engine, create_sqlite_engine, has_transaction_timeout
from shared.sql.sqlite_file import SqliteFile

READERS: Final = 4
"""How many may read at once."""
_OPTIONS: Final = "-c lock_timeout=1100ms -c statement_timeout=6500ms -c idle_in_transaction_session_timeout=5s"
"""While a transaction waits for a lock all others wait for it; but after a second PostgreSQL finds a deadlock, and ends
one of the two, where this time-out would end both."""
_LOCK_TIMEOUT: Final = "55P03"
"""Lock time-out (ibid.)."""
_WRONG_TABLES: Final = {"42P01", "42703", "42501"}
"""No such table or column, or no permission (ibid.): our tables were removed, or it is another database."""
_DISK_FULL: Final = {errno.ENOSPC, errno.EDQUOT}
_SQLITE_TEMPORARY: Final = {
    sqlite3.SQLITE_BUSY,
    sqlite3.SQLITE_LOCKED,
    sqlite3.SQLITE_FULL,
    sqlite3.SQLITE_IOERR,  # on a full disk too, where the files beside the database cannot grow
}
_SQLITE_DAMAGED: Final = {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}
_POSTGRESQL_DAMAGED: Final = {"XX001", "XX002"}
"""Data or an index is corrupted (ibid.)."""
_UNDECODABLE: Final = "Could not decode to UTF-8"
"""Of Python's own module, without a code: a text holds other bytes."""
_POSTGRESQL_TEMPORARY: Final = (
    "starting up",
    "shutting down",
    "too many",
    "connection slots",
    "recovery",
    "administrator",
)
_NOW: Final = select(func.extract("epoch", func.clock_timestamp()))
_CHANGE_MARKERS: Final = {
    # What other connections to the file have committed, as this one sees it: https://sqlite.org/pragma.html
    "sqlite": "PRAGMA data_version",
    # Which transactions are visible: of those that write, and not yet of one that is about to commit, which
    # `pg_current_wal_lsn()` would show.
    "postgresql": "SELECT CAST(pg_current_snapshot() AS text)",
}


class Engines(NamedTuple):
    """The connections to one database."""

    writing: Engine
    """One connection."""
    reading: Engine
    watching: Engine
    """One connection, for `read_change_marker` alone: SQLite compares what it sees with what it saw before."""


def create_engines(database: DatabaseUrl, answer_timeout: AnswerTimeout | None = None) -> Engines:
    """They connect when they are used.

    Args:
        database: where it is.
        answer_timeout: how long connections to PostgreSQL wait for an answer.
    """
    if is_sqlite(database):
        file = SqliteFile(database)
        return Engines(
            create_sqlite_engine(file, 1, "BEGIN IMMEDIATE"),
            create_sqlite_engine(file, READERS, "BEGIN"),
            create_sqlite_engine(file, 1, "BEGIN"),
        )
    timeout = answer_timeout or AnswerTimeout()
    return Engines(
        _create_postgresql_engine(database, 1, timeout),
        _create_postgresql_engine(database, READERS, timeout, checks_connections=True),
        _create_postgresql_engine(database, 1, timeout, checks_connections=True),
    )


def read_change_marker(connection: Connection) -> str:
    """A text that differs from the last one wherever anybody has committed something since."""
    return str(connection.exec_driver_sql(_CHANGE_MARKERS[connection.dialect.name]).scalar_one())


def is_sqlite(database: DatabaseUrl) -> bool:
    """Whether it is a file."""
    return database.drivername == "sqlite"


def make_file(database: DatabaseUrl) -> None:
    """An empty file if there is none, for SQLite. Raises FileLostError, OSError."""
    if is_sqlite(database):
        SqliteFile(database).create()


def read_clock(connection: Connection, clock: Callable[[], float]) -> float:
    """The time by the database's clock, unix seconds; `clock` is this machine's."""
    return clock() if connection.dialect.name == "sqlite" else float(connection.execute(_NOW).scalar_one())


def build_insert(table: Table, dialect: str) -> Any:
    """The INSERT of the dialect with this name, with `on_conflict_do_nothing` and `on_conflict_do_update`."""
    return (sqlite if dialect == "sqlite" else postgresql).insert(table)


@contextmanager
def without_timeouts(connection: Connection) -> Iterator[None]:
    """While the body runs, a statement may take any time: a migration may."""
    if connection.dialect.name == "sqlite":
        yield
        return
    connection.execute(text("SET LOCAL statement_timeout = 0"))
    connection.execute(text("SET LOCAL idle_in_transaction_session_timeout = 0"))
    if has_transaction_timeout(connection):
        connection.execute(text("SET LOCAL transaction_timeout = 0"))
    driver: Any = connection.connection.driver_connection
    usual, driver.answer_timeout = driver.answer_timeout, AnswerTimeout(None)
    try:
        yield
    finally:
        driver.answer_timeout = usual


def set_short_lock_timeout(connection: Connection) -> None:
    """For this transaction: it hardly waits for locks of others."""
    connection.execute(text("SET LOCAL lock_timeout = '100ms'"))


def is_lock_timeout(error: exc.DBAPIError) -> bool:
    """Whether another transaction, such as that of a replica that hangs, locked a row for too long."""
    return getattr(error.orig, "sqlstate", None) == _LOCK_TIMEOUT


def is_disk_full(error: OSError) -> bool:
    """Whether a file could not be created only because the disk is full."""
    return error.errno in _DISK_FULL


def is_query_error(error: exc.DBAPIError) -> bool:
    """Whether the database works, and a query was wrong: a defect, which another try does not fix."""
    is_statement_error = isinstance(error, exc.IntegrityError | exc.DataError | exc.ProgrammingError)
    return is_statement_error and getattr(error.orig, "sqlstate", None) not in _WRONG_TABLES


def is_damaged(error: exc.DBAPIError) -> bool:
    """Whether the database cannot read what it holds, such as after a fault of the disk."""
    if isinstance(error.orig, sqlite3.Error):
        code = getattr(error.orig, "sqlite_errorcode", 0) & 0xFF
        return code in _SQLITE_DAMAGED or _UNDECODABLE in str(error.orig)
    return getattr(error.orig, "sqlstate", None) in _POSTGRESQL_DAMAGED


def is_temporary(error: exc.DBAPIError, database: DatabaseUrl) -> bool:
    """Whether a database that cannot be opened now may be opened later, without anybody changing the configuration."""
    if isinstance(error.orig, sqlite3.Error):
        code = error.orig.sqlite_errorcode & 0xFF
        # A file that is there, and cannot be opened: those beside it cannot be made.
        return code in _SQLITE_TEMPORARY or (code == sqlite3.SQLITE_CANTOPEN and Path(str(database.database)).is_file())
    state = getattr(error.orig, "sqlstate", None)
    if state is None:  # no connection; only the message says why
        message = str(error.orig)
        return "FATAL" not in message or any(text in message for text in _POSTGRESQL_TEMPORARY)
    return state[:2] in {"08", "53", "55", "57"}  # connection, resources, locked, shutting down or starting up


def describe_error(error: exc.SQLAlchemyError) -> str:
    """What the database says, on one line."""
    return " ".join(str(error.orig if isinstance(error, exc.DBAPIError) else error).split())


def _create_postgresql_engine(
    database: DatabaseUrl, connections: int, answer_timeout: AnswerTimeout, *, checks_connections: bool = False
) -> Engine:
    return create_postgresql_engine(
        database,
        connections,
        application_name="keypulse-relay",
        options=_OPTIONS,
        # A read may find a connection that a restart cut; the writer notices by itself.
        checks_connections=checks_connections,
        create_answer_timeout=lambda: answer_timeout,
    )
