"""Creates the outbox's tables, or raises why this program must not use those that are there.

The revision stands in a table of Alembic's form and name, so that the first change of the tables after a release can be
a migration of it. Before the first release there is one revision.
"""

from typing import Final

from sqlalchemy import Connection, func, inspect, select, text

from services.relay.outbox import tables
from services.relay.outbox.engine import dialect
from services.relay.outbox.engine.lost_outbox import describe_lost_outbox
from shared.hinted_error import HintedError
from shared.sql.read_only import describe_empty_database

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
        connection.execute(text("SET LOCAL lock_timeout = '2s'"))  # while another replica creates the tables
        connection.execute(select(func.pg_advisory_xact_lock(_ADVISORY_LOCK)))  # until the transaction ends
    if _has_tables(connection):
        return False
    if problem := describe_lost_outbox(connection.engine.url):
        raise UnknownDatabaseError(*problem)
    with dialect.without_timeouts(connection):
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
            raise UnknownDatabaseError(f"its table {table.name} is missing", "restore a backup of the whole database")
        missing = {column.name for column in table.columns} - {column["name"] for column in found[table.name]}
        if missing:
            raise UnknownDatabaseError(
                f"another version of keypulse made it: its table {table.name} has no column {min(missing)}",
                "run that version, or set another `database`",
            )
