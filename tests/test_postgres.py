"""The stores that the tests of the outbox run on."""

import psycopg
import pytest
from sqlalchemy import create_engine, text

from shared.sql.database_url import DatabaseUrl, parse_database_url
from tests.postgres import Postgres


def test_each_test_gets_an_empty_database_of_each_kind(empty_database: DatabaseUrl) -> None:
    engine = create_engine(empty_database)
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE only_mine (number integer)"))
        connection.execute(text("INSERT INTO only_mine VALUES (1)"))
        assert connection.execute(text("SELECT number FROM only_mine")).scalar_one() == 1
    engine.dispose()


def test_its_address_is_one_that_a_person_may_write(database: DatabaseUrl) -> None:
    assert parse_database_url(database.render_as_string(hide_password=False)) == database


def test_what_is_committed_outlives_a_stop(own_postgres: Postgres) -> None:
    engine = create_engine(own_postgres.database("kept"))
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE kept (number integer)"))
    engine.dispose()
    own_postgres.stop()
    with pytest.raises(psycopg.OperationalError):
        own_postgres.database("refused")
    own_postgres.start()
    with engine.connect() as connection:
        assert connection.execute(text("SELECT count(*) FROM kept")).scalar_one() == 0
    engine.dispose()
