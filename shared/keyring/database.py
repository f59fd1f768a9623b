"""The keyring's database, SQLite, PostgreSQL or MariaDB, behind asyncio: functions on a connection in, results out.

Writes of this process wait for each other on one thread; reads have connections of their own and never wait for a
write. What `write` and `write_exclusively` return is committed, and durable. The stores differ in transactions, locks
and errors; the first part of this module hides that.
"""

import asyncio
import re
import sqlite3
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from typing import Any, Final, Self, TypeVar

import structlog
from sqlalchemy import URL, Connection, Engine, Executable, MetaData, event, exc, func, inspect, select, text

from shared.check import CheckError, HintedError
from shared.config.file_checks import FileCheckError
from shared.keyring.tables import TABLES, VERSION, data_keys, decode_text, schema
from shared.sql.engine import (
    LOCK_SECONDS,
    AnswerTimeout,
    SqliteFile,
    create_mariadb_engine,
    create_postgresql_engine,
    create_sqlite_engine,
    describe_mariadb_error,
    is_retryable,
    open_transaction,
)
from shared.sql.read_only import check_database, describe_empty_database
from shared.sql.rows import select_values

READER_COUNT: Final = 2
STATEMENT_TIMEOUT_SECONDS: Final = 4.0
"""How long a statement may take at PostgreSQL, where the caller says nothing else."""
_SERVER_OPTIONS: Final = (
    f"-c lock_timeout={LOCK_SECONDS:g}s -c statement_timeout={STATEMENT_TIMEOUT_SECONDS:g}s "
    "-c idle_in_transaction_session_timeout=5s"
)
_VERSION: Final = select_values(int, schema.c.version)
_KEYRING_LOCK_ID: Final = 0x6B657972696E6721
"""The advisory lock of PostgreSQL that a change of the keyring needs: "keyring!" in ASCII."""


def create_engines(url: URL) -> tuple[Engine, Engine]:
    """One to write with, of one connection, and one to read with."""
    if url.drivername == "mariadb":  # which keeps no text that is none
        write, read = (
            create_mariadb_engine(url, count, lock_seconds=LOCK_SECONDS, statement_seconds=STATEMENT_TIMEOUT_SECONDS)
            for count in (1, READER_COUNT)
        )
        return write, read
    if url.drivername == "sqlite":
        file = SqliteFile(url)
        both = create_sqlite_engine(file, 1, "BEGIN IMMEDIATE"), create_sqlite_engine(file, READER_COUNT, "BEGIN")
    else:
        both = _create_postgresql_engine(url, 1), _create_postgresql_engine(url, READER_COUNT)
    for engine in both:
        event.listen(engine, "connect", _accept_any_text)
    return both


def lock_keyring(connection: Connection) -> None:
    """Blocks all other writers until this transaction ends. SQLite has one writer at a time anyway."""
    if connection.dialect.name == "postgresql":
        connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": _KEYRING_LOCK_ID})
    elif connection.dialect.name == "mariadb":
        connection.execute(select(schema.c.version).with_for_update())


@contextmanager
def extend_statement_timeout(connection: Connection, seconds: float) -> Iterator[None]:
    """Each statement of the body may take so long; the connection serves others next."""
    _set_statement_timeout(connection, seconds)
    try:
        yield
    except BaseException:
        with suppress(exc.SQLAlchemyError):  # the connection may be what failed
            _set_statement_timeout(connection, STATEMENT_TIMEOUT_SECONDS)
        raise
    _set_statement_timeout(connection, STATEMENT_TIMEOUT_SECONDS)


def _set_statement_timeout(connection: Connection, seconds: float) -> None:
    if connection.dialect.name == "postgresql":
        driver: Any = connection.connection.driver_connection
        driver.answer_timeout.seconds = seconds + 0.5
        if seconds > STATEMENT_TIMEOUT_SECONDS:  # the end of the transaction resets it
            connection.execute(text(f"SET LOCAL statement_timeout = {int(seconds * 1000)}"))
    elif connection.dialect.name == "mariadb":
        connection.execute(text(f"SET SESSION max_statement_time = {seconds:g}"))


def describe_database_error(error: exc.SQLAlchemyError) -> str:
    """What the database says, on one line; of PostgreSQL's and MariaDB's messages the part that holds no row."""
    own: Any = getattr(error, "orig", None) or error
    if type(own).__module__.startswith("pymysql"):
        return describe_mariadb_error(own)
    primary = getattr(getattr(own, "diag", None), "message_primary", None)
    return " ".join(str(primary or own).split())


def _accept_any_text(connection: Any, _entry: object) -> None:
    """One text that is not UTF-8 must not keep all others from being read. A UTF-8 PostgreSQL keeps none."""
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
    # Whatever the server's default is: another level would read as of before `lock_keyring` had the lock.
    return engine.execution_options(isolation_level="READ COMMITTED")


ANSWER_TIMEOUT_SECONDS: Final = 5.0
"""How long a caller waits, the wait for other writers included."""
_MAX_TRIES: Final = 3
_CLOCK_QUERIES: Final[dict[str, Executable]] = {
    "postgresql": select(func.extract("epoch", func.clock_timestamp())),
    "mariadb": text("SELECT UNIX_TIMESTAMP(SYSDATE(6))"),
}

T = TypeVar("T")
log = structlog.get_logger(__name__)


class DatabaseError(HintedError):
    """The database is locked, full, unreachable. The text is the database's own, and shows no values."""


class Database:
    """An open database. `close` it.

    `clock` is that of this machine, unix seconds, which is SQLite's clock too; the others have their own. `table_names`
    are the names of the keyring's tables there, as SQL has them, where they differ.
    """

    def __init__(
        self, url: URL, clock: Callable[[], float] = time.time, table_names: Mapping[str, str] | None = None
    ) -> None:
        self._clock = clock
        self._write_engine, self._read_engine = create_engines(url)
        for engine in (self._write_engine, self._read_engine):
            if table_names:
                event.listen(engine, "before_cursor_execute", _build_renaming(table_names), retval=True)
        self._write_thread = ThreadPoolExecutor(1, "database-writer")
        self._read_threads = ThreadPoolExecutor(READER_COUNT, "database-reader")

    @classmethod
    async def open(cls, url: URL, *tables: MetaData, clock: Callable[[], float] = time.time) -> Self:
        """Opens `url`, creates a missing file and the missing ones of `tables`. Raises DatabaseError."""
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
        """Creates the missing ones of `tables`, and returns whether there were none before.

        Raises DatabaseError, also if another version of keypulse made the keyring.
        """

        def create(connection: Connection) -> bool:
            existing = set(inspect(connection).get_table_names())
            is_empty = existing.isdisjoint(name for metadata in tables for name in metadata.tables)
            has_keyring = TABLES in tables and _check_version(connection)
            for metadata in tables:
                if not existing.issuperset(metadata.tables):
                    metadata.create_all(connection)
            if TABLES in tables and not has_keyring:
                connection.execute(schema.insert().values(singleton=1, version=VERSION))
            if not is_empty:
                _check_columns(connection, tables)
            return is_empty and bool(tables)

        return await self.write_exclusively(create)

    async def is_keyring_current(self) -> bool:
        """Whether this version of keypulse made the keyring's tables. Raises DatabaseError."""

        def is_current(connection: Connection) -> bool:
            existing = set(inspect(connection).get_table_names())
            return existing.issuperset(TABLES.tables) and _read_version(connection) == VERSION

        return await self.read(is_current)

    async def read(self, work: Callable[[Connection], T], *, seconds: float = ANSWER_TIMEOUT_SECONDS) -> T:
        """What `work` finds, within `seconds`. Raises DatabaseError."""

        def unhurried(connection: Connection) -> T:
            with extend_statement_timeout(connection, seconds):
                return work(connection)

        may_be_slow = seconds > ANSWER_TIMEOUT_SECONDS
        return await self._run(self._read_threads, self._read_engine, unhurried if may_be_slow else work, seconds)

    async def write(self, work: Callable[[Connection], T]) -> T:
        """What `work` returns, once it is committed; an exception of `work` rolls it back.

        After a DatabaseError nothing is committed; only after "no answer" it may be.
        """
        return await self._run(self._write_thread, self._write_engine, work)

    async def write_exclusively(self, work: Callable[[Connection], T]) -> T:
        """Like `write`, while no other process runs a `write_exclusively`: what `work` reads stays true."""

        def undisturbed(connection: Connection) -> T:
            lock_keyring(connection)
            return work(connection)

        return await self.write(undisturbed)

    def read_clock(self, connection: Connection) -> float:
        """The time by the database's clock, unix seconds."""
        return (
            self._clock()
            if connection.dialect.name == "sqlite"
            else float(connection.execute(_CLOCK_QUERIES[connection.dialect.name]).scalar_one())
        )

    async def close(self) -> None:
        """Waits for running statements, each of which has a timeout, and closes all connections."""
        for threads in (self._write_thread, self._read_threads):
            await asyncio.to_thread(threads.shutdown, cancel_futures=True)
        for some in (self._write_engine, self._read_engine):
            some.dispose()

    async def _run(
        self,
        threads: Executor,
        engine: Engine,
        work: Callable[[Connection], T],
        seconds: float = ANSWER_TIMEOUT_SECONDS,
    ) -> T:
        try:
            async with asyncio.timeout(seconds):
                return await asyncio.get_running_loop().run_in_executor(threads, _run_transaction, engine, work)
        except TimeoutError:
            raise DatabaseError(f"no answer within {seconds:g} s") from None


def _build_renaming(table_names: Mapping[str, str]) -> Callable[..., tuple[str, Any]]:
    """Gives the tables in each statement their names in the database; values are never part of a statement."""
    pattern = re.compile(rf"\b(?:{'|'.join(map(re.escape, table_names))})\b")

    def rename(_connection: Connection, _cursor: object, statement: str, values: Any, *_: object) -> tuple[str, Any]:
        return pattern.sub(lambda found: table_names[found[0]], statement), values

    return rename


def _run_transaction(engine: Engine, work: Callable[[Connection], T], tries_left: int = _MAX_TRIES) -> T:
    try:
        with open_transaction(engine) as connection:
            return work(connection)
    except exc.IntegrityError:
        raise  # a lost race: its meaning is known only to `work`'s owner
    except exc.SQLAlchemyError as error:
        if tries_left > 1 and is_retryable(error):
            return _run_transaction(engine, work, tries_left - 1)
        raise DatabaseError(describe_database_error(error)) from None


class OtherVersionError(HintedError):
    """Another version of keypulse made the keyring's tables, or `data_keys` is missing."""


def has_keyring(connection: Connection) -> bool:
    """Whether the keyring's tables are there. Raises OtherVersionError."""
    existing = inspect(connection)
    if not existing.has_table(data_keys.name):
        if existing.has_table(schema.name):  # an empty one in its place would hide that the keys are lost
            raise OtherVersionError(f"its table {data_keys.name} is missing", "restore a backup of the whole database")
        return False
    version = _read_version(connection) if existing.has_table(schema.name) else None
    if version != VERSION:
        raise OtherVersionError(
            f"another version of keypulse made its keyring: it is of version {version or 0}, this one uses {VERSION}",
            "run that version, or set another `database`",
        )
    return True


def _read_version(connection: Connection) -> int | None:
    return _VERSION.fetch_first(connection)


def _check_version(connection: Connection) -> bool:
    try:
        return has_keyring(connection)
    except OtherVersionError as error:
        raise DatabaseError(error.error, error.hint) from None


def _create_missing_file(url: URL) -> None:
    try:
        if url.drivername == "sqlite":
            SqliteFile(url).create()
    except FileCheckError as error:
        raise DatabaseError(error.error, error.hint) from None
    except OSError as error:
        raise DatabaseError(f"unable to open database file: {error.strerror}") from None


def _check_columns(connection: Connection, tables: Sequence[MetaData]) -> None:
    found = {name: columns for (_, name), columns in inspect(connection).get_multi_columns().items()}
    for table in (table for metadata in tables for table in metadata.sorted_tables):
        existing = {column["name"] for column in found.get(table.name, ())}
        missing = {column.name for column in table.columns} - existing
        if missing:
            raise DatabaseError(
                f"its table {table.name} has no column {', '.join(sorted(missing))}: an older keypulse or another "
                "program made it",
                "set another `database`",
            )


async def check_keyring_database(url: URL) -> str:
    """Say what the next start of the service would find; nothing is changed. Raises CheckError."""
    return await check_database(url, _describe)


def _describe(connection: Connection) -> str:
    try:
        return "its tables are up to date" if has_keyring(connection) else describe_empty_database(connection)
    except OtherVersionError as error:
        raise CheckError(error.error, error.hint) from None
