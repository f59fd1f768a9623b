"""What a keyring in PostgreSQL does on a bad day of its server: bounded, told without a value, and over with it."""

import asyncio
import threading
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from sqlalchemy import URL, Column, Connection, Integer, MetaData, Table, exc, text

from shared.keyring import database as database_module
from shared.keyring.database import _KEYRING_LOCK_ID, STATEMENT_TIMEOUT_SECONDS, Database, DatabaseError
from shared.keyring.tables import TABLES
from tests.conftest import Until
from tests.postgres import Postgres

PASSWORD = "s3cret-password"
_tables = MetaData()
_numbers = Table("numbers", _tables, Column("number", Integer, primary_key=True))


@pytest.fixture
async def database(postgres_database: URL) -> AsyncIterator[Database]:
    opened = await Database.open(postgres_database, _tables)
    yield opened
    await opened.close()


def _insert(connection: Connection) -> None:
    connection.execute(_numbers.insert().values(number=1))


def _count(connection: Connection) -> int:
    return len(connection.execute(_numbers.select()).all())


async def test_many_processes_that_make_the_tables_at_once_all_succeed(postgres_database: URL) -> None:
    opened = await asyncio.gather(*(Database.open(postgres_database, TABLES) for _ in range(3)))
    for database in opened:
        await database.close()


async def test_ids_are_compared_byte_by_byte_whatever_the_language_of_the_database(postgres_database: URL) -> None:
    database = await Database.open(postgres_database, TABLES)
    collation = "SELECT collation_name FROM information_schema.columns WHERE table_name = :t AND column_name = :c"
    try:
        for table, name in (("data_keys", "id"), ("keyring_rotations", "cursor"), ("keyring_problems", "data_key_id")):
            values = {"t": table, "c": name}
            found = await database.read(lambda it, values=values: it.execute(text(collation), values).scalar_one())  # type: ignore[misc]
            assert found == "C"
    finally:
        await database.close()


async def test_whoever_waited_for_another_change_reads_it_whatever_isolation_the_server_has_by_default(
    postgres_database: URL, until: Until
) -> None:
    database = await Database.open(postgres_database, _tables)
    default = f"ALTER DATABASE {postgres_database.database} SET default_transaction_isolation = 'repeatable read'"
    await database.write(lambda connection: connection.execute(text(default)))
    await database.close()
    first, second = [await Database.open(postgres_database) for _ in range(2)]
    locked, proceed = threading.Event(), threading.Event()

    def slow(connection: Connection) -> None:
        locked.set()
        assert proceed.wait(STATEMENT_TIMEOUT_SECONDS)
        _insert(connection)

    async def is_waiting() -> bool:
        waits = text("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted")
        return bool(await first.read(lambda connection: connection.execute(waits).scalar_one()))

    try:
        assert [await each.write_exclusively(_count) for each in (first, second)] == [0, 0]  # they are connected
        assert not await is_waiting()
        changing = asyncio.create_task(first.write_exclusively(slow))
        await asyncio.to_thread(locked.wait, STATEMENT_TIMEOUT_SECONDS)
        counting = asyncio.create_task(second.write_exclusively(_count))
        await until(is_waiting)
        assert await second.read(_count) == 0, "a reader waits for nobody"
        proceed.set()
        await changing
        assert await counting == 1
    finally:
        proceed.set()
        await first.close()
        await second.close()


async def test_a_server_that_restarts_in_between_is_nobodys_error(own_postgres: Postgres) -> None:
    database = await Database.open(own_postgres.database("restarted"), _tables)
    try:
        await database.write(_insert)
        assert await database.read(_count) == 1
        await asyncio.to_thread(own_postgres.stop)
        with pytest.raises(DatabaseError):
            await database.read(_count)
        await asyncio.to_thread(own_postgres.start)
        assert await database.read(_count) == 1
        await database.write(lambda connection: connection.execute(_numbers.insert().values(number=2)))
    finally:
        await database.close()


async def test_a_server_that_is_not_there_is_an_error_that_shows_no_password(tmp_path: Path) -> None:
    nowhere = URL.create("postgresql", "user", PASSWORD, database="keyring", query={"host": str(tmp_path)})
    with pytest.raises(DatabaseError) as raised:
        await Database.open(nowhere, TABLES)
    assert "No such file or directory" in str(raised.value)
    assert PASSWORD not in repr(raised.value)


async def test_a_statement_that_takes_too_long_ends_within_its_bound_and_a_longer_one_may_be_set(
    postgres_database: URL, monkeypatch: pytest.MonkeyPatch
) -> None:
    usual = f"statement_timeout={STATEMENT_TIMEOUT_SECONDS:g}s"
    assert usual in database_module._SERVER_OPTIONS
    options = database_module._SERVER_OPTIONS.replace(usual, "statement_timeout=1s")
    monkeypatch.setattr(database_module, "_SERVER_OPTIONS", options)
    monkeypatch.setattr(database_module, "STATEMENT_TIMEOUT_SECONDS", 1.0)
    database = Database(postgres_database)
    try:
        begun = time.monotonic()
        with pytest.raises(DatabaseError, match="statement timeout"):
            await database.read(lambda connection: connection.execute(text("SELECT pg_sleep(60)")))
        assert time.monotonic() - begun < 7
        one = await database.read(lambda it: it.execute(text("SELECT 1 FROM pg_sleep(1.6)")).scalar_one(), seconds=30)
        assert one == 1
        assert await database.read(_read_answer_timeout) == 1.5
        with pytest.raises(DatabaseError, match="statement timeout"):  # the same connection has the usual timeout again
            await database.read(lambda connection: connection.execute(text("SELECT pg_sleep(60)")))
    finally:
        await database.close()


def _read_answer_timeout(connection: Connection) -> float:
    own: Any = connection.connection.driver_connection
    return float(own.answer_timeout.seconds)


async def test_a_lock_that_stays_is_an_error_within_its_bound(database: Database, postgres_database: URL) -> None:
    with psycopg.connect(postgres_database.render_as_string(hide_password=False)) as other:
        other.execute("SELECT pg_advisory_xact_lock(%s)", (_KEYRING_LOCK_ID,))
        with pytest.raises(DatabaseError, match="lock timeout"):
            await database.write_exclusively(_insert)
    await database.write_exclusively(_insert)


async def test_a_lost_race_is_reported_as_it_is_and_other_errors_show_no_values(database: Database) -> None:
    await database.write(_insert)
    with pytest.raises(exc.IntegrityError):
        await database.write(_insert)
    with pytest.raises(DatabaseError) as raised:
        await database.write(lambda it: it.execute(text("INSERT INTO nothing VALUES (:secret)"), {"secret": PASSWORD}))
    assert str(raised.value) == 'relation "nothing" does not exist'


async def test_a_long_read_whose_connection_ends_names_the_cause_and_the_next_one_succeeds(database: Database) -> None:
    end = text("SELECT pg_terminate_backend(pg_backend_pid())")
    with pytest.raises(DatabaseError, match="terminating connection due to administrator command"):
        await database.read(lambda connection: connection.execute(end), seconds=30)
    assert await database.read(_count, seconds=30) == 0
