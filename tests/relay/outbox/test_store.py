"""One thread, many pieces of work, one commit; and what happens when the file fails."""

import asyncio
import sqlite3
import threading
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path

import pytest
from sqlalchemy import event, exc, insert, select, text

from services.relay.outbox import database as outbox
from services.relay.outbox.database import Database
from services.relay.outbox.schema import quarantine
from services.relay.outbox.store import Store, StoreUnusableError, opened
from services.relay.outbox.together import Transaction
from services.relay.outbox.waiting import StoreUnavailableError
from tests.postgres import Postgres
from tests.relay.scripted import until


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[Store]:
    async with opened(outbox.sqlite(tmp_path / "relay.db"), lambda: 0.0) as store:
        yield store


@pytest.fixture
async def either(database: Database) -> AsyncIterator[Store]:
    """One of each kind."""
    async with opened(database, lambda: 0.0) as store:
        yield store


def write(transaction: Transaction, body: bytes = b"") -> None:
    row = insert(quarantine).values(received_at=0, source="", code=400, reason="", body=body)
    transaction.connection.execute(row)


def write_all(transaction: Transaction, bodies: Sequence[bytes]) -> list[int]:
    """One piece of work of a kind that does many at once; gives how many came together."""
    for body in bodies:
        write(transaction, body)
    return [len(bodies)] * len(bodies)


async def bodies(store: Store) -> list[bytes]:
    query = select(quarantine.c.body).order_by(quarantine.c.seq)
    return await store.read(lambda connection: list(connection.execute(query).scalars()))


@asynccontextmanager
async def blocked(store: Store) -> AsyncIterator[None]:
    """While the body runs, the thread of the store is busy."""
    started, going_on = threading.Event(), threading.Event()

    def wait(_transaction: Transaction) -> None:
        started.set()
        going_on.wait(30)

    task = asyncio.create_task(store.run(wait))
    await until(started.is_set)
    try:
        yield
    finally:
        going_on.set()
        await asyncio.gather(task, return_exceptions=True)


async def test_the_file_is_written_ahead_and_flushed_at_each_commit(store: Store) -> None:
    async def pragma(name: str) -> object:
        return await store.run(lambda tx: tx.connection.exec_driver_sql(f"PRAGMA {name}").scalar())

    assert await pragma("journal_mode") == "wal"
    assert await pragma("synchronous") == 2  # FULL


def show(setting: str, transaction: Transaction) -> object:
    return transaction.connection.exec_driver_sql(f"SHOW {setting}").scalar()


async def test_postgresql_flushes_at_each_commit_and_bounds_every_wait(postgres_database: Database) -> None:
    async with opened(postgres_database, lambda: 0.0) as store:
        settings = {
            name: await store.run(partial(show, name))
            for name in ("synchronous_commit", "lock_timeout", "statement_timeout")
        }
    assert settings == {"synchronous_commit": "on", "lock_timeout": "2s", "statement_timeout": "7s"}


async def test_what_waits_together_is_committed_together(store: Store) -> None:
    commits = []
    event.listen(store._writing, "commit", lambda _connection: commits.append(1))
    async with blocked(store):
        others = [asyncio.create_task(store.run(partial(write, body=b"%d" % n))) for n in range(100)]
        many = [asyncio.create_task(store.batch(write_all, b"x")) for _ in range(100)]
        await asyncio.sleep(0)
    await asyncio.gather(*others)
    assert await asyncio.gather(*many) == [100] * 100
    assert len(commits) == 2
    assert await bodies(store) == [b"%d" % n for n in range(100)] + [b"x"] * 100


async def test_an_exception_undoes_its_own_work_alone(either: Store) -> None:
    def fail(transaction: Transaction) -> None:
        write(transaction, b"undone")
        raise LookupError("mine")

    async with blocked(either):
        work = asyncio.gather(
            either.run(partial(write, body=b"a")),
            either.run(fail),
            either.run(partial(write, body=b"b")),
            return_exceptions=True,
        )
        await asyncio.sleep(0)
    assert [type(result) for result in await work] == [type(None), LookupError, type(None)]
    assert await bodies(either) == [b"a", b"b"]


async def test_one_of_many_that_raises_costs_the_others_nothing(either: Store) -> None:
    def write_even(transaction: Transaction, numbers: Sequence[int]) -> list[int]:
        for number in numbers:
            write(transaction, b"%d" % number)
        if 3 in numbers:
            raise LookupError("mine")
        return list(numbers)

    async with blocked(either):
        work = asyncio.gather(*(either.batch(write_even, number) for number in range(5)), return_exceptions=True)
        await asyncio.sleep(0)
    results = await work
    assert [result if isinstance(result, int) else type(result) for result in results] == [0, 1, 2, LookupError, 4]
    assert await bodies(either) == [b"0", b"1", b"2", b"4"]


async def test_one_that_the_database_will_not_have_costs_the_others_nothing(either: Store) -> None:
    def refused(transaction: Transaction) -> None:
        transaction.connection.exec_driver_sql("INSERT INTO quarantine (seq) VALUES (1)")

    async with blocked(either):
        work = asyncio.gather(
            either.run(partial(write, body=b"a")), either.run(refused), either.run(write), return_exceptions=True
        )
        await asyncio.sleep(0)
    assert [type(result) for result in await work] == [type(None), exc.IntegrityError, type(None)]
    assert await bodies(either) == [b"a", b""]
    assert either.problem is None  # it is our defect, not the database's


async def test_a_deadlock_is_tried_again_at_once(postgres_database: Database) -> None:
    async with opened(postgres_database, lambda: 0.0) as one, opened(postgres_database, lambda: 0.0) as other:
        await asyncio.gather(*(one.run(partial(write, body=body)) for body in (b"a", b"b")))
        meet = threading.Barrier(2)

        def both(first: bytes, second: bytes, transaction: Transaction) -> None:
            lock = "UPDATE quarantine SET code = code + 1 WHERE body = %s"
            transaction.connection.exec_driver_sql(lock, (first,))
            with suppress(threading.BrokenBarrierError):
                meet.wait(2)  # the second time there is nobody to meet
            transaction.connection.exec_driver_sql(lock, (second,))

        await asyncio.gather(one.run(partial(both, b"a", b"b")), other.run(partial(both, b"b", b"a")))
        codes = await one.read(lambda connection: list(connection.execute(select(quarantine.c.code)).scalars()))
    assert codes == [402, 402]


async def test_a_full_disk_refuses_the_work_and_the_store_goes_on_when_there_is_room(store: Store) -> None:
    # SQLite's own limit on the file gives the error of a full disk; it ends with the connection.
    await store.run(lambda tx: tx.connection.exec_driver_sql("PRAGMA max_page_count = 1"))
    with pytest.raises(StoreUnavailableError, match="full"):
        await store.run(partial(write, body=b"x" * 1_000_000))
    assert store.problem == "database or disk is full"
    await store.run(partial(write, body=b"y"))
    assert store.problem is None
    assert await bodies(store) == [b"y"]


async def test_after_a_failure_the_file_is_opened_anew(store: Store) -> None:
    opened_again = []
    event.listen(store._writing, "connect", lambda _connection, _entry: opened_again.append(1))
    await store.run(write)
    assert opened_again == []
    with pytest.raises(StoreUnavailableError, match="no such table"):
        await store.run(lambda tx: tx.connection.exec_driver_sql("SELECT * FROM missing"))
    await store.run(write)
    assert opened_again == [1]


async def test_nobody_waits_for_an_answer_longer_than_a_bound(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    async with blocked(store), asyncio.timeout(10):
        monkeypatch.setattr("services.relay.outbox.store._ANSWER_SECONDS", 0.1)
        with pytest.raises(StoreUnavailableError, match=r"no answer within 0\.1 s"):
            await store.run(write)


async def test_a_read_does_not_wait_for_the_writer(store: Store) -> None:
    await store.run(partial(write, body=b"a"))
    async with blocked(store):
        assert await bodies(store) == [b"a"]


async def test_a_read_that_fails_is_no_defect(either: Store) -> None:
    with pytest.raises(StoreUnavailableError, match="missing"):
        await either.read(lambda connection: connection.exec_driver_sql("SELECT * FROM missing"))
    assert await bodies(either) == []


async def test_an_errors_text_shows_no_payload(either: Store) -> None:
    incomplete = text("SELECT :there, :missing")
    with pytest.raises(exc.StatementError, match="missing") as raised:
        await either.run(lambda tx: tx.connection.execute(incomplete, {"there": "a-payload"}))
    assert "a-payload" not in str(raised.value)
    assert "a-payload" not in repr(raised.value)


async def test_work_that_was_cancelled_before_its_turn_is_not_done(store: Store) -> None:
    async with blocked(store):
        task = asyncio.create_task(store.run(partial(write, body=b"never")))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    await store.run(partial(write, body=b"later"))
    assert await bodies(store) == [b"later"]


async def test_more_than_a_bound_of_waiting_work_is_refused(store: Store) -> None:
    async with blocked(store):
        waiting = [asyncio.create_task(store.run(write)) for _ in range(8192)]
        await asyncio.sleep(0)
        with pytest.raises(StoreUnavailableError, match="wait for the outbox already"):
            await store.run(write)
    await asyncio.gather(*waiting)
    assert len(await bodies(store)) == 8192


async def test_closing_does_what_waits_and_refuses_what_comes_later(database: Database) -> None:
    async with opened(database, lambda: 0.0) as store:
        late = asyncio.create_task(store.run(partial(write, body=b"in time")))
        await asyncio.sleep(0)
    await late
    with pytest.raises(StoreUnavailableError, match="closed"):
        await store.run(partial(write, body=b"too late"))
    async with opened(database, lambda: 0.0) as again:
        assert await bodies(again) == [b"in time"]


async def test_a_database_that_is_not_there_yet_is_used_once_it_is(own_postgres: Postgres) -> None:
    database = own_postgres.database("later")
    own_postgres.stop()
    async with opened(database, lambda: 0.0) as store:
        assert store.problem is not None
        with pytest.raises(StoreUnavailableError):
            await store.run(write)
        with pytest.raises(StoreUnavailableError):
            await bodies(store)
        own_postgres.start()
        await store.run(partial(write, body=b"at last"))
        assert store.problem is None
        assert await bodies(store) == [b"at last"]


async def test_a_database_that_nobody_made_is_a_mistake_of_the_configuration(shared_postgres: Postgres) -> None:
    missing = shared_postgres.database("made").set(database="missing")
    with pytest.raises(StoreUnusableError, match='database "missing" does not exist'):
        async with opened(missing, lambda: 0.0):
            pass


@pytest.mark.parametrize(
    ("statement", "expected"),
    [("CREATE TABLE theirs (x)", "another program's tables")],
)
async def test_a_file_that_is_not_ours_is_refused_and_left_as_it_is(
    tmp_path: Path, statement: str, expected: str
) -> None:
    file = tmp_path / "relay.db"
    other = sqlite3.connect(file)
    other.execute(statement)
    before = other.execute("SELECT name FROM sqlite_schema").fetchall()
    with pytest.raises(StoreUnusableError, match=expected):
        async with opened(outbox.sqlite(file), lambda: 0.0):
            pass
    assert other.execute("SELECT name FROM sqlite_schema").fetchall() == before
    other.close()
