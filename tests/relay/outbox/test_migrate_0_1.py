"""What keypulse 0.1 left behind goes up in place, and nothing of it is lost."""

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from alembic.operations import Operations
from alembic.runtime.migration import MigrationContext
from sqlalchemy import Engine, exc, inspect, select

from services.relay.outbox import tables
from services.relay.outbox.engine import migrations
from services.relay.outbox.engine.migrate import upgrade_tables
from shared.sql import database_url
from shared.sql.database_url import DatabaseUrl
from tests.relay.outbox.tables import differences, opened, up, up_by_steps

TABLES = Path(__file__).with_name("keypulse_0_1.sql").read_text()
DATABASE_0_1 = Path(__file__).with_name("keypulse_0_1_held.sql").read_text()


@pytest.fixture
def v01(tmp_path: Path) -> Path:
    file = tmp_path / "v01.db"
    with closing(sqlite3.connect(file)) as connection:
        connection.executescript(TABLES)
        connection.executescript(DATABASE_0_1)
    return file


@pytest.fixture
def engine(v01: Path) -> Iterator[Engine]:
    with opened(database_url.create_sqlite_url(v01)) as engine:
        yield engine


def dump(file: Path) -> list[str]:
    with closing(sqlite3.connect(file)) as connection:
        return [*connection.iterdump(), str(connection.execute("PRAGMA user_version").fetchone())]


def test_a_file_of_keypulse_0_1_gets_the_tables_of_a_new_one(engine: Engine, tmp_path: Path) -> None:
    up(engine)

    with engine.begin() as connection:
        assert differences(connection) == []
        columns = {name: str(inspect(connection).get_columns(name)) for name in tables.metadata.tables}
    with opened(database_url.create_sqlite_url(tmp_path / "new.db")) as new, new.begin() as connection:
        up_by_steps(connection)
        assert columns == {name: str(inspect(connection).get_columns(name)) for name in tables.metadata.tables}


def test_a_file_of_keypulse_0_1_keeps_all_that_it_contains(v01: Path, engine: Engine) -> None:
    same_tables = ("incidents", "events", "attempts", "quarantine")
    with closing(sqlite3.connect(v01)) as old:
        before = {name: old.execute(f"SELECT * FROM {name}").fetchall() for name in same_tables}  # noqa: S608  # names of ours
    with engine.begin() as connection:
        upgrade_tables(connection)

        for name in same_tables:
            after = connection.execute(tables.metadata.tables[name].select()).all()
            assert [tuple(row)[: len(before[name][0])] for row in after] == before[name]
        assert connection.exec_driver_sql("PRAGMA foreign_key_check").all() == []


def test_what_waited_in_keypulse_0_1_is_merged_and_still_due(engine: Engine) -> None:
    of = tables.deliveries.c
    with engine.begin() as connection:
        upgrade_tables(connection)
        columns = (
            of.id,
            of.state,
            of.first_event_seq,
            of.event_seq,
            of.attempts,
            of.due_at,
            of.lease,
            of.superseded_by,
        )

        assert [tuple(row) for row in connection.execute(select(*columns).order_by(of.seq))] == [
            ("d1", "delivered", 1, 1, 1, 0, None, None),
            ("d2", "superseded", 2, 2, 3, 190, None, "d4"),
            ("d3", "superseded", 3, 3, 0, 0, None, "d4"),
            ("d4", "retrying", 2, 4, 3, 190, None, None),
            ("d5", "sending", 3, 3, 1, 150, "run/1", None),
            ("d6", "queued", 4, 4, 0, 0, None, None),
            ("d7", "queued", 5, 5, 0, 0, None, None),
            ("d8", "dead", 5, 5, 9, 0, None, None),
        ]
        unfinished = select(of.id).where(of.finished_at.is_(None)).order_by(of.seq)
        assert connection.execute(unfinished).scalars().all() == ["d4", "d5", "d6", "d7"]


def test_keypulse_0_1_refuses_a_file_that_was_upgraded(v01: Path, engine: Engine) -> None:
    up(engine)

    with closing(sqlite3.connect(v01)) as connection:
        (version,) = connection.execute("PRAGMA user_version").fetchone()
    assert version > 1, "0.1 takes a file whose user_version is higher than its own, 1, for a newer keypulse's"


def test_what_waits_is_merged_in_postgresql_too(postgres_database: DatabaseUrl) -> None:
    first = migrations.SCRIPTS.get_revision("0001")
    with opened(postgres_database) as engine:
        with engine.begin() as connection:
            context = MigrationContext.configure(connection)
            first.module.upgrade(Operations(context))
            context.stamp(migrations.SCRIPTS, "0001")
            connection.exec_driver_sql(DATABASE_0_1)
        with engine.begin() as connection:
            upgrade_tables(connection)
            of = tables.deliveries.c
            columns = (of.id, of.state, of.first_event_seq, of.attempts, of.due_at)
            unfinished = connection.execute(select(*columns).where(of.finished_at.is_(None)).order_by(of.seq))

            assert [tuple(row) for row in unfinished] == [
                ("d4", "retrying", 2, 3, 190),
                ("d5", "sending", 3, 1, 150),
                ("d6", "queued", 4, 0, 0),
                ("d7", "queued", 5, 0, 0),
            ]
            assert differences(connection) == []


def test_a_migration_that_fails_leaves_the_file_as_it_was(v01: Path, engine: Engine) -> None:
    with closing(sqlite3.connect(v01)) as connection:
        connection.execute("CREATE TABLE watchdogs (in_the_way TEXT)")
    before = dump(v01)

    with pytest.raises(exc.OperationalError, match="table watchdogs already exists"):
        up(engine)

    assert dump(v01) == before
