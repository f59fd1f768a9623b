import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.operations import Operations
from alembic.runtime.migration import MigrationContext
from sqlalchemy import Connection, Engine, create_engine, exc, inspect, select, text
from sqlalchemy.types import TypeEngine

from services.relay.outbox import database as outbox
from services.relay.outbox import dialect, migrations, schema
from services.relay.outbox.database import Database
from services.relay.outbox.migrate import HEAD, ForeignDatabaseError, NewerSchemaError, upgrade

TABLES = Path(__file__).with_name("keypulse_0_1.sql").read_text()
HELD = Path(__file__).with_name("keypulse_0_1_held.sql").read_text()


@pytest.fixture
def engine(database: Database) -> Iterator[Engine]:
    writing, reading = dialect.engines(database)
    reading.dispose()
    yield writing
    writing.dispose()


@pytest.fixture
def v01(tmp_path: Path) -> Path:
    file = tmp_path / "v01.db"
    with closing(sqlite3.connect(file)) as connection:
        connection.executescript(TABLES)
        connection.executescript(HELD)
    return file


@pytest.fixture
def v01_engine(v01: Path) -> Iterator[Engine]:
    writing, reading = dialect.engines(outbox.sqlite(v01))
    reading.dispose()
    yield writing
    writing.dispose()


def up(engine: Engine) -> None:
    with engine.begin() as connection:
        upgrade(connection)


def differences(connection: Connection) -> list[Any]:
    """What Alembic would change. At the conditions of partial indexes it does not look."""

    def differ(
        _context: object, _column: object, _other: object, found: TypeEngine[Any], wanted: TypeEngine[Any]
    ) -> bool | None:
        if connection.dialect.name != "sqlite":
            return None  # as Alembic sees it
        return found._type_affinity is not wanted._type_affinity  # SQLite knows no other types

    context = MigrationContext.configure(connection, opts={"compare_type": differ, "compare_server_default": True})
    found: list[Any] = compare_metadata(context, schema.metadata)
    return found


def conditions(connection: Connection) -> dict[str | None, str]:
    """Of each partial index."""
    found = {}
    for table in schema.metadata.tables:
        for index in inspect(connection).get_indexes(table):
            where = index.get("dialect_options", {}).get(f"{connection.dialect.name}_where")
            if where is not None:
                found[index["name"]] = str(where)
    return found


def dump(file: Path) -> list[str]:
    with closing(sqlite3.connect(file)) as connection:
        return [*connection.iterdump(), str(connection.execute("PRAGMA user_version").fetchone())]


def test_the_tables_are_those_that_the_program_works_with(engine: Engine) -> None:
    with engine.begin() as connection:
        upgrade(connection)

        assert differences(connection) == []
        made = conditions(connection)
        assert made.keys() == {"deliveries_due", "deliveries_in_order", "deliveries_counted"}
    with engine.begin() as connection:
        for table in reversed(schema.metadata.sorted_tables):
            table.drop(connection)
        schema.metadata.create_all(connection)

        assert conditions(connection) == made


def test_a_second_upgrade_asks_and_changes_nothing(engine: Engine) -> None:
    with engine.begin() as connection:
        upgrade(connection)
        tables = inspect(connection).get_table_names()
    with engine.begin() as connection:
        upgrade(connection)

        assert inspect(connection).get_table_names() == tables
        assert connection.execute(text("SELECT version_num FROM alembic_version")).scalars().all() == [HEAD]


def test_the_newest_revision_is_the_one_that_the_program_expects() -> None:
    assert migrations.SCRIPTS.get_current_head() == HEAD


def test_alembic_is_imported_only_where_there_is_something_to_do(tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from services.relay.outbox import database, dialect, migrate\n"
        "writing, _ = dialect.engines(database.sqlite(Path(sys.argv[1])))\n"
        "with writing.begin() as connection: migrate.upgrade(connection)\n"
        "print('alembic' in sys.modules)"
    )
    command = [sys.executable, "-c", program, str(tmp_path / "relay.db")]

    assert [subprocess.check_output(command, text=True) for _ in range(2)] == ["True\n", "False\n"]


def test_a_file_of_keypulse_0_1_gets_the_tables_of_a_new_one(v01_engine: Engine, tmp_path: Path) -> None:
    new, reading = dialect.engines(outbox.sqlite(tmp_path / "new.db"))
    reading.dispose()
    with new.begin() as connection:
        upgrade(connection)
        columns = {name: inspect(connection).get_columns(name) for name in schema.metadata.tables}
    new.dispose()
    with v01_engine.begin() as connection:
        upgrade(connection)

        assert differences(connection) == []
        for name in schema.metadata.tables:
            found = [{**column, "type": str(column["type"])} for column in inspect(connection).get_columns(name)]
            assert found == [{**column, "type": str(column["type"])} for column in columns[name]]


def test_a_file_of_keypulse_0_1_keeps_all_that_it_holds(v01: Path, v01_engine: Engine) -> None:
    kept = ("incidents", "events", "attempts", "quarantine")
    with closing(sqlite3.connect(v01)) as old:
        before = {name: old.execute(f"SELECT * FROM {name}").fetchall() for name in kept}  # noqa: S608  # names of ours
    with v01_engine.begin() as connection:
        upgrade(connection)

        for name in kept:
            assert [tuple(row) for row in connection.execute(schema.metadata.tables[name].select())] == before[name]
        assert connection.exec_driver_sql("PRAGMA foreign_key_check").all() == []


def test_what_waited_in_keypulse_0_1_is_merged_and_still_due(v01_engine: Engine) -> None:
    of = schema.deliveries.c
    with v01_engine.begin() as connection:
        upgrade(connection)
        rows = connection.execute(
            select(of.id, of.state, of.first_event, of.event_seq, of.attempts, of.due_at, of.lease, of.superseded_by)
            .order_by(of.seq)
        )  # fmt: skip

        assert [tuple(row) for row in rows] == [
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


def test_keypulse_0_1_refuses_a_file_that_was_upgraded(v01: Path, v01_engine: Engine) -> None:
    up(v01_engine)

    with closing(sqlite3.connect(v01)) as connection:
        (version,) = connection.execute("PRAGMA user_version").fetchone()
    assert version > 1, "0.1 takes a file whose user_version is higher than its own, 1, for a newer keypulse's"


def test_what_waits_is_merged_in_postgresql_too(postgres_database: Database) -> None:
    engine = create_engine(postgres_database)
    first = migrations.SCRIPTS.get_revision("0001")
    with engine.begin() as connection:
        context = MigrationContext.configure(connection)
        first.module.upgrade(Operations(context))
        context.stamp(migrations.SCRIPTS, "0001")
        connection.exec_driver_sql(HELD)
    with engine.begin() as connection:
        upgrade(connection)
        of = schema.deliveries.c
        columns = (of.id, of.state, of.first_event, of.attempts, of.due_at)
        unfinished = connection.execute(select(*columns).where(of.finished_at.is_(None)).order_by(of.seq))

        assert [tuple(row) for row in unfinished] == [
            ("d4", "retrying", 2, 3, 190),
            ("d5", "sending", 3, 1, 150),
            ("d6", "queued", 4, 0, 0),
            ("d7", "queued", 5, 0, 0),
        ]
        assert differences(connection) == []
    engine.dispose()


def test_several_replicas_that_start_at_once_make_the_tables_once(postgres_database: Database) -> None:
    def start(_: int) -> None:
        engine = dialect.engines(postgres_database)[0]
        up(engine)
        engine.dispose()

    with ThreadPoolExecutor(6) as replicas:
        list(replicas.map(start, range(6)))

    engine = create_engine(postgres_database)
    with engine.begin() as connection:
        assert connection.execute(text("SELECT version_num FROM alembic_version")).scalars().all() == [HEAD]
        assert differences(connection) == []
    engine.dispose()


def test_a_database_of_a_newer_keypulse_is_refused(engine: Engine) -> None:
    with engine.begin() as connection:
        upgrade(connection)
        connection.execute(text("UPDATE alembic_version SET version_num = '0099'"))

    with pytest.raises(NewerSchemaError, match=r"revision 0099, this program knows up to .*; run that one"):
        up(engine)


@pytest.mark.parametrize("table", ["events", "alembic_version"])
def test_a_database_with_tables_of_another_program_is_refused(engine: Engine, table: str) -> None:
    with engine.begin() as connection:
        connection.execute(text(f"CREATE TABLE {table} (version_num TEXT)"))
        connection.execute(text(f"INSERT INTO {table} VALUES ('f00d')"))  # noqa: S608  # names of ours

    with pytest.raises(ForeignDatabaseError, match="another program's tables are in it; set another `database`"):
        up(engine)

    with engine.begin() as connection:
        assert inspect(connection).get_table_names() == [table]


def test_an_sqlite_file_of_another_program_is_refused_whatever_its_tables_are_called(tmp_path: Path) -> None:
    file = tmp_path / "notes.db"
    with closing(sqlite3.connect(file)) as connection:
        connection.executescript("CREATE TABLE notes (words TEXT); PRAGMA user_version = 1;")
    engine = dialect.engines(outbox.sqlite(file))[0]

    with pytest.raises(ForeignDatabaseError):
        up(engine)
    engine.dispose()


def test_other_tables_may_live_beside_ours_in_postgresql(postgres_database: Database) -> None:
    engine = create_engine(postgres_database)
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE notes (words TEXT)"))
        upgrade(connection)

        assert "deliveries" in inspect(connection).get_table_names()
    engine.dispose()


def test_a_migration_that_fails_leaves_the_file_as_it_was(v01: Path, v01_engine: Engine) -> None:
    with closing(sqlite3.connect(v01)) as connection:
        connection.execute("CREATE TABLE watchdogs (in_the_way TEXT)")
    before = dump(v01)

    with pytest.raises(exc.OperationalError, match="table watchdogs already exists"):
        up(v01_engine)

    assert dump(v01) == before


def test_a_migration_that_fails_leaves_postgresql_as_it_was(postgres_database: Database) -> None:
    engine = create_engine(postgres_database)
    with engine.begin() as connection:  # an index shares its table's namespace, and the outbox looks at tables alone
        connection.execute(text("CREATE TABLE notes (words TEXT)"))
        connection.execute(text("CREATE INDEX watchdogs ON notes (words)"))

    with pytest.raises(exc.ProgrammingError, match='"watchdogs" already exists'):
        up(engine)

    with engine.begin() as connection:
        assert inspect(connection).get_table_names() == ["notes"]
    engine.dispose()
