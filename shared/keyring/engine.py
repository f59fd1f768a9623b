"""What SQLite and PostgreSQL do differently: transactions, locks and errors, for `database`."""

import sqlite3
from typing import Any, Final

from sqlalchemy import URL, Connection, Engine, event, exc, text

from shared.keyring.columns import decode_text
from shared.sql.engine import create_postgresql_engine, create_sqlite_engine
from shared.sql.patience import AnswerTimeout
from shared.sql.sqlite_file import LOCK_SECONDS, SqliteFile

READER_COUNT: Final = 2
"""How many may read at once."""
STATEMENT_TIMEOUT_SECONDS: Final = 4.0
"""How long a statement may take at PostgreSQL, where the caller says nothing else."""
_SERVER_OPTIONS: Final = (
    f"-c lock_timeout={LOCK_SECONDS:g}s -c statement_timeout={STATEMENT_TIMEOUT_SECONDS:g}s "
    "-c idle_in_transaction_session_timeout=5s"
)
_KEYRING_LOCK_ID: Final = 0x6B657972696E6721
"""The advisory lock of PostgreSQL that whoever changes the keyring holds: "keyring!" in ASCII."""


def create_engines(url: URL) -> tuple[Engine, Engine]:
    """One to write with, of one connection, and one to read with."""
    if url.drivername == "sqlite":
        file = SqliteFile(url)
        both = create_sqlite_engine(file, 1, "BEGIN IMMEDIATE"), create_sqlite_engine(file, READER_COUNT, "BEGIN")
    else:
        both = _create_postgresql_engine(url, 1), _create_postgresql_engine(url, READER_COUNT)
    for engine in both:
        event.listen(engine, "connect", _accept_any_text)
    return both


def create_file(url: URL) -> None:
    """An empty file where there is none, for SQLite. Raises FileLostError, OSError."""
    if url.drivername == "sqlite":
        SqliteFile(url).create()


def lock_keyring(connection: Connection) -> None:
    """Keeps all others from here until this transaction ends. SQLite has one writer at a time anyway."""
    if connection.dialect.name == "postgresql":
        connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": _KEYRING_LOCK_ID})


def extend_statement_timeout(connection: Connection, seconds: float) -> None:
    """This transaction's statements may take so long, each."""
    if connection.dialect.name == "postgresql":
        connection.execute(text(f"SET LOCAL statement_timeout = {int(seconds * 1000)}"))
        patient: Any = connection.connection.driver_connection
        patient.patience.seconds = seconds + 0.5


def reset_statement_timeout(connection: Connection) -> None:
    """Ends `extend_statement_timeout`, whose connection serves others next."""
    if connection.dialect.name == "postgresql":
        patient: Any = connection.connection.driver_connection
        patient.patience.seconds = STATEMENT_TIMEOUT_SECONDS + 0.5


def describe_database_error(error: exc.SQLAlchemyError) -> str:
    """What the database says, on one line; of PostgreSQL's messages the part that holds no row."""
    own: Any = getattr(error, "orig", None) or error
    primary = getattr(getattr(own, "diag", None), "message_primary", None)
    return " ".join(str(primary or own).split())


def _accept_any_text(connection: Any, _entry: object) -> None:
    """One text that is not UTF-8 must not keep all others from being read. In a UTF-8 PostgreSQL there is none."""
    if isinstance(connection, sqlite3.Connection):
        connection.text_factory = decode_text
    elif connection.info.parameter_status("server_encoding") == "SQL_ASCII":  # it does not know what it keeps
        from psycopg.adapt import Loader  # noqa: PLC0415  # as in shared.sql.engine

        class AnyText(Loader):
            def load(self, data: Any) -> str | bytes:
                return decode_text(bytes(data))

        for name in ("text", "varchar", "name", "bpchar", '"char"'):
            connection.adapters.register_loader(name, AnyText)
        connection.execute("SET client_encoding TO 'SQL_ASCII'")  # else it refuses a whole answer for one such text
        connection.commit()


def _create_postgresql_engine(url: URL, connections: int) -> Engine:
    engine = create_postgresql_engine(
        url,
        connections,
        application_name="keypulse-keyring",
        options=_SERVER_OPTIONS,
        checks_connections=True,
        create_answer_timeout=lambda: AnswerTimeout(STATEMENT_TIMEOUT_SECONDS + 0.5),
    )
    # Whatever the server's default is: another level would read as of before `lock_keyring`, whose lock others held till then.
    return engine.execution_options(isolation_level="READ COMMITTED")
