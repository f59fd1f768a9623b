"""Opens an outbox as the store does, and creates its tables."""

from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy import Engine

from services.relay.outbox import database as dialect
from services.relay.outbox.database import create_tables
from shared.sql.database_url import DatabaseUrl


@contextmanager
def opened(database: DatabaseUrl) -> Iterator[Engine]:
    dialect.make_file(database)
    writing = dialect.create_engines(database).writing
    yield writing
    writing.dispose()


def up(engine: Engine) -> bool:
    with engine.begin() as connection:
        return create_tables(connection)
