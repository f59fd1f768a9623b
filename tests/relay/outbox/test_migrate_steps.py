"""What an outbox of an earlier revision than the newest holds is still there, and means the same, on both stores."""

from collections.abc import Iterator

import pytest
from alembic.operations import Operations
from alembic.runtime.migration import MigrationContext
from sqlalchemy import Engine, insert, select

from services.relay.outbox import migrations, schema
from services.relay.outbox.database import Database
from tests.relay.outbox.tables import differences, opened, up


@pytest.fixture
def engine(empty_database: Database) -> Iterator[Engine]:
    """An empty outbox of revision 0002."""
    with opened(empty_database) as engine:
        with engine.begin() as connection:
            context = MigrationContext.configure(connection)
            for revision in ("0001", "0002"):
                migrations.SCRIPTS.get_revision(revision).module.upgrade(Operations(context))
            context.stamp(migrations.SCRIPTS, "0002")
        yield engine


def test_nobody_is_known_to_have_asked_for_a_pause(engine: Engine) -> None:
    held = {"name": "a", "open_at": 7.5, "set_at": 2.5, "next_slot": 1.5, "failures": 6, "refused": 1, "reason": "why"}
    with engine.begin() as connection:
        connection.execute(insert(schema.channels).values(held))
    up(engine)

    with engine.begin() as connection:
        (row,) = connection.execute(select(schema.channels)).mappings()
        assert row == held | {"asked_until": None, "asked_at": None}
        assert differences(connection) == []
