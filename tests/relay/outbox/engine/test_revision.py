"""The outbox's tables are created once, and a database of somebody else is left as it is."""

import sqlite3
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest
from sqlalchemy import Engine, exc, inspect, text

from services.relay.outbox import tables as schema
from services.relay.outbox.database import REVISION, UnknownDatabaseError, create_tables
from shared.sql import database_url
from shared.sql.database_url import DatabaseUrl
from tests.relay.outbox.tables import opened, up


@pytest.fixture
def engine(empty_database: DatabaseUrl) -> Iterator[Engine]:
    with opened(empty_database) as engine:
        yield engine


@pytest.fixture
def postgres(postgres_database: DatabaseUrl) -> Iterator[Engine]:
    with opened(postgres_database) as engine:
        yield engine


def test_the_tables_are_created_once(engine: Engine) -> None:
    assert [up(engine), up(engine)] == [True, False]
    with engine.begin() as connection:
        assert {*schema.metadata.tables, "alembic_version"} <= set(inspect(connection).get_table_names())
        assert connection.execute(text("SELECT version_num FROM alembic_version")).scalars().all() == [REVISION]


def test_several_replicas_that_start_at_once_make_the_tables_once(postgres_database: DatabaseUrl) -> None:
    def start(_: int) -> None:
        with opened(postgres_database) as replica:
            up(replica)

    with ThreadPoolExecutor(6) as replicas:
        list(replicas.map(start, range(6)))

    with opened(postgres_database) as engine, engine.begin() as connection:
        assert connection.execute(text("SELECT version_num FROM alembic_version")).scalars().all() == [REVISION]


@pytest.mark.parametrize(
    ("statement", "error"),
    [
        (
            "DROP TABLE edits",
            (
                "its table edits is missing: another version of keypulse made it, or a restore left it out; "
                "run that version, or restore a backup of the whole database"
            ),
        ),
        (
            "ALTER TABLE edits RENAME COLUMN shown TO former",
            "another version of keypulse made it: its table edits has no column shown; run that version, or .*",
        ),
    ],
)
def test_tables_that_the_revision_does_not_have_are_refused_in_a_sentence(
    engine: Engine, statement: str, error: str
) -> None:
    up(engine)
    with engine.begin() as connection:
        connection.execute(text(statement))

    with pytest.raises(UnknownDatabaseError, match=f"^{error}$"):
        up(engine)


@pytest.mark.parametrize("table", ["events", "alembic_version"])
def test_a_database_with_tables_of_another_program_is_refused(engine: Engine, table: str) -> None:
    with engine.begin() as connection:
        connection.execute(text(f"CREATE TABLE {table} (version_num TEXT)"))
        connection.execute(text(f"INSERT INTO {table} VALUES ('f00d')"))  # noqa: S608  # names of ours

    with pytest.raises(UnknownDatabaseError, match="another program's tables are in it; set another `database`"):
        up(engine)

    with engine.begin() as connection:
        assert inspect(connection).get_table_names() == [table]


def test_an_sqlite_file_of_another_program_is_refused_whatever_its_tables_are_called(tmp_path: Path) -> None:
    file = tmp_path / "notes.db"
    with closing(sqlite3.connect(file)) as connection:
        connection.executescript("CREATE TABLE notes (words TEXT); PRAGMA user_version = 1;")

    with (
        opened(database_url.create_sqlite_url(file)) as engine,
        pytest.raises(UnknownDatabaseError, match="another program"),
    ):
        up(engine)


def test_other_tables_may_live_beside_ours_in_postgresql(postgres: Engine) -> None:
    with postgres.begin() as connection:
        connection.execute(text("CREATE TABLE notes (words TEXT)"))
        create_tables(connection)

        assert "deliveries" in inspect(connection).get_table_names()


def test_tables_that_cannot_all_be_created_leave_postgresql_as_it_was(postgres: Engine) -> None:
    with postgres.begin() as connection:  # an index shares its table's namespace, and the outbox looks at tables alone
        connection.execute(text("CREATE TABLE notes (words TEXT)"))
        connection.execute(text("CREATE INDEX watchdogs ON notes (words)"))

    with pytest.raises(exc.ProgrammingError, match='"watchdogs" already exists'):
        up(postgres)

    with postgres.begin() as connection:
        assert inspect(connection).get_table_names() == ["notes"]
