"""What SQLite and PostgreSQL do differently; the rest of the outbox is written once.

SQLite: WAL with `synchronous=FULL`, one writer at a time, its transactions `IMMEDIATE`; the clock is this machine's.
PostgreSQL: durable by its own default; every wait of a connection is bounded, so that a replica that is stopped in the
middle of a transaction holds nobody up for long; the clock is the server's, which all replicas share.
"""

import sqlite3
from collections.abc import Callable
from typing import Any, Final

from sqlalchemy import Connection, Engine, QueuePool, Table, create_engine, event, exc, func, select
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.pool import ConnectionPoolEntry

from services.relay.outbox.database import Database

_LOCK_SECONDS: Final = 2.0
"""How long a transaction waits for a lock of another process."""
_POSTGRESQL: Final = {
    "application_name": "keypulse-relay",
    "connect_timeout": 3,
    "keepalives_idle": 5,
    "keepalives_interval": 2,
    "keepalives_count": 3,
    "tcp_user_timeout": 6_000,
    "options": "-c lock_timeout=2s -c statement_timeout=7s -c idle_in_transaction_session_timeout=5s",
}
_AGAIN: Final = {"40001", "40P01", "55P03"}
"""Serialization failure, deadlock, lock time-out: the same transaction may succeed now (PostgreSQL, appendix A)."""
_NOT_NOW: Final = ("starting up", "shutting down", "too many", "connection slots", "recovery", "administrator")
_NOW: Final = select(func.extract("epoch", func.clock_timestamp()))


def engines(database: Database) -> tuple[Engine, Engine]:
    """One to write with, of one connection, and one to read with."""
    if is_sqlite(database):
        return _sqlite(database, 1, _on_write), _sqlite(database, 4, _on_read)
    return _postgresql(database, 1), _postgresql(database, 4)


def is_sqlite(database: Database) -> bool:
    """Whether it is a file."""
    return database.drivername == "sqlite"


def now(connection: Connection, clock: Callable[[], float]) -> float:
    """The time by the database's clock, unix seconds; `clock` is this machine's."""
    return clock() if connection.dialect.name == "sqlite" else float(connection.execute(_NOW).scalar_one())


def insert_new(table: Table, connection: Connection) -> Any:
    """The dialect's INSERT, with `on_conflict_do_nothing` and `on_conflict_do_update`."""
    return (sqlite if connection.dialect.name == "sqlite" else postgresql).insert(table)


def may_succeed_at_once(error: exc.DBAPIError) -> bool:
    """Whether a transaction failed only because another one was in its way."""
    return getattr(error.orig, "sqlstate", None) in _AGAIN


def is_ours(error: exc.DBAPIError) -> bool:
    """Whether the database works, and what we asked of it was wrong: a defect, which another try does not mend."""
    return isinstance(error, exc.IntegrityError | exc.DataError | exc.ProgrammingError)


def is_passing(error: exc.DBAPIError) -> bool:
    """Whether a database that cannot be opened now may be opened later, without anybody changing the configuration."""
    if isinstance(error.orig, sqlite3.Error):
        return error.orig.sqlite_errorcode & 0xFF in {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_FULL}
    state = getattr(error.orig, "sqlstate", None)
    if state is None:  # no connection; why the server gave none is to be had in words alone
        words = str(error.orig)
        return "FATAL" not in words or any(passing in words for passing in _NOT_NOW)
    return state[:2] in {"08", "53", "55", "57"}  # connection, resources, locked, shutting down or starting up


def _sqlite(database: Database, connections: int, on_begin: Callable[[Connection], None]) -> Engine:
    engine = create_engine(
        database,
        poolclass=QueuePool,
        pool_size=connections,
        max_overflow=0,
        connect_args={"timeout": _LOCK_SECONDS, "check_same_thread": False},
        hide_parameters=True,  # an error's text must show no payload
    )
    event.listen(engine, "connect", _on_connect)
    event.listen(engine, "begin", on_begin)
    return engine


def _postgresql(database: Database, connections: int) -> Engine:
    return create_engine(
        database,
        pool_size=connections,
        max_overflow=0,
        pool_timeout=_LOCK_SECONDS,
        pool_pre_ping=connections > 1,  # a read may find a connection that a restart cut; the writer notices by itself
        connect_args=_POSTGRESQL,
        hide_parameters=True,
    )


def _on_connect(connection: sqlite3.Connection, _entry: ConnectionPoolEntry) -> None:
    connection.isolation_level = None  # transactions begin where `_on_write` says, not where the driver guesses
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=FULL")
    connection.execute("PRAGMA foreign_keys=ON")


def _on_write(connection: Connection) -> None:
    connection.exec_driver_sql("BEGIN IMMEDIATE")


def _on_read(connection: Connection) -> None:
    connection.exec_driver_sql("BEGIN")
