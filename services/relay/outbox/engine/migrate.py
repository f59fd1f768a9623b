"""Creates the outbox's tables or migrates them to the newest revision, or raises why this program must not use them.

Alembic runs the migrations from older tables. It is imported only if there are any: at almost every start there are
none.
"""

from typing import Final

from sqlalchemy import Connection, func, inspect, select, text

from services.relay.outbox import tables
from services.relay.outbox.engine import dialect
from services.relay.outbox.engine.lost_outbox import describe_lost_outbox
from shared.hinted_error import HintedError
from shared.sql.read_only import describe_empty_database

HEAD: Final = "0023"
"""The newest revision of the tables: the one that `tables` describes."""

_VERSION_TABLE: Final = "alembic_version"
"""The table in which Alembic keeps the revision."""
_SQLITE_USER_VERSION: Final = 2
"""keypulse 0.1, which would write into the file, refuses one with this `user_version`."""
_FIRST_REVISION: Final = "0001"
_FIRST_TABLES: Final = {"incidents", "events", "deliveries", "attempts", "quarantine"}
"""The tables of keypulse 0.1, which supported SQLite only and stored its version, 1, as the file's `user_version`."""
_ADVISORY_LOCK: Final = 0x6B657970756C7365
"""The advisory lock of PostgreSQL under which one replica at a time migrates: "keypulse" in ASCII."""


class UnknownDatabaseError(HintedError):
    """This program must not use these tables; nothing was changed."""


class NewerOutboxSchemaError(UnknownDatabaseError):
    """A newer keypulse has migrated the tables to a revision that this program does not support."""


class ForeignDatabaseError(UnknownDatabaseError):
    """The database contains another program's tables."""


class LostOutboxError(UnknownDatabaseError):
    """The database contains no tables, although a relay has used it."""


def upgrade_tables(connection: Connection) -> bool:
    """Creates the tables, or migrates them with their rows; does nothing if they are up to date.

    Returns whether it created them.

    Args:
        connection: in a transaction, which the caller commits, or rolls back if this raises. SQLite: IMMEDIATE, so
            that nobody else writes. PostgreSQL: READ COMMITTED, its default, so that a replica that waited for the
            lock sees the tables that another one created meanwhile.

    Raises:
        NewerOutboxSchemaError: a newer keypulse wrote them.
        ForeignDatabaseError: they are another program's.
        LostOutboxError: there are none, although a relay has used this database.
        DBAPIError: the database failed.
    """
    if connection.dialect.name == "postgresql":
        connection.execute(text("SET LOCAL lock_timeout = '2s'"))  # while another replica creates the tables
        connection.execute(select(func.pg_advisory_xact_lock(_ADVISORY_LOCK)))  # until the transaction ends
    revision = _read_revision(connection)
    if revision == HEAD:
        return False
    if revision is None:
        if problem := describe_lost_outbox(connection.engine.url):
            raise LostOutboxError(*problem)
        with dialect.without_timeouts(connection):
            _create_tables(connection)
        return True
    _refuse_unknown_revision(revision)
    from services.relay.outbox.engine import migrations  # noqa: PLC0415  # it takes 90 ms and 10 MB, and few starts need it

    with dialect.without_timeouts(connection):
        migrations.run_migrations(connection, from_revision=revision)
    return False


def _create_tables(connection: Connection) -> None:
    """Creates all tables as the migrations would leave them, and Alembic's own table.

    Only the order of columns differs, and on SQLite some names of types, which mean the same there.
    """
    tables.metadata.create_all(connection)
    connection.execute(
        text(
            f"CREATE TABLE {_VERSION_TABLE} (version_num VARCHAR(32) NOT NULL, "
            f"CONSTRAINT {_VERSION_TABLE}_pkc PRIMARY KEY (version_num))"
        )
    )
    connection.execute(text(f"INSERT INTO {_VERSION_TABLE} VALUES (:head)"), {"head": HEAD})  # noqa: S608  # our own name
    if connection.dialect.name == "sqlite":
        connection.exec_driver_sql(f"PRAGMA user_version = {_SQLITE_USER_VERSION}")


def check_revision(connection: Connection) -> None:
    """Checks the revision for a reader, without a lock or a change.

    Raises:
        UnknownDatabaseError: there are no tables, or they are of another revision, or another program's.
        DBAPIError: the database failed.
    """
    revision = _read_revision(connection)
    if revision is None:
        raise UnknownDatabaseError(
            "it contains no tables of an outbox",
            "if there was an outbox, restore it; else restart the relay, which creates them",
        )
    if revision != HEAD:
        raise UnknownDatabaseError(
            f"its tables are of revision {revision}, and this program reads {HEAD}",
            "run the relay's version of this program, or start a relay of this version, which migrates them",
        )


def describe_tables(connection: Connection) -> str:
    """Say what the next start would do with the tables; changes nothing, and waits for nobody who writes.

    Raises:
        UnknownDatabaseError: the start would refuse them.
        CheckError: they do not exist, and the user may not create them.
        DBAPIError: the database failed.
    """
    revision = _read_revision(connection)
    if revision == HEAD:
        return "its tables are up to date"
    if revision is None:
        if problem := describe_lost_outbox(connection.engine.url):
            raise LostOutboxError(*problem)
        return describe_empty_database(connection)
    _refuse_unknown_revision(revision)
    return f"the next start brings its tables from revision {revision} to {HEAD}"


def _refuse_unknown_revision(revision: str) -> None:
    from services.relay.outbox.engine import migrations  # noqa: PLC0415  # 90 ms and 10 MB that few starts need

    if revision not in migrations.list_revisions():
        raise NewerOutboxSchemaError(
            f"a newer keypulse wrote it (its tables are of revision {revision}, this program supports up to {HEAD})",
            "run that one, or set another `database`",
        )


def _read_revision(connection: Connection) -> str | None:
    """The revision of the tables; None if there are none yet."""
    found = set(inspect(connection).get_table_names())
    if _VERSION_TABLE in found and found.intersection(tables.metadata.tables):
        revision = connection.execute(text(f"SELECT version_num FROM {_VERSION_TABLE}")).scalar()  # noqa: S608  # our own name
        if revision is not None:
            return str(revision)
    if connection.dialect.name == "sqlite":
        version = connection.exec_driver_sql("PRAGMA user_version").scalar_one()
        if version == 1 and found >= _FIRST_TABLES:
            return _FIRST_REVISION
        others = found
    else:  # PostgreSQL may contain tables of other programs with other names
        others = found & {_VERSION_TABLE, *tables.metadata.tables}
    if others:
        raise ForeignDatabaseError("another program's tables are in it", "set another `database`")
    return None
