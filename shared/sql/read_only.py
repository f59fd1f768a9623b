"""Reads a database without changing it, for the command `doctor`: no file is made, no table, and no WAL is started."""

import asyncio
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Final
from urllib.parse import quote

from sqlalchemy import URL, Connection, Engine, create_engine, exc, text

from shared.check import CheckError
from shared.sql.engine import AnswerTimeout, create_postgresql_engine

DATABASE_HINT: Final = "correct `database`, restore a backup, or let the server accept it"
"""What to do where the database itself says why it cannot be used."""
_OPTIONS: Final = "-c default_transaction_read_only=on -c statement_timeout=5s -c lock_timeout=2s"


async def check_database(url: URL, describe: Callable[[Connection], str]) -> str:
    """What `describe` says of the database, in a thread; it may raise CheckError, too. Raises CheckError."""
    return await asyncio.to_thread(_check_database, url, describe)


def _check_database(url: URL, describe: Callable[[Connection], str]) -> str:
    if url.drivername == "sqlite" and not Path(url.database or "").exists():
        return "there is no file yet; the first start makes it"
    engine = _create_engine(url)
    try:
        with engine.connect() as connection, connection.begin():
            return describe(connection)
    except exc.DBAPIError as error:
        cause = " ".join(str(error.orig).split())
        raise CheckError(cause, DATABASE_HINT) from None
    finally:
        engine.dispose()


def _create_engine(url: URL) -> Engine:
    if url.drivername == "sqlite":
        # Without a -wal nobody has it open, and SQLite would leave one behind, of a user who may not be the service's.
        how = "mode=ro" if Path(f"{url.database}-wal").exists() else "immutable=1"
        location = f"file:{quote(str(url.database))}?{how}"
        return create_engine(url, creator=lambda: sqlite3.connect(location, uri=True, timeout=2), hide_parameters=True)
    return create_postgresql_engine(
        url,
        1,
        application_name="keypulse-doctor",
        options=_OPTIONS,
        checks_connections=False,
        create_answer_timeout=AnswerTimeout,
    )


def describe_empty_database(connection: Connection) -> str:
    """Says that the first start makes the tables. Raises CheckError if the user may not do that."""
    if connection.dialect.name == "postgresql":
        may_create = "SELECT current_user, has_schema_privilege(current_schema(), 'CREATE')"
        user, is_allowed = connection.execute(text(may_create)).one()
        if not is_allowed:
            raise CheckError(
                f"it is empty, and the user {user} may not create its tables",
                f"run as its owner: GRANT CREATE ON SCHEMA public TO {user}",
            )
    return "it is empty; the first start makes its tables"
