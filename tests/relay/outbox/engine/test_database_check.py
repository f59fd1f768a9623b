"""What `doctor` says of the outbox's database, and that it changes nothing there, on both stores."""

from pathlib import Path

import pytest
from sqlalchemy import inspect, text

from services.relay.doctor import check_outbox
from services.relay.outbox.database import REVISION
from shared.check import CheckError
from shared.sql.database_url import DatabaseUrl, create_sqlite_url
from tests.postgres import Postgres
from tests.relay.outbox.tables import opened
from tests.stores import each_store


def is_untouched(database: DatabaseUrl) -> bool:
    if database.drivername == "sqlite":
        return not Path(str(database.database)).exists()
    with opened(database) as engine, engine.connect() as connection:
        return inspect(connection).get_table_names() == []


async def test_an_empty_database_gets_its_tables_at_the_first_start_and_not_before(empty_database: DatabaseUrl) -> None:
    assert "the first start makes it" in await check_outbox(empty_database)
    assert is_untouched(empty_database)


@each_store
async def test_tables_of_this_program_are_up_to_date(database: DatabaseUrl) -> None:
    assert await check_outbox(database) == "its tables are up to date"


@each_store
async def test_tables_of_another_revision_are_read_and_left_as_they_are(database: DatabaseUrl) -> None:
    with opened(database) as engine, engine.begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '0022'"))
    with pytest.raises(CheckError) as refused:
        await check_outbox(database)
    assert refused.value.error == (
        f"another version of keypulse made it: its tables are of revision 0022, and this one uses {REVISION}"
    )
    assert refused.value.hint == "run that version, or set another `database`"
    with opened(database) as engine, engine.connect() as connection:
        assert connection.execute(text("SELECT version_num FROM alembic_version")).scalar_one() == "0022"


async def test_a_user_who_may_create_no_table_is_named(
    postgres_database: DatabaseUrl, shared_postgres: Postgres
) -> None:
    with opened(postgres_database) as engine, engine.begin() as connection:
        connection.execute(text("DROP ROLE IF EXISTS reader"))
        connection.execute(text("CREATE ROLE reader LOGIN"))
        connection.execute(text("REVOKE CREATE ON SCHEMA public FROM PUBLIC"))
    with pytest.raises(CheckError) as refused:
        await check_outbox(postgres_database.set(username="reader"))
    assert refused.value.error == "it is empty, and the user reader may not create its tables"
    assert "GRANT CREATE ON SCHEMA public TO reader" in refused.value.hint


async def test_a_file_that_is_no_database_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "relay.db").write_text("no database " * 100)
    with pytest.raises(CheckError, match="file is not a database"):
        await check_outbox(create_sqlite_url(tmp_path / "relay.db"))


async def test_an_empty_file_is_an_empty_database(tmp_path: Path) -> None:
    (tmp_path / "relay.db").touch()
    assert "the first start makes its tables" in await check_outbox(create_sqlite_url(tmp_path / "relay.db"))
    assert (tmp_path / "relay.db").read_bytes() == b""
