"""What SQLite and PostgreSQL do differently: connections, transactions, locks and errors, for `database`.

SQLite: WAL with `synchronous=FULL`, one writer at a time, its transactions `IMMEDIATE`. PostgreSQL: durable by its own
default; every wait of a connection is bounded, by the server and, where that is silent, by ourselves.
"""

import sqlite3
from typing import Any, Final

from sqlalchemy import URL, Connection, Engine, QueuePool, create_engine, event, exc, text
from sqlalchemy.pool import ConnectionPoolEntry

READERS: Final = 2
"""How many may read at once."""
STATEMENT_SECONDS: Final = 4.0
"""How long a statement may take at PostgreSQL, where the caller says nothing else."""
_LOCK_SECONDS: Final = 2.0
"""How long a transaction waits for another's lock."""
_POSTGRESQL: Final = {
    "application_name": "keypulse-keyring",
    "client_encoding": "utf8",  # a database made without a locale is in SQL_ASCII, and its text would come as bytes
    "connect_timeout": 3,
    "keepalives_idle": 5,
    "keepalives_interval": 2,
    "keepalives_count": 3,
    "tcp_user_timeout": 6_000,
    "options": f"-c lock_timeout={_LOCK_SECONDS:g}s -c statement_timeout={STATEMENT_SECONDS:g}s "
    "-c idle_in_transaction_session_timeout=5s",
}
"""What a person may set otherwise in the URL."""
_AGAIN: Final = {"40001", "40P01"}
"""Serialization failure, deadlock: the same transaction may succeed now (PostgreSQL, appendix A)."""
_ALONE: Final = 0x6B657972696E6721
"""The advisory lock of PostgreSQL that whoever changes the keyring holds: "keyring!" in ASCII."""


def engines(url: URL) -> tuple[Engine, Engine]:
    """One to write with, of one connection, and one to read with."""
    if url.drivername == "sqlite":
        return _sqlite(url, 1, "BEGIN IMMEDIATE"), _sqlite(url, READERS, "BEGIN")
    return _postgresql(url, 1), _postgresql(url, READERS)


def alone(connection: Connection) -> None:
    """Keeps all others from here until this transaction ends. SQLite has one writer at a time anyway."""
    if connection.dialect.name == "postgresql":
        connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": _ALONE})


def unhurried(connection: Connection, seconds: float) -> None:
    """This transaction's statements may take so long, each."""
    if connection.dialect.name == "postgresql":
        connection.execute(text(f"SET LOCAL statement_timeout = {int(seconds * 1000)}"))
        patient: Any = connection.connection.driver_connection
        patient.patience.seconds = seconds + 0.5


def hurried(connection: Connection) -> None:
    """Ends `unhurried`, whose connection serves others next."""
    if connection.dialect.name == "postgresql":
        patient: Any = connection.connection.driver_connection
        patient.patience.seconds = STATEMENT_SECONDS + 0.5


def may_succeed_at_once(error: exc.SQLAlchemyError) -> bool:
    """Whether a transaction failed only because another one was in its way, and no longer is."""
    return getattr(getattr(error, "orig", None), "sqlstate", None) in _AGAIN


def words(error: exc.SQLAlchemyError) -> str:
    """What the database says, on one line; of PostgreSQL's messages the part that holds no row."""
    own: Any = getattr(error, "orig", None) or error
    primary = getattr(getattr(own, "diag", None), "message_primary", None)
    return " ".join(str(primary or own).split())


def _sqlite(url: URL, connections: int, begin: str) -> Engine:
    engine = create_engine(
        url,
        poolclass=QueuePool,
        pool_size=connections,
        max_overflow=0,
        connect_args={"timeout": _LOCK_SECONDS, "check_same_thread": False},
        hide_parameters=True,  # an error's text must never show a record or a wrapped key
    )
    event.listen(engine, "connect", _durable)
    event.listen(engine, "begin", lambda connection: connection.exec_driver_sql(begin))
    return engine


def _durable(connection: sqlite3.Connection, _entry: ConnectionPoolEntry) -> None:
    connection.isolation_level = None  # transactions begin where `_sqlite` says, not where the driver guesses
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=FULL")


def _postgresql(url: URL, connections: int) -> Engine:
    from shared.sql.patience import Patience, PatientConnection  # noqa: PLC0415  # 0.1 s that a file does not need

    def connect(_dialect: object, _entry: object, _none: object, parameters: dict[str, Any]) -> PatientConnection:
        connection = PatientConnection.connect(**parameters)
        connection.patience = Patience(STATEMENT_SECONDS + 0.5)
        return connection

    engine = create_engine(
        url,
        pool_size=connections,
        max_overflow=0,
        pool_timeout=_LOCK_SECONDS,
        pool_pre_ping=True,  # a restart of the server is nobody's error
        connect_args=_arguments(url),
        hide_parameters=True,
    )
    event.listen(engine, "do_connect", connect)
    return engine


def _arguments(url: URL) -> dict[str, object]:
    """Ours, where the URL has none of its own; of `options` the last ones win."""
    asked = url.normalized_query
    arguments: dict[str, object] = {key: value for key, value in _POSTGRESQL.items() if key not in asked}
    return arguments | {"options": " ".join((str(_POSTGRESQL["options"]), *asked.get("options", ())))}
