"""What waits for the thread of the store: bounded, and gone when nobody waits for it any more."""

import asyncio
import gc
import weakref
from collections.abc import Sequence
from functools import partial

import pytest
from structlog.testing import capture_logs

from services.relay.outbox import database as dialect
from services.relay.outbox.accept import DeliveryPlan, IncomingEvent, accept_event
from services.relay.outbox.store import Store, StoreUnavailableError, Transaction, open_store
from shared.sql.database_url import DatabaseUrl
from tests.relay.outbox.store_jobs import blocked, bodies, write, write_all
from tests.relay.served_relay import event_of
from tests.stopwatch import Stopwatch
from tests.stores import each_store

MOST = 64 * 1024 * 1024
"""Bytes."""


async def test_nobody_waits_for_an_answer_longer_than_a_bound(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    async with blocked(store), asyncio.timeout(10):
        monkeypatch.setattr("services.relay.outbox.store._REPLY_TIMEOUT", 0.1)
        with pytest.raises(StoreUnavailableError, match=r"no answer within 0\.1 s"):
            await store.run(write)


async def test_work_that_was_cancelled_before_it_began_is_not_done(store: Store) -> None:
    async with blocked(store):
        task = asyncio.create_task(store.run(partial(write, body=b"never")))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    await store.run(partial(write, body=b"later"))
    assert await bodies(store) == [b"later"]


async def test_more_than_a_bound_of_waiting_work_is_refused(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("services.relay.outbox.store._MAX_JOBS", 300)
    async with blocked(store):
        waiting = [asyncio.create_task(store.batch(write_all, b"x")) for _ in range(300)]
        await asyncio.sleep(0)
        with pytest.raises(StoreUnavailableError, match="300 jobs wait for the outbox already"):
            await store.run(write)
    await asyncio.gather(*waiting)
    assert len(await bodies(store)) == 300, "more than one transaction takes"


async def test_closing_waits_no_longer_than_a_second_for_what_hangs(store: Store) -> None:
    with capture_logs() as logs:
        async with blocked(store):
            watch = Stopwatch()
            await asyncio.to_thread(store.close)
            assert watch.seconds < 2
    assert [entry["event"] for entry in logs] == ["outbox closed during a transaction"]


@each_store
async def test_closing_does_what_waits_and_refuses_what_comes_later(database: DatabaseUrl) -> None:
    async with open_store(database, lambda: 0.0) as store:
        late = asyncio.create_task(store.run(partial(write, body=b"in time")))
        await asyncio.sleep(0)
    await late
    with pytest.raises(StoreUnavailableError, match="closed"):
        await store.run(partial(write, body=b"too late"))
    async with open_store(database, lambda: 0.0) as second:
        assert await bodies(second) == [b"in time"]


class Large:
    """Something that ought not to be kept."""


def nothing(_transaction: Transaction, items: Sequence[Large]) -> Sequence[None]:
    return [None] * len(items)


@pytest.mark.parametrize("end", ["too late", "cancelled"])
async def test_what_nobody_waits_for_is_kept_no_longer(store: Store, monkeypatch: pytest.MonkeyPatch, end: str) -> None:
    async with blocked(store):
        if end == "too late":
            monkeypatch.setattr("services.relay.outbox.store._REPLY_TIMEOUT", 0.1)
        item = Large()
        reference = weakref.ref(item)
        gc.disable()  # the relay rarely looks for cycles
        task = asyncio.create_task(store.batch(nothing, item, size=MOST))
        del item
        await asyncio.sleep(0)
        assert reference() is not None
        if end == "cancelled":
            task.cancel()
        await asyncio.wait([task])
        assert task.cancelled() or isinstance(task.exception(), StoreUnavailableError)
        del task
        is_collected = reference() is None
        gc.enable()
        assert is_collected
        next_one = asyncio.create_task(store.batch(nothing, Large(), size=MOST))  # there is room again
        await asyncio.sleep(0)
        assert not next_one.done()
        next_one.cancel()


@each_store
async def test_what_cannot_be_committed_is_kept_no_longer(either: Store, database: DatabaseUrl) -> None:
    def fail(transaction: Transaction, _items: Sequence[Large]) -> Sequence[None]:
        lost = "SELECT * FROM missing" if sqlite else "SELECT pg_terminate_backend(pg_backend_pid())"
        transaction.connection.exec_driver_sql(lost)
        return []

    async def attempt(item: Large) -> None:
        with pytest.raises(StoreUnavailableError):
            await either.batch(fail, item)

    sqlite = dialect.is_sqlite(database)
    item = Large()
    reference = weakref.ref(item)
    gc.disable()
    await attempt(item)
    del item
    await either.run(write)  # the thread has turned to something else
    is_collected = reference() is None
    gc.enable()
    assert is_collected


async def test_more_than_a_bound_of_bytes_is_refused_until_the_ones_before_are_done(store: Store) -> None:
    async with blocked(store):
        large = asyncio.create_task(store.batch(write_all, b"a", size=MOST - 1))
        await asyncio.sleep(0)
        with pytest.raises(StoreUnavailableError, match="bytes wait for the outbox already"):
            await store.batch(write_all, b"b", size=2)
        small = asyncio.create_task(store.batch(write_all, b"c", size=1))
        await asyncio.sleep(0)
    await asyncio.gather(large, small)
    await store.batch(write_all, b"d", size=MOST)
    assert await bodies(store) == [b"a", b"c", b"d"]


async def test_what_the_thread_has_in_progress_counts_until_it_is_done(store: Store) -> None:
    async with blocked(store, size=MOST):
        with pytest.raises(StoreUnavailableError, match="bytes wait for the outbox already"):
            await store.batch(write_all, b"x", size=1)
        await asyncio.wait_for(store.read(lambda _: None), 5)
    await store.batch(write_all, b"y", size=MOST)
    assert await bodies(store) == [b"y"]


async def test_a_webhook_counts_with_its_size(store: Store) -> None:
    event = event_of()
    async with blocked(store, size=MOST - 10):
        with pytest.raises(StoreUnavailableError, match="bytes wait for the outbox already"):
            await accept_event(
                store,
                IncomingEvent(event, "one", "same", "alert", bytes(11)),
                lambda *_: DeliveryPlan(1, is_open=True, channels=()),
            )
