import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest
from sqlalchemy import Connection, Engine, exc, inspect, text

from services.relay.outbox import tables as schema
from services.relay.outbox.engine import migrations
from services.relay.outbox.engine.migrate import HEAD, ForeignDatabaseError, NewerOutboxSchemaError, upgrade_tables
from shared.sql import database_url
from shared.sql.database_url import DatabaseUrl
from tests.relay.outbox.tables import differences, opened, up, up_by_steps


@pytest.fixture
def engine(empty_database: DatabaseUrl) -> Iterator[Engine]:
    with opened(empty_database) as engine:
        yield engine


@pytest.fixture
def postgres(postgres_database: DatabaseUrl) -> Iterator[Engine]:
    with opened(postgres_database) as engine:
        yield engine


def conditions(connection: Connection) -> dict[str | None, str]:
    """Of each partial index."""
    found = {}
    for table in schema.metadata.tables:
        for index in inspect(connection).get_indexes(table):
            where = index.get("dialect_options", {}).get(f"{connection.dialect.name}_where")
            if where is not None:
                found[index["name"]] = str(where)
    return found


def test_the_steps_lead_to_the_tables_that_a_new_database_gets(engine: Engine) -> None:
    with engine.begin() as connection:
        up_by_steps(connection)

        assert differences(connection) == []
        created = conditions(connection)
        partial = {
            index.name
            for table in schema.metadata.tables.values()
            for index in table.indexes
            if index.dialect_options["sqlite"]["where"] is not None
        }
        assert created.keys() == partial
    with engine.begin() as connection:
        for table in reversed(schema.metadata.sorted_tables):
            table.drop(connection)
        connection.execute(text("DROP TABLE alembic_version"))
        if connection.dialect.name == "sqlite":
            assert connection.exec_driver_sql("PRAGMA user_version").scalar() == 2  # too new for keypulse 0.1
            connection.exec_driver_sql("PRAGMA user_version = 0")
        upgrade_tables(connection)

        assert differences(connection) == []
        assert conditions(connection) == created
        assert connection.execute(text("SELECT version_num FROM alembic_version")).scalars().all() == [HEAD]
        if connection.dialect.name == "sqlite":
            assert connection.exec_driver_sql("PRAGMA user_version").scalar() == 2


def test_a_second_upgrade_asks_and_changes_nothing(engine: Engine) -> None:
    with engine.begin() as connection:
        upgrade_tables(connection)
        tables = inspect(connection).get_table_names()
    with engine.begin() as connection:
        upgrade_tables(connection)

        assert inspect(connection).get_table_names() == tables
        assert connection.execute(text("SELECT version_num FROM alembic_version")).scalars().all() == [HEAD]


def test_the_newest_revision_is_the_one_that_the_program_expects() -> None:
    assert migrations.SCRIPTS.get_current_head() == HEAD


def test_alembic_is_imported_only_where_there_are_older_tables(tmp_path: Path) -> None:
    with closing(sqlite3.connect(tmp_path / "old.db")) as old:
        old.executescript((Path(__file__).parents[1] / "keypulse_0_1.sql").read_text())
    program = (
        "import sys; from pathlib import Path; from services.relay.outbox.engine import dialect, migrate\n"
        "from shared.sql import database_url\n"
        "dialect.make_file(where := database_url.create_sqlite_url(Path(sys.argv[1])))\n"
        "writing = dialect.create_engines(where).writing\n"
        "with writing.begin() as connection: migrate.upgrade_tables(connection)\n"
        "print('alembic' in sys.modules)"
    )
    files = ["old.db", "old.db", "new.db"]
    commands = [[sys.executable, "-c", program, str(tmp_path / file)] for file in files]

    assert [subprocess.check_output(command, text=True) for command in commands] == ["True\n", "False\n", "False\n"]


def test_several_replicas_that_start_at_once_make_the_tables_once(postgres_database: DatabaseUrl) -> None:
    def start(_: int) -> None:
        with opened(postgres_database) as replica:
            up(replica)

    with ThreadPoolExecutor(6) as replicas:
        list(replicas.map(start, range(6)))

    with opened(postgres_database) as engine, engine.begin() as connection:
        assert connection.execute(text("SELECT version_num FROM alembic_version")).scalars().all() == [HEAD]
        assert differences(connection) == []


def test_a_database_of_a_newer_keypulse_is_refused(engine: Engine) -> None:
    with engine.begin() as connection:
        upgrade_tables(connection)
        connection.execute(text("UPDATE alembic_version SET version_num = '0099'"))

    with pytest.raises(NewerOutboxSchemaError, match=r"revision 0099, this program supports up to .*; run that one"):
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

    with opened(database_url.create_sqlite_url(file)) as engine, pytest.raises(ForeignDatabaseError):
        up(engine)


def test_other_tables_may_live_beside_ours_in_postgresql(postgres: Engine) -> None:
    with postgres.begin() as connection:
        connection.execute(text("CREATE TABLE notes (words TEXT)"))
        upgrade_tables(connection)

        assert "deliveries" in inspect(connection).get_table_names()


def test_a_migration_that_fails_leaves_postgresql_as_it_was(postgres: Engine) -> None:
    with postgres.begin() as connection:  # an index shares its table's namespace, and the outbox looks at tables alone
        connection.execute(text("CREATE TABLE notes (words TEXT)"))
        connection.execute(text("CREATE INDEX watchdogs ON notes (words)"))

    with pytest.raises(exc.ProgrammingError, match='"watchdogs" already exists'):
        up(postgres)

    with postgres.begin() as connection:
        assert inspect(connection).get_table_names() == ["notes"]
