"""Opens an outbox as the store does, brings its tables up to date, and says how they differ from `schema`."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import Connection, Engine
from sqlalchemy.types import TypeEngine

from services.relay.outbox import tables
from services.relay.outbox.engine import dialect, migrations
from services.relay.outbox.engine.migrate import upgrade_tables
from shared.sql.database_url import DatabaseUrl


@contextmanager
def opened(database: DatabaseUrl) -> Iterator[Engine]:
    dialect.make_file(database)
    writing = dialect.create_engines(database).writing
    yield writing
    writing.dispose()


def up(engine: Engine) -> None:
    with engine.begin() as connection:
        upgrade_tables(connection)


def up_by_steps(connection: Connection) -> None:
    """As a database goes that had the tables of every version."""
    with dialect.without_timeouts(connection):
        migrations.run_migrations(connection, from_revision=None)


def differences(connection: Connection) -> list[Any]:
    """What Alembic would change. At the conditions of partial indexes it does not look."""

    def differ(
        _context: object, _column: object, _other: object, found: TypeEngine[Any], wanted: TypeEngine[Any]
    ) -> bool | None:
        if connection.dialect.name != "sqlite":
            return None  # as Alembic sees it
        return found._type_affinity is not wanted._type_affinity  # SQLite knows no other types

    context = MigrationContext.configure(connection, opts={"compare_type": differ, "compare_server_default": True})
    found: list[Any] = compare_metadata(context, tables.metadata)
    return found
