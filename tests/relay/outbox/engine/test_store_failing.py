"""What the store does when the database fails, is full, is not there or is not ours."""

import asyncio
import subprocess
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from sqlalchemy import Connection, event, exc, text

from services.relay.outbox.store import Store, StoreUnavailableError, StoreUnusableError, open_store
from shared.sql import database_url
from tests.faults.disk import tmpfs
from tests.postgres import Postgres
from tests.relay.outbox.store_jobs import bodies, write
from tests.stores import each_store


async def test_a_full_disk_refuses_the_work_and_the_store_goes_on_when_there_is_space(store: Store) -> None:
    # SQLite's own limit on the file gives the error of a full disk; it ends with the connection.
    await store.run(lambda tx: tx.connection.exec_driver_sql("PRAGMA max_page_count = 1"))
    with pytest.raises(StoreUnavailableError, match="full"):
        await store.run(partial(write, body=b"x" * 1_000_000))
    assert store.error == "database or disk is full"
    await store.run(partial(write, body=b"y"))
    assert store.error is None
    assert await bodies(store) == [b"y"]


async def test_after_a_failure_the_file_is_opened_again(store: Store) -> None:
    reopened = []
    event.listen(store._engines.writing, "connect", lambda _connection, _entry: reopened.append(1))
    await store.run(write)
    assert reopened == []
    with pytest.raises(StoreUnavailableError, match="no such table"):
        await store.run(lambda tx: tx.connection.exec_driver_sql("SELECT * FROM missing"))
    await store.run(write)
    assert reopened == [1]


@each_store
async def test_a_read_during_which_another_fails_leaves_no_connection_open(either: Store) -> None:
    reads, fails = threading.Event(), threading.Event()
    closed = []
    event.listen(either._engines.reading, "close", lambda connection, _entry: closed.append(connection))

    def read(connection: Connection) -> object:
        reads.set()
        assert fails.wait(10)
        return connection.connection.driver_connection

    first = asyncio.create_task(either.read(read))
    assert await asyncio.to_thread(reads.wait, 10)
    with pytest.raises(StoreUnavailableError, match="missing"):
        await either.read(lambda connection: connection.exec_driver_sql("SELECT * FROM missing"))
    fails.set()
    assert await first in closed
    assert await bodies(either) == []


@each_store
async def test_an_errors_text_shows_no_payload(either: Store) -> None:
    incomplete = text("SELECT :there, :missing")
    with pytest.raises(exc.StatementError, match="missing") as raised:
        await either.run(lambda tx: tx.connection.execute(incomplete, {"there": "a-payload"}))
    assert "a-payload" not in str(raised.value)
    assert "a-payload" not in repr(raised.value)


async def check_used_once_repaired(store: Store, repair: Callable[[], object]) -> None:
    """Nothing is written or read until then; then `at last` is written."""
    assert store.error is not None
    with pytest.raises(StoreUnavailableError):
        await store.run(write)
    with pytest.raises(StoreUnavailableError):
        await bodies(store)
    repair()
    await store.run(partial(write, body=b"at last"))
    assert store.error is None


async def test_a_database_that_is_not_there_yet_is_used_once_it_is(own_postgres: Postgres) -> None:
    database = own_postgres.database("later")
    own_postgres.stop()
    async with open_store(database, lambda: 0.0) as store:
        await check_used_once_repaired(store, own_postgres.start)
        assert await bodies(store) == [b"at last"]


async def test_a_database_that_nobody_made_is_an_error_of_the_configuration(shared_postgres: Postgres) -> None:
    missing = shared_postgres.database("made").set(database="missing")
    with pytest.raises(StoreUnusableError, match='database "missing" does not exist'):
        async with open_store(missing, lambda: 0.0):
            pass


async def create_outbox(file: Path) -> None:
    """An outbox that was used and closed."""
    async with open_store(database_url.create_sqlite_url(file), lambda: 0.0) as store:
        await store.run(write)


@pytest.mark.parametrize("before", ["an outbox", "nothing"])
async def test_a_disk_that_is_full_at_the_start_is_waited_for(tmp_path: Path, before: str) -> None:
    with tmpfs(tmp_path) as disk:
        if before == "an outbox":
            await create_outbox(tmp_path / "relay.db")
        disk.fill()
        async with open_store(database_url.create_sqlite_url(tmp_path / "relay.db"), lambda: 0.0) as store:
            await check_used_once_repaired(store, disk.free)
            assert (await bodies(store))[-1] == b"at last"
            assert (tmp_path / "relay.db").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("before", ["an outbox", "nothing"])
async def test_a_disk_that_takes_no_more_files_at_the_start_is_waited_for(tmp_path: Path, before: str) -> None:
    with tmpfs(tmp_path):
        if before == "an outbox":
            await create_outbox(tmp_path / "relay.db")
        _set_file_limit(tmp_path, 1 if before == "an outbox" else 0)
        async with open_store(database_url.create_sqlite_url(tmp_path / "relay.db"), lambda: 0.0) as store:
            assert store.error is not None
            with pytest.raises(StoreUnavailableError):
                await store.run(write)
            _set_file_limit(tmp_path, 100)
            await store.run(partial(write, body=b"at last"))
            assert store.error is None
            assert (await bodies(store))[-1] == b"at last"


def _set_file_limit(folder: Path, files: int) -> None:
    """Sets how many files a tmpfs may hold, beside its root."""
    subprocess.run(["mount", "-o", f"remount,nr_inodes={files + 1}", str(folder)], check=True)
