"""Connections to SQLite, PostgreSQL and MariaDB: a commit is on the disk, and every wait has a timeout.

SQLite: WAL with `synchronous=FULL`, in the file that the path names. A removed or replaced file exists as long as a
connection has it open, and commits go into it; SQLite does not check that in WAL mode. The same is true of the `-wal`,
which has the newest commits, beside it or a link's target. So both names are compared with the opened files before each
transaction, and before its commit is acknowledged. A file that was truncated is lost, too.

PostgreSQL: a commit waits for the disk, whatever the server's default is; other waits end by the server's timeouts, or
by `AnswerTimeout`. psycopg is imported only where it is used: it takes 9 MB.
"""

import ctypes
import os
import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple
from urllib.parse import quote
from weakref import WeakSet

from sqlalchemy import URL, Connection, Engine, QueuePool, create_engine, event, exc

from shared.config.file_checks import FileCheckError, check_writable_folder
from shared.config.secret_file import PasswordFile, SecretUnreadableError

_ANSWER_SECONDS: Final = 7.0
"""A little more than the server's `statement_timeout`: the server itself ends a slow statement, with an error."""


@dataclass(slots=True)
class AnswerTimeout:
    """The timeout of connections; a change also applies to current waits."""

    seconds: float | None = _ANSWER_SECONDS
    """None: no timeout."""


LOCK_SECONDS: Final = 2.0
"""How long a transaction waits for SQLite's one lock, and a read for a connection."""
_WAL_BYTES: Final = 16 * 1024 * 1024
"""The size to which the -wal shrinks when it starts again."""


class _FileIdentity(NamedTuple):
    """Device and inode of the two names, or None for a missing file."""

    file: tuple[int, int] | None
    wal: tuple[int, int] | None


class _InodePin:
    """Keeps the number of an inode from being given to another file, for as long as this object lives."""

    def __init__(self, path: Path) -> None:
        self._descriptor = -1
        if hasattr(os, "O_PATH"):  # any other kind would, once closed, take SQLite's locks on the file with it
            with suppress(OSError):
                self._descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)

    def __del__(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)


class FileConnection(sqlite3.Connection):
    file: "SqliteFile"
    wal: Path
    identity: _FileIdentity

    def close(self) -> None:
        """Closes it. SQLite takes the -wal away with the last one, if it is still where it was opened.

        Before, it would write into a file that was emptied what the -wal has of it, with holes for all else.
        """
        with self.file.lock:
            if self.file.retain_if_emptied(self):
                return
            super().close()
            self.file.forget(self)


class SqliteFile:
    """One file, for all connections that this process has to it."""

    def __init__(self, url: URL) -> None:
        self.path = Path(url.database or "")
        self.lock = threading.RLock()
        self.connections: WeakSet[FileConnection] = WeakSet()
        self._current: _FileIdentity | None = None
        self._pins: tuple[_InodePin, ...] = ()
        """Of the last opened file."""
        self._emptied_file: tuple[int, int] | None = None
        """The file that was replaced while open; SQLite in this process still caches it."""
        self._abandoned: _FileIdentity | None = None
        """The same, once it was replaced or emptied: its -wal must not be taken for that of what is there now."""

    def check(self) -> None:
        """Raises FileCheckError if there is no file, and none can be made or may be: it was lost."""
        if problem := self._describe_loss(self._locate_wal()):
            raise problem
        if not self.path.exists():
            check_writable_folder(self.path.parent)

    def create(self) -> None:
        """Creates an empty file if missing, for its owner alone; SQLite gives the files beside it the same mode.

        Raises OSError, and FileCheckError as `check` does.
        """
        self.check()
        if not self.path.exists():
            self.path.touch(mode=0o600)

    def connect(self) -> FileConnection:
        """Open a connection to the existing file. Raises sqlite3.Error."""
        with self.lock:
            wal = self._locate_wal()
            before = self._read_identity(wal)
            self._refuse_unusable(before, wal)
            connection = sqlite3.connect(
                f"file:{quote(str(self.path))}?mode=rw",
                uri=True,
                timeout=LOCK_SECONDS,
                check_same_thread=False,
                isolation_level=None,  # the engine begins transactions, not the driver
                factory=FileConnection,
            )
            try:
                connection.file, connection.wal = self, wal
                self._set_up(connection)
                connection.identity = self._read_identity(wal)
                self._refuse_replaced(connection.identity, before)
            except BaseException:
                connection.close()
                raise
            self.connections.add(connection)
            self._abandoned = None
            if connection.identity != self._current:
                self._current = connection.identity
                self._pins = (_InodePin(self.path), _InodePin(wal))
            return connection

    def retain_if_emptied(self, connection: FileConnection) -> bool:
        """Whether its file was emptied. Then it stays open for as long as this process lives."""
        emptied = connection in self.connections and connection.identity.file == self._emptied_file
        if emptied:
            self.connections.discard(connection)
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(connection))  # else Python would close it at the exit
        return emptied

    def forget(self, connection: FileConnection) -> None:
        """It is; where it was the last one, SQLite may have taken the -wal away."""
        self.connections.discard(connection)
        if not self.connections and self._abandoned is None:
            self._current, self._pins = None, ()

    def is_replaced(self, connection: FileConnection) -> bool:
        """Whether the path now names another file, or none; this connection is then useless.

        Raises sqlite3.OperationalError if it is the same file, but truncated, or its -wal is missing.
        """
        names = self._read_identity(connection.wal)
        replaced, emptied = names.file != connection.identity.file, _read_size(self.path) == 0
        if (replaced or emptied) and connection.identity == self._current:
            self._abandoned = self._current
        if replaced:
            return True
        if emptied:
            self._emptied_file = names.file
            self._refuse_emptied(names, connection.wal)
        if names.wal != connection.identity.wal:
            raise _create_wal_lost_error(connection.wal)
        return False

    def check_committed(self, connection: FileConnection) -> None:
        """Raises sqlite3.OperationalError if commits do not reach the file at the path."""
        if self.is_replaced(connection):
            raise _create_cannot_open_error(f"{self.path} was removed or replaced while it was in use; put it back")

    def _set_up(self, connection: FileConnection) -> None:
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=FULL")
        connection.execute("PRAGMA foreign_keys=ON")
        # One large transaction must not leave a -wal of its size for ever.
        connection.execute(f"PRAGMA journal_size_limit={_WAL_BYTES}")
        # The statement journal is small, and a file for it would cost a tenth of the time.
        connection.execute("PRAGMA temp_store=MEMORY")
        connection.execute("SELECT 1 FROM sqlite_schema LIMIT 1").fetchall()  # so that the -wal is open

    def _refuse_replaced(self, names: _FileIdentity, before: _FileIdentity) -> None:
        if names.file != before.file:
            raise _create_cannot_open_error(f"{self.path} was replaced while it was opened")

    def _locate_wal(self) -> Path:
        """Return its current path: beside the file itself, not beside a link to it."""
        return Path(f"{os.path.realpath(self.path)}-wal")

    def _read_identity(self, wal: Path) -> _FileIdentity:
        return _FileIdentity(_stat_inode(self.path), _stat_inode(wal))

    def _describe_loss(self, wal: Path) -> FileCheckError | None:
        """What to do where the file is not, and its -wal is: SQLite would delete it beside an empty file."""
        if _read_size(self.path) > 0 or _read_size(wal) == 0:
            return None
        return FileCheckError(
            f"{self.path} is gone or empty, but {wal.name} beside it holds what was committed last",
            f"put {self.path.name} back, or move {wal.name} away to start with an empty database",
        )

    def _refuse_emptied(self, names: _FileIdentity, wal: Path) -> None:
        if self._emptied_file is not None and names.file == self._emptied_file:
            raise _create_cannot_open_error(
                f"{self.path} was emptied while it was in use; stop this program, put the file back without {wal.name} "
                "and start it again"
            )

    def _refuse_unusable(self, names: _FileIdentity, wal: Path) -> None:
        if names.file is None:
            raise _create_cannot_open_error(f"there is no file {self.path}; put it back")
        self._refuse_emptied(names, wal)
        for other in self.connections:
            if other.identity.file == names.file and other.identity.wal != names.wal:
                raise _create_wal_lost_error(wal)
        if problem := self._describe_loss(wal):
            raise _create_cannot_open_error(str(problem))
        left = self._abandoned
        if left is not None and names.wal is not None and names.wal == left.wal and names.file != left.file:
            raise _create_cannot_open_error(
                f"{self.path} was replaced, and {wal.name} beside it belongs to the file before; "
                f"move {wal.name} and {wal.name.removesuffix('wal')}shm away"
            )


def _stat_inode(path: Path) -> tuple[int, int] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _read_size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def _create_wal_lost_error(wal: Path) -> sqlite3.OperationalError:
    return _create_cannot_open_error(
        f"{wal} was removed or replaced while it was in use; let nothing but SQLite touch it"
    )


def _create_cannot_open_error(sentence: str) -> sqlite3.OperationalError:
    error: Any = sqlite3.OperationalError(sentence)
    error.sqlite_errorcode = sqlite3.SQLITE_CANTOPEN  # as SQLite's own errors have one
    sqlite_error: sqlite3.OperationalError = error
    return sqlite_error


if TYPE_CHECKING:
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
    """A transaction; after an end without an error, all of it is on the disk.

    After a DBAPIError, of the database or of a file that was replaced, nothing is known to be committed.
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
    """The engine, with `connections` at most; parameters of the URL win over these.

    `options` are the server's own time-outs, as `-c NAME=VALUE …`. With `checks_connections` a connection is tested
    before use, so that a server restart causes no error.
    """
    from shared.sql.postgresql_connection import RowByRowCursor, TimeoutConnection  # noqa: PLC0415  # 0.1 s that a file does not need

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


_MARIADB_CONNECT_SECONDS: Final = 3
_MARIADB_ANSWER_SECONDS: Final = 65
"""The server itself ends a slow statement sooner; this is for a server, or a proxy before it, that never answers."""
_MARIADB_IDLE_SECONDS: Final = 5
"""Of a transaction whose client has stopped: its locks are released then."""
_MARIADB_POOL_SECONDS: Final = 3.0
_ERRORS_WITH_VALUES: Final = {1062: "a duplicate key", 1292: "a value of another type", 1366: "a value of another type"}
"""Errors whose text holds a value of a row (MariaDB, "MariaDB Error Codes")."""


def create_mariadb_engine(url: URL, connections: int, *, lock_seconds: float, statement_seconds: float) -> Engine:
    """The engine for a URL with the driver name `mariadb`. Every wait has a timeout, and no value is ever cut."""
    engine = create_engine(
        url.set(drivername="mariadb+pymysql"),
        pool_size=connections,
        max_overflow=0,
        pool_timeout=_MARIADB_POOL_SECONDS,
        pool_pre_ping=True,
        connect_args={
            "charset": "utf8mb4",
            "connect_timeout": _MARIADB_CONNECT_SECONDS,
            "read_timeout": _MARIADB_ANSWER_SECONDS,
            "write_timeout": _MARIADB_ANSWER_SECONDS,
        },
        hide_parameters=True,  # an error's text must never show a wrapped key
        isolation_level="READ COMMITTED",
    )
    # Strict: else a wrapped key that is too long for its column would be cut, and nobody could unwrap it.
    setup = (
        f"SET SESSION sql_mode = CONCAT(@@sql_mode, ',STRICT_ALL_TABLES'), max_statement_time = {statement_seconds:g}, "
        f"innodb_lock_wait_timeout = {int(lock_seconds)}, idle_transaction_timeout = {_MARIADB_IDLE_SECONDS}"
    )

    def set_up(connection: Any, _entry: object) -> None:
        with connection.cursor() as cursor:
            cursor.execute(setup)

    event.listen(engine, "connect", set_up)
    return engine


def describe_mariadb_error(error: BaseException) -> str:
    """What the database says, on one line, without a value of a row; `error` is the driver's."""
    code, *text = error.args or (0,)
    message = _ERRORS_WITH_VALUES.get(code) or " ".join(str(part) for part in text)
    return f"{' '.join(message.split()) or type(error).__name__} (MariaDB's error {code})"
