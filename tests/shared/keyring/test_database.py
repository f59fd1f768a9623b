import asyncio
import os
import sqlite3
import stat
import threading
from collections.abc import AsyncIterator
from contextlib import closing
from pathlib import Path

import pytest
from sqlalchemy import Column, Connection, Integer, MetaData, Table, event, text

from shared.keyring.database import Database, DatabaseError
from shared.keyring.tables import TABLES as KEYRING_TABLES
from shared.sql.database_url import DatabaseUrl, create_sqlite_url
from tests.stopwatch import Stopwatch
from tests.stores import each_empty_database

TABLES = MetaData()
_numbers = Table("numbers", TABLES, Column("number", Integer, primary_key=True))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "some.db"


@pytest.fixture
async def database(file: Path) -> AsyncIterator[Database]:
    opened = await Database.open(create_sqlite_url(file), TABLES)
    yield opened
    await opened.close()


def _insert(connection: Connection) -> None:
    connection.execute(_numbers.insert().values(number=1))


def _count(connection: Connection) -> int:
    return len(connection.execute(_numbers.select()).all())


async def test_what_is_written_is_read_by_another_process_at_once(database: Database, file: Path) -> None:
    await database.write(_insert)
    with closing(sqlite3.connect(file)) as other:
        assert other.execute("SELECT number FROM numbers").fetchall() == [(1,)]


async def test_a_commit_is_on_the_disk_before_the_answer(database: Database) -> None:
    def pragmas(connection: Connection) -> tuple[str, int]:
        return (
            connection.execute(text("PRAGMA journal_mode")).scalar_one(),
            connection.execute(text("PRAGMA synchronous")).scalar_one(),
        )

    assert await database.write(pragmas) == ("wal", 2)  # 2 is FULL
    assert await database.read(pragmas) == ("wal", 2)


async def test_another_writers_lock_is_waited_for(database: Database, file: Path) -> None:
    with closing(sqlite3.connect(file, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        writing = asyncio.create_task(database.write(_insert))
        assert await database.read(_count) == 0  # a read waits for no writer
        other.execute("COMMIT")
        await writing
    assert await database.read(_count) == 1


async def test_a_lock_that_stays_is_an_error_within_its_bound(database: Database, file: Path) -> None:
    with closing(sqlite3.connect(file, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        stopwatch = Stopwatch()
        with pytest.raises(DatabaseError, match="database is locked"):
            await database.write(_insert)
        assert stopwatch.seconds < 5
    await database.write(_insert)


async def test_a_writer_behind_a_stuck_one_is_answered_within_its_bound_and_writes_nothing_later(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    stuck, go_on = threading.Event(), threading.Event()

    def wait(_connection: Connection) -> None:
        stuck.set()
        go_on.wait(20)

    first = asyncio.create_task(database.write(wait))
    try:
        assert await asyncio.to_thread(stuck.wait, 10)
        with monkeypatch.context() as shorter:
            shorter.setattr(Database._run, "__defaults__", (1.0,))  # instead of ANSWER_TIMEOUT_SECONDS
            with pytest.raises(DatabaseError, match="no answer within 1 s"):
                await database.write(_insert)
    finally:
        go_on.set()
        await asyncio.gather(first, return_exceptions=True)
    assert await database.write(_count) == 0


async def test_a_full_disk_is_an_error_that_shows_no_values_and_ends_with_it(file: Path) -> None:
    await asyncio.to_thread(file.touch)
    database = Database(create_sqlite_url(file))
    event.listen(
        database._write_engine, "connect", lambda connection, _: connection.execute("PRAGMA max_page_count=20")
    )
    try:
        await database.write(lambda connection: connection.execute(text("CREATE TABLE blobs (blob BLOB)")))

        def insert(connection: Connection, size: int) -> None:
            connection.execute(text("INSERT INTO blobs VALUES (:blob)"), {"blob": b"s3cret" * size})

        with pytest.raises(DatabaseError) as full:
            await database.write(lambda connection: insert(connection, 100_000))
        assert str(full.value) == "database or disk is full"
        await database.write(lambda connection: insert(connection, 1))
    finally:
        await database.close()


@pytest.fixture
def no_database(file: Path) -> Path:
    file.write_bytes(os.urandom(8192))
    return file


async def test_a_file_that_is_no_database_is_an_error(no_database: Path) -> None:
    with pytest.raises(DatabaseError, match="file is not a database"):
        await Database.open(create_sqlite_url(no_database), TABLES)


async def test_a_missing_folder_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DatabaseError, match=r"gone does not exist; run: mkdir -p .*/gone$"):
        await Database.open(create_sqlite_url(tmp_path / "gone" / "some.db"), TABLES)


async def test_it_is_made_for_its_owner_alone_and_so_are_the_files_beside_it(database: Database, file: Path) -> None:
    await database.write(_insert)
    modes = {each.name: stat.S_IMODE(each.stat().st_mode) for each in file.parent.glob(f"{file.name}*")}
    assert modes == {file.name + ending: 0o600 for ending in ("", "-wal", "-shm")}


async def test_nothing_is_written_into_a_file_that_was_removed_or_replaced(database: Database, file: Path) -> None:
    await database.write(_insert)
    await asyncio.to_thread(file.rename, file.with_suffix(".moved"))
    for _ in range(2):
        with pytest.raises(DatabaseError, match=r"there is no file .*; put it back"):
            await database.write(lambda connection: connection.execute(_numbers.insert().values(number=2)))
    assert not await asyncio.to_thread(file.exists)
    await asyncio.to_thread(file.with_suffix(".moved").rename, file)
    await database.write(lambda connection: connection.execute(_numbers.insert().values(number=3)))
    assert await database.read(_count) == 2


@pytest.mark.parametrize("statement", ["UPDATE keyring_schema SET version = 3", "DROP TABLE keyring_schema"])
@each_empty_database
async def test_the_keyring_of_another_version_of_keypulse_is_refused_in_a_sentence(
    empty_database: DatabaseUrl, statement: str
) -> None:
    database = await Database.open(empty_database, KEYRING_TABLES)
    await database.write(lambda connection: connection.execute(text(statement)).close())
    await database.close()
    with pytest.raises(DatabaseError, match=r"another version of keypulse made its keyring: .* uses 1; run that v"):
        await Database.open(empty_database, KEYRING_TABLES)


@each_empty_database
async def test_a_keyring_without_its_data_keys_is_refused_in_a_sentence(empty_database: DatabaseUrl) -> None:
    database = await Database.open(empty_database, KEYRING_TABLES)
    await database.write(lambda connection: connection.execute(text("DROP TABLE data_keys")).close())
    await database.close()
    with pytest.raises(
        DatabaseError, match=r"^its table data_keys is missing; restore a backup of the whole database$"
    ):
        await Database.open(empty_database, KEYRING_TABLES)
