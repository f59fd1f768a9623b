"""What SQLite and PostgreSQL do differently: transactions, locks and errors, for `database`."""

import sqlite3
from typing import Any, Final

from sqlalchemy import URL, Connection, Engine, event, exc, text

from shared.keyring.columns import text_or_bytes
from shared.sql.engine import LOCK_SECONDS, postgresql_engine, sqlite_engine
from shared.sql.patience import Patience

READERS: Final = 2
"""How many may read at once."""
STATEMENT_SECONDS: Final = 4.0
"""How long a statement may take at PostgreSQL, where the caller says nothing else."""
_OPTIONS: Final = (
    f"-c lock_timeout={LOCK_SECONDS:g}s -c statement_timeout={STATEMENT_SECONDS:g}s "
    "-c idle_in_transaction_session_timeout=5s"
)
_ALONE: Final = 0x6B657972696E6721
"""The advisory lock of PostgreSQL that whoever changes the keyring holds: "keyring!" in ASCII."""


def engines(url: URL) -> tuple[Engine, Engine]:
    """One to write with, of one connection, and one to read with."""
    if url.drivername == "sqlite":
        both = sqlite_engine(url, 1, "BEGIN IMMEDIATE"), sqlite_engine(url, READERS, "BEGIN")
    else:
        both = _postgresql(url, 1), _postgresql(url, READERS)
    for engine in both:
        event.listen(engine, "connect", _read_any_text)
    return both


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


def words(error: exc.SQLAlchemyError) -> str:
    """What the database says, on one line; of PostgreSQL's messages the part that holds no row."""
    own: Any = getattr(error, "orig", None) or error
    primary = getattr(getattr(own, "diag", None), "message_primary", None)
    return " ".join(str(primary or own).split())


def _read_any_text(connection: Any, _entry: object) -> None:
    """One text that is not UTF-8 must not keep all others from being read. In a UTF-8 PostgreSQL there is none."""
    if isinstance(connection, sqlite3.Connection):
        connection.text_factory = text_or_bytes
    elif connection.info.parameter_status("server_encoding") == "SQL_ASCII":  # it does not know what it keeps
        from psycopg.adapt import Loader  # noqa: PLC0415  # as in shared.sql.engine

        class AnyText(Loader):
            def load(self, data: Any) -> str | bytes:
                return text_or_bytes(bytes(data))

        for name in ("text", "varchar", "name", "bpchar", '"char"'):
            connection.adapters.register_loader(name, AnyText)
        connection.execute("SET client_encoding TO 'SQL_ASCII'")  # else it refuses a whole answer for one such text
        connection.commit()


def _postgresql(url: URL, connections: int) -> Engine:
    engine = postgresql_engine(
        url,
        connections,
        program="keypulse-keyring",
        options=_OPTIONS,
        ping=True,
        patience=lambda: Patience(STATEMENT_SECONDS + 0.5),
    )
    # Whatever the server's default is: another level would read as of before `alone`, whose lock others held till then.
    return engine.execution_options(isolation_level="READ COMMITTED")
