"""What SQLite and PostgreSQL do differently, and the creation of the tables; the rest of the outbox is written once.

SQLite: WAL with `synchronous=FULL`, one writer at a time, its transactions `IMMEDIATE`; the clock is this machine's.
PostgreSQL: a commit waits for the disk; every other wait is bounded, so that neither a server that hangs nor a replica
that is stopped in the middle of a transaction blocks anybody for long; the clock is the server's, which all replicas
share.

A database without tables, although a relay has used it, is a lost outbox and refused: otherwise a wrong path or a
volume that is not mounted would look like a first start, and waiting deliveries would be forgotten. A relay with SQLite
records beside its database, in `relay.db-last-used`, when it last used it; a backup of the database lacks that file.

The revision stands in a table of Alembic's form and name, so that the first change of the tables after a release can be
a migration of it. Before the first release there is one revision.
"""

import errno
import sqlite3
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, NamedTuple

import structlog
from sqlalchemy import Connection, Engine, Table, exc, func, inspect, select, text
from sqlalchemy.dialects import postgresql, sqlite

from services.relay.outbox import tables
from shared.check import HintedError
from shared.sql.database_url import DatabaseUrl
from shared.sql.engine import (
    AnswerTimeout,
    SqliteFile,
    create_postgresql_engine,
    create_sqlite_engine,
)
from shared.sql.read_only import describe_empty_database

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
    # Which transactions are visible. A transaction that is about to commit is not yet among them, which
    # `pg_current_wal_lsn()` would show.
    "postgresql": "SELECT CAST(pg_current_snapshot() AS text)",
}


class Engines(NamedTuple):
    writing: Engine
    """One connection."""
    reading: Engine
    watching: Engine
    """One connection, for `read_change_marker` alone: SQLite compares with its last read."""


def create_engines(database: DatabaseUrl, answer_timeout: AnswerTimeout | None = None) -> Engines:
    """They connect when they are used; `answer_timeout` is for PostgreSQL."""
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
    """An empty file if there is none, for SQLite. Raises FileCheckError, OSError."""
    if is_sqlite(database):
        SqliteFile(database).create()


def read_clock(connection: Connection, clock: Callable[[], float]) -> float:
    """The time by the database's clock, unix seconds; `clock` is this machine's."""
    return clock() if connection.dialect.name == "sqlite" else float(connection.execute(_NOW).scalar_one())


def build_insert(table: Table, dialect: str) -> Any:
    """The INSERT of the dialect with this name, with `on_conflict_do_nothing` and `on_conflict_do_update`."""
    return (sqlite if dialect == "sqlite" else postgresql).insert(table)


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


log = structlog.get_logger(__name__)


def describe_lost_outbox(database: DatabaseUrl) -> tuple[str, str] | None:
    """Why a database without tables is a lost outbox, and what to do; None if no relay has used it."""
    file = find_last_used_file(database)
    if file is None or not file.exists():
        return None
    name = Path(str(database.database)).name
    return (
        f"it is new or empty, but by {file.name} beside it there was an outbox",
        f"put {name} back, or remove {file.name} to start with an empty outbox",
    )


def find_last_used_file(database: DatabaseUrl) -> Path | None:
    """The last-used file of an SQLite database; None for PostgreSQL."""
    return Path(f"{database.database}-last-used") if is_sqlite(database) else None


def read_last_used(file: Path | None) -> float:
    """When the database was last used, in unix seconds; 0 if that is unknown."""
    if file is not None:
        with suppress(OSError, ValueError):
            return float(file.read_text())
    return 0.0


def write_last_used(file: Path, at: float) -> None:
    """Writes the file; a failure is logged, since it stops no delivery."""
    try:
        file.touch(mode=0o600)
        file.write_text(repr(at))
    except OSError as error:
        log.warning("last-used file cannot be written; a restored backup may not be detected", error=str(error))


REVISION: Final = "0001"
"""Of the tables that `tables` describes."""

_VERSION_TABLE: Final = "alembic_version"
_ADVISORY_LOCK: Final = 0x6B657970756C7365
"""The advisory lock of PostgreSQL under which one replica at a time creates the tables: "keypulse" in ASCII."""


class UnknownDatabaseError(HintedError):
    """This program must not use these tables; nothing was changed."""


def create_tables(connection: Connection) -> bool:
    """Create the tables, and return True; return False if they are there.

    Args:
        connection: in a transaction, which the caller commits, or rolls back if this raises. SQLite: IMMEDIATE, so
            that nobody else writes. PostgreSQL: READ COMMITTED, its default, so that a replica that waited for the
            lock sees the tables that another one created meanwhile.

    Raises:
        UnknownDatabaseError: the tables are another program's, or of another version of this one; or there are none,
            although a relay has used this database.
        DBAPIError: the database failed.
    """
    if connection.dialect.name == "postgresql":
        connection.execute(text("SET LOCAL lock_timeout = '5s'"))  # while another replica creates the tables
        connection.execute(select(func.pg_advisory_xact_lock(_ADVISORY_LOCK)))  # until the transaction ends
    if _has_tables(connection):
        return False
    if problem := describe_lost_outbox(connection.engine.url):
        raise UnknownDatabaseError(*problem)
    tables.metadata.create_all(connection)
    connection.execute(
        text(
            f"CREATE TABLE {_VERSION_TABLE} (version_num VARCHAR(32) NOT NULL, "
            f"CONSTRAINT {_VERSION_TABLE}_pkc PRIMARY KEY (version_num))"
        )
    )
    insert = text(f"INSERT INTO {_VERSION_TABLE} VALUES (:revision)")  # noqa: S608  # our own name
    connection.execute(insert, {"revision": REVISION})
    return True


def check_tables(connection: Connection) -> None:
    """Check the tables for a reader, without a lock or a change.

    Raises:
        UnknownDatabaseError: there are none, or they are of another revision, or another program's.
        DBAPIError: the database failed.
    """
    if not _has_tables(connection):
        raise UnknownDatabaseError(
            "it contains no tables of an outbox",
            "if there was an outbox, restore it; else restart the relay, which creates them",
        )


def describe_tables(connection: Connection) -> str:
    """Say what the next start would do with the tables; changes nothing, and waits for nobody who writes.

    Raises:
        UnknownDatabaseError: the start would refuse them.
        CheckError: they do not exist, and the user may not create them.
        DBAPIError: the database failed.
    """
    if _has_tables(connection):
        return "its tables are up to date"
    if problem := describe_lost_outbox(connection.engine.url):
        raise UnknownDatabaseError(*problem)
    return describe_empty_database(connection)


def _has_tables(connection: Connection) -> bool:
    """Whether the tables are there. Raises UnknownDatabaseError where they, or others in their place, are not ours."""
    found = set(inspect(connection).get_table_names())
    if _VERSION_TABLE in found and found.intersection(tables.metadata.tables):
        select_revision = text(f"SELECT version_num FROM {_VERSION_TABLE}")  # noqa: S608  # our own name
        revision = connection.execute(select_revision).scalar()
        if revision == REVISION:
            _check_columns(connection)
            return True
        if revision is not None:
            raise UnknownDatabaseError(
                f"another version of keypulse made it: its tables are of revision {revision}, and this one uses "
                f"{REVISION}",
                "run that version, or set another `database`",
            )
    # PostgreSQL may contain tables of other programs with other names.
    others = found if connection.dialect.name == "sqlite" else found & {_VERSION_TABLE, *tables.metadata.tables}
    if others:
        raise UnknownDatabaseError("another program's tables are in it", "set another `database`")
    return False


def _check_columns(connection: Connection) -> None:
    """Until the first release the tables change under one revision, and a restore may have left one out."""
    names = list(tables.metadata.tables)
    found = {name: each for (_, name), each in inspect(connection).get_multi_columns(filter_names=names).items()}
    for table in tables.metadata.sorted_tables:
        if table.name not in found:
            raise UnknownDatabaseError(
                f"its table {table.name} is missing: another version of keypulse made it, or a restore left it out",
                "run that version, or restore a backup of the whole database",
            )
        missing = {column.name for column in table.columns} - {column["name"] for column in found[table.name]}
        if missing:
            raise UnknownDatabaseError(
                f"another version of keypulse made it: its table {table.name} has no column {min(missing)}",
                "run that version, or set another `database`",
            )
