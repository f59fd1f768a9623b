"""PostgreSQL in a container, made without a locale, keeps text as it comes: what it gives back is text all the same."""

from collections.abc import Callable
from uuid import uuid4

import pytest
from sqlalchemy import URL, Engine, text

from services.relay.outbox import database as dialect
from shared.keyring import database as keyring
from tests.postgres import SUPERUSER, Postgres


@pytest.mark.parametrize("engines", [dialect.create_engines, keyring.create_engines])
def test_a_database_that_was_made_without_a_locale_gives_text(
    engines: Callable[[URL], tuple[Engine, Engine]], shared_postgres: Postgres
) -> None:
    name = f"test_{uuid4().hex}"
    shared_postgres._execute(f"CREATE DATABASE {name} TEMPLATE template0 ENCODING 'SQL_ASCII' LOCALE 'C'")
    database = URL.create("postgresql", SUPERUSER, database=name, query={"host": str(shared_postgres.folder)})
    both = engines(database)
    try:
        with both[0].begin() as connection:
            assert connection.scalar(text("SHOW server_encoding")) == "SQL_ASCII"
            assert connection.scalar(text("SELECT CAST(:said AS text)"), {"said": "größer"}) == "größer"
    finally:
        for engine in both:
            engine.dispose()
        shared_postgres.drop(database)
