"""One thread, many pieces of work, one commit; and what happens when the file fails."""

import asyncio
import sqlite3
import threading
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path

import pytest
from sqlalchemy import Connection, event, exc, insert, select, text

from services.relay.outbox.schema import quarantine
from services.relay.outbox.store import Store, StoreUnavailableError, StoreUnusableError, opened
from tests.relay.scripted import until


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[Store]:
    async with opened(tmp_path / "relay.db", lambda: 0.0) as store:
        yield store


def write(connection: Connection, body: bytes = b"") -> None:
    connection.execute(insert(quarantine).values(received_at=0, source="", code=400, reason="", body=body))


async def bodies(store: Store) -> list[bytes]:
    return await store.run(lambda connection: list(connection.execute(select(quarantine.c.body)).scalars()))


async def test_the_file_is_written_ahead_and_flushed_at_each_commit(store: Store) -> None:
    def pragma(name: str) -> object:
        return store.submit(lambda connection: connection.exec_driver_sql(f"PRAGMA {name}").scalar()).result(5)

    assert await asyncio.to_thread(pragma, "journal_mode") == "wal"
    assert await asyncio.to_thread(pragma, "synchronous") == 2  # FULL


async def test_what_waits_together_is_committed_together(store: Store) -> None:
    commits = []
    event.listen(store._engine, "commit", lambda _connection: commits.append(1))
    blocked = threading.Event()
    first = store.submit(lambda _connection: blocked.wait(5))
    await until(first.running)
    others = [asyncio.create_task(store.run(partial(write, body=b"%d" % n))) for n in range(100)]
    await asyncio.sleep(0)
    blocked.set()
    await asyncio.gather(asyncio.wrap_future(first), *others)
    assert len(commits) == 2
    assert await bodies(store) == [b"%d" % n for n in range(100)]


async def test_an_exception_undoes_its_own_work_alone(store: Store) -> None:
    def fail(connection: Connection) -> None:
        write(connection, b"undone")
        raise LookupError("mine")

    results = await asyncio.gather(
        store.run(lambda c: write(c, b"a")),
        store.run(fail),
        store.run(lambda c: write(c, b"b")),
        return_exceptions=True,
    )
    assert [type(result) for result in results] == [type(None), LookupError, type(None)]
    assert await bodies(store) == [b"a", b"b"]


async def test_a_full_disk_refuses_the_work_and_the_store_goes_on_when_there_is_room(store: Store) -> None:
    # SQLite's own limit on the file gives the error of a full disk; it ends with the connection.
    await store.run(lambda connection: connection.exec_driver_sql("PRAGMA max_page_count = 1"))
    with pytest.raises(StoreUnavailableError, match="full"):
        await store.run(lambda connection: write(connection, b"x" * 1_000_000))
    assert store.problem == "database or disk is full"
    await store.run(lambda connection: write(connection, b"y"))
    assert store.problem is None
    assert await bodies(store) == [b"y"]


async def test_after_a_failure_the_file_is_opened_anew(store: Store) -> None:
    opened_again = []
    event.listen(store._engine, "connect", lambda _connection, _entry: opened_again.append(1))
    await store.run(write)
    assert opened_again == []
    with pytest.raises(StoreUnavailableError, match="no such table"):
        await store.run(lambda connection: connection.exec_driver_sql("SELECT * FROM missing"))
    await store.run(write)
    assert opened_again == [1]


async def test_nobody_waits_for_an_answer_longer_than_a_bound(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("services.relay.outbox.store._ANSWER_SECONDS", 0.1)
    blocked = threading.Event()
    first = store.submit(lambda _connection: blocked.wait(30))
    try:
        async with asyncio.timeout(10):
            with pytest.raises(StoreUnavailableError, match=r"no answer within 0\.1 s"):
                await store.run(write)
    finally:
        blocked.set()
    await asyncio.wrap_future(first)


async def test_an_errors_text_shows_no_payload(store: Store) -> None:
    incomplete = text("SELECT :there, :missing")
    with pytest.raises(exc.StatementError, match="missing") as raised:
        await store.run(lambda connection: connection.execute(incomplete, {"there": "a-payload"}))
    assert "a-payload" not in str(raised.value)
    assert "a-payload" not in repr(raised.value)


async def test_work_that_was_cancelled_before_its_turn_is_not_done(store: Store) -> None:
    blocked = threading.Event()
    first = store.submit(lambda _connection: blocked.wait(5))
    await until(first.running)
    task = asyncio.create_task(store.run(lambda c: write(c, b"never")))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    blocked.set()
    await asyncio.wrap_future(first)
    assert await bodies(store) == []


async def test_more_than_a_bound_of_waiting_work_is_refused(store: Store) -> None:
    blocked = threading.Event()
    first = store.submit(lambda _connection: blocked.wait(5))
    await until(first.running)
    waiting = [store.submit(write) for _ in range(1024)]
    with pytest.raises(StoreUnavailableError, match="wait for the outbox already"):
        store.submit(write)
    blocked.set()
    await asyncio.gather(*map(asyncio.wrap_future, waiting))
    assert len(await bodies(store)) == 1024


async def test_closing_does_what_waits_and_refuses_what_comes_later(tmp_path: Path) -> None:
    async with opened(tmp_path / "relay.db", lambda: 0.0) as store:
        late = store.submit(lambda c: write(c, b"in time"))
    assert late.result(0) is None
    with pytest.raises(StoreUnavailableError, match="closed"):
        await store.run(lambda c: write(c, b"too late"))
    async with opened(tmp_path / "relay.db", lambda: 0.0) as again:
        assert await bodies(again) == [b"in time"]


@pytest.mark.parametrize(
    ("statement", "expected"),
    [("CREATE TABLE theirs (x)", "another program's tables"), ("PRAGMA user_version = 2", "a newer keypulse wrote it")],
)
async def test_a_file_that_is_not_ours_is_refused_and_left_as_it_is(
    tmp_path: Path, statement: str, expected: str
) -> None:
    file = tmp_path / "relay.db"
    other = sqlite3.connect(file)
    other.execute(statement)
    before = other.execute("SELECT name FROM sqlite_schema").fetchall()
    with pytest.raises(StoreUnusableError, match=expected):
        async with opened(file, lambda: 0.0):
            pass
    assert other.execute("SELECT name FROM sqlite_schema").fetchall() == before
    other.close()
