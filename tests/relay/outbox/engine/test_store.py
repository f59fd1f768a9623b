"""One thread, many pieces of work, one commit."""

import asyncio
from collections.abc import Sequence
from functools import partial

from sqlalchemy import event, exc

from services.relay.outbox.store import Store, Transaction
from tests.relay.outbox.store_jobs import blocked, bodies, write, write_all
from tests.stores import each_store


async def test_the_file_is_written_ahead_and_flushed_at_each_commit(store: Store) -> None:
    async def pragma(name: str) -> object:
        return await store.run(lambda tx: tx.connection.exec_driver_sql(f"PRAGMA {name}").scalar())

    assert await pragma("journal_mode") == "wal"
    assert await pragma("synchronous") == 2  # FULL


async def test_what_waits_at_the_same_time_is_committed_in_one_batch(store: Store) -> None:
    commits = []
    event.listen(store._engines.writing, "commit", lambda _connection: commits.append(1))
    async with blocked(store):
        others = [asyncio.create_task(store.run(partial(write, body=b"%d" % n))) for n in range(100)]
        tasks = [asyncio.create_task(store.batch(write_all, b"x")) for _ in range(100)]
        await asyncio.sleep(0)
    await asyncio.gather(*others)
    assert await asyncio.gather(*tasks) == [100] * 100
    assert len(commits) == 2
    assert await bodies(store) == [b"%d" % n for n in range(100)] + [b"x"] * 100


@each_store
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


@each_store
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


@each_store
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
    assert either.error is None  # it is our defect, not the database's


async def test_a_read_does_not_wait_for_the_writer(store: Store) -> None:
    await store.run(partial(write, body=b"a"))
    async with blocked(store):
        assert await bodies(store) == [b"a"]
