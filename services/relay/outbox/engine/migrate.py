"""Creates the tables of a database or migrates them to `schema`, or raises why this program must not use them.

Alembic runs the migrations from older tables. It is imported only where there are any: at almost every start there are
none.
"""

from pathlib import Path
from typing import Final

from sqlalchemy import Connection, func, inspect, select, text

from services.relay.outbox import tables as schema
from services.relay.outbox.engine import dialect
from shared.sql.read_only import describe_empty_database

HEAD: Final = "0008"
"""The newest revision of the tables: the one that `schema` describes."""

_VERSION_TABLE: Final = "alembic_version"
"""The table in which Alembic keeps the revision."""
_SQLITE_USER_VERSION: Final = 2
"""keypulse 0.1, which would write into the file, refuses one with this `user_version`."""
_FIRST_REVISION: Final = "0001"
_FIRST_TABLES: Final = {"incidents", "events", "deliveries", "attempts", "quarantine"}
"""Those of keypulse 0.1, which had SQLite alone and kept its version, 1, in the file's `user_version`."""
_ADVISORY_LOCK: Final = 0x6B657970756C7365
"""The advisory lock of PostgreSQL under which one replica at a time migrates: "keypulse" in ASCII."""


class UnknownDatabaseError(Exception):
    """The tables are not ours to use; nothing was changed. The message is a sentence with the next step."""


class NewerSchemaError(UnknownDatabaseError):
    """A newer keypulse has brought the tables to a revision that this program does not know."""


class ForeignDatabaseError(UnknownDatabaseError):
    """Another program's tables are in it."""


class MissingTablesError(UnknownDatabaseError):
    """It has no tables, where a relay had some."""


def upgrade_tables(connection: Connection) -> bool:
    """Makes the tables or brings them up to date, with what they hold; does nothing where they are.

    Returns whether it made them.

    Args:
        connection: in a transaction, which the caller commits, or rolls back where this raises. SQLite: begun
            IMMEDIATE, so that nobody else writes. PostgreSQL: READ COMMITTED, its default, so that a replica that
            waited here for another one then sees the tables that it made.

    Raises:
        NewerSchemaError: a newer keypulse wrote them.
        ForeignDatabaseError: they are another program's.
        MissingTablesError: there are none, and there were some.
        DBAPIError: the database failed.
    """
    if connection.dialect.name == "postgresql":
        connection.execute(text("SET LOCAL lock_timeout = '2s'"))  # while another replica makes the tables
        connection.execute(select(func.pg_advisory_xact_lock(_ADVISORY_LOCK)))  # held until the transaction ends
    revision = _read_revision(connection)
    if revision == HEAD:
        return False
    if revision is None:
        _check_missing_tables(connection)
        with dialect.without_timeouts(connection):
            _create_tables(connection)
        return True
    _refuse_unknown_revision(revision)
    from services.relay.outbox.engine import migrations  # noqa: PLC0415  # 90 ms and 10 MB that few starts need

    with dialect.without_timeouts(connection):
        migrations.run_migrations(connection, from_revision=revision)
    return False


def _check_missing_tables(connection: Connection) -> None:
    for file in dialect.find_last_used_files(connection.engine.url):
        if file.exists():
            name = Path(str(connection.engine.url.database)).name
            raise MissingTablesError(
                f"it is new or empty, but by {file.name} beside it there was an outbox; "
                f"put {name} back, or remove {file.name} to begin anew"
            )


def _create_tables(connection: Connection) -> None:
    """All tables at once, the same that the steps lead to, and Alembic's own as it would make it.

    Only the order of columns is another, and on SQLite some names of types, which mean the same there.
    """
    schema.metadata.create_all(connection)
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
    """For who makes nothing: changes nothing, and waits for nobody who writes.

    Raises:
        UnknownDatabaseError: the tables are of another version, or another program's.
        DBAPIError: the database failed.
    """
    revision = _read_revision(connection)
    if revision is None:
        raise UnknownDatabaseError(
            "it is empty, and has no tables of an outbox; where there was one, restore it; else restart the relay: it "
            "makes them"
        )
    if revision != HEAD:
        raise UnknownDatabaseError(
            f"its tables are of revision {revision}, and this program reads {HEAD}; run the version that the "
            "relay has, or start a relay of this one, which brings them up to date"
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
        _check_missing_tables(connection)
        return describe_empty_database(connection)
    _refuse_unknown_revision(revision)
    return f"the next start brings its tables from revision {revision} to {HEAD}"


def _refuse_unknown_revision(revision: str) -> None:
    from services.relay.outbox.engine import migrations  # noqa: PLC0415  # 90 ms and 10 MB that few starts need

    if revision not in migrations.list_revisions():
        raise NewerSchemaError(
            f"a newer keypulse wrote it (its tables are of revision {revision}, this program knows up to {HEAD}); "
            "run that one, or set another `database`"
        )


def _read_revision(connection: Connection) -> str | None:
    """That of the tables; None where there are none yet."""
    tables = set(inspect(connection).get_table_names())
    ours = tables.intersection(schema.metadata.tables)
    if ours and _VERSION_TABLE in tables:
        revision = connection.execute(text(f"SELECT version_num FROM {_VERSION_TABLE}")).scalar()  # noqa: S608  # our own name
        if revision is not None:
            return str(revision)
    if connection.dialect.name == "sqlite":
        version = connection.exec_driver_sql("PRAGMA user_version").scalar_one()
        if version == 1 and tables >= _FIRST_TABLES:
            return _FIRST_REVISION
        others = tables
    else:  # tables of other names may live beside ours
        others = tables & {_VERSION_TABLE, *schema.metadata.tables}
    if others:
        raise ForeignDatabaseError("another program's tables are in it; set another `database`")
    return None
