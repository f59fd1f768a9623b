"""Connections to SQLite and PostgreSQL: a commit is on the disk, and every wait has a timeout.

SQLite: WAL with `synchronous=FULL`, in the file that the path names (`sqlite_file`). PostgreSQL: a commit waits for the
disk, whatever the server's default is; other waits end by the server's timeouts, or by `answer_timeout`.
"""

import os
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import URL, Connection, Engine, QueuePool, create_engine, event, exc

from shared.config.secret_file import PasswordFile, SecretUnreadableError
from shared.sql.sqlite_file import LOCK_SECONDS, FileConnection, SqliteFile

if TYPE_CHECKING:
    from shared.sql.answer_timeout import AnswerTimeout
    from shared.sql.postgresql_connection import TimeoutConnection

PASSWORD_FILE_VARIABLE: Final = "PGPASSWORD_FILE"  # noqa: S105  # its name
"""The environment variable that names a file with the password alone, such as a key of a Kubernetes Secret.

libpq accepts only a file in its own format that the group may not read; in a Secret's volume it may.
"""
_ENABLE_SYNCHRONOUS_COMMIT: Final = (
    "SELECT set_config('synchronous_commit', CASE current_setting('synchronous_commit') WHEN 'off' THEN 'on' "
    "ELSE current_setting('synchronous_commit') END, true)"
)
"""For one transaction, so that neither a reload of the server's configuration nor a pooler, which gives the next one
another session, changes it; all values but `off` wait."""
_TRANSACTION_TIMEOUT: Final = "10s"
"""Of one transaction, however busy its client looks. `psycopg` sends many rows as one pipeline; a client that stops in
the middle of it is not idle for PostgreSQL, and no other time-out would ever release the rows that it has locked."""
_LIMIT_TRANSACTION: Final = f", set_config('transaction_timeout', '{_TRANSACTION_TIMEOUT}', true)"
_HAS_TRANSACTION_TIMEOUT: Final = 17
"""PostgreSQL's first version with that setting (its release notes); an older one gets one row after the other."""
_RETRYABLE_STATES: Final = {"40001", "40P01"}
"""Serialization failure, deadlock: the same transaction may succeed now (PostgreSQL, appendix A)."""
_MARIADB_DEADLOCK: Final = 1213
_CONNECTION_DEFAULTS: Final = {
    "client_encoding": "utf8",  # a database made without a locale is in SQL_ASCII, and its text would come as bytes
    "connect_timeout": 3,
    "keepalives_idle": 5,
    "keepalives_interval": 2,
    "keepalives_count": 3,
    "tcp_user_timeout": 6_000,
}


def create_sqlite_engine(file: SqliteFile, connections: int, begin_statement: str) -> Engine:
    """Its transactions begin with the statement `begin_statement`. The file has to be there."""
    engine = create_engine(
        URL.create("sqlite", database=str(file.path)),
        poolclass=QueuePool,
        pool_size=connections,
        max_overflow=0,
        pool_timeout=LOCK_SECONDS,
        hide_parameters=True,  # an error's text must never show a payload, a record or a wrapped key
    )

    def connect(*_ours: object) -> FileConnection:
        return file.connect()

    def check_out(connection: FileConnection, *_ours: object) -> None:
        if file.is_replaced(connection):
            raise exc.DisconnectionError  # the pool reconnects

    event.listen(engine, "do_connect", connect)
    event.listen(engine, "checkout", check_out)
    event.listen(engine, "begin", lambda connection: connection.exec_driver_sql(begin_statement))
    return engine


@contextmanager
def open_transaction(engine: Engine) -> Iterator[Connection]:
    """Run a transaction; after an end without an error, all of it is on the disk.

    Raises:
        DBAPIError: the database failed, or its file was replaced. Nothing is known to be committed then.
    """
    with engine.connect() as connection:
        with connection.begin():
            yield connection
        driver = connection.connection.driver_connection
        if isinstance(driver, FileConnection):
            try:
                driver.file.check_committed(driver)
            except sqlite3.OperationalError as error:
                connection.invalidate()
                raise exc.OperationalError("COMMIT", None, error) from None


def create_postgresql_engine(
    url: URL,
    connections: int,
    *,
    application_name: str,
    options: str,
    checks_connections: bool,
    create_answer_timeout: Callable[[], "AnswerTimeout"],
) -> Engine:
    """Create the engine; parameters of the URL win over these.

    Args:
        url: the database.
        connections: how many at most.
        application_name: the name under which the server shows them.
        options: the server's own time-outs, as `-c NAME=VALUE …`.
        checks_connections: whether a connection is tested before use, so that a server restart causes no error.
        create_answer_timeout: of each connection that is made.
    """
    from shared.sql.postgresql_connection import (  # noqa: PLC0415  # 0.1 s that a file does not need
        RowByRowCursor,
        TimeoutConnection,
    )

    def connect(_dialect: object, _entry: object, _none: object, parameters: dict[str, Any]) -> "TimeoutConnection":
        connection = TimeoutConnection.connect(**(parameters | _read_password(parameters)))
        connection.answer_timeout = create_answer_timeout()
        if connection.info.server_version < _HAS_TRANSACTION_TIMEOUT * 10_000:
            connection.cursor_factory = RowByRowCursor
        return connection

    def begin(connection: Connection) -> None:
        limit = _LIMIT_TRANSACTION if has_transaction_timeout(connection) else ""
        connection.exec_driver_sql(_ENABLE_SYNCHRONOUS_COMMIT + limit)

    timeouts = url.normalized_query
    ours = {"application_name": application_name, **_CONNECTION_DEFAULTS}
    arguments: dict[str, object] = {key: value for key, value in ours.items() if key not in timeouts}
    engine = create_engine(
        url,
        pool_size=connections,
        max_overflow=0,
        pool_timeout=LOCK_SECONDS,
        pool_pre_ping=checks_connections,
        connect_args=arguments | {"options": " ".join((options, *timeouts.get("options", ())))},  # the last ones win
        hide_parameters=True,
    )
    event.listen(engine, "do_connect", connect)
    # Whatever server, role or URL set: an acknowledged commit must survive a crash of the server.
    event.listen(engine, "begin", begin)
    return engine


def has_transaction_timeout(connection: Connection) -> bool:
    """Whether the server can end a transaction by its age."""
    version = connection.dialect.server_version_info
    return version is not None and int(version[0]) >= _HAS_TRANSACTION_TIMEOUT


def _read_password(parameters: dict[str, Any]) -> dict[str, str]:
    """Return the file's current password; None without a file, or if the URL names one in libpq's format."""
    from psycopg import OperationalError  # noqa: PLC0415  # 0.1 s that a file does not need

    file = os.environ.get(PASSWORD_FILE_VARIABLE)
    if not file or "passfile" in parameters:
        return {}
    try:
        return {"password": PasswordFile(Path(file)).read_value()}
    except SecretUnreadableError as error:
        raise OperationalError(f"{PASSWORD_FILE_VARIABLE}: {error}") from None


def is_retryable(error: exc.SQLAlchemyError) -> bool:
    """Whether a transaction failed only because of a conflict with another one, and can be retried."""
    own = getattr(error, "orig", None)
    return getattr(own, "sqlstate", None) in _RETRYABLE_STATES or getattr(own, "args", ())[:1] == (_MARIADB_DEADLOCK,)
