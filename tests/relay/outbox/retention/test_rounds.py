"""Retention goes on in small steps, on both stores: beside others, after a failure, and nobody waits for it."""

import asyncio
import sqlite3
import time
from pathlib import Path

import pytest

from services.relay.outbox import retention as by_age
from services.relay.outbox.retention import PRUNE_STEP, PruneResult, prune_by_age, run_retention
from services.relay.outbox.store import Store, Transaction, open_store
from services.relay.outbox.tables import DeliveryState, deliveries, incidents
from shared.sql.database_url import DatabaseUrl, create_sqlite_url
from tests.conftest import Until
from tests.relay.outbox.rows import Rows
from tests.stores import each_store

DAY = 86400.0
NO_LIMIT = 1_000_000


async def test_more_than_one_step_is_pruned_in_a_round_and_the_oldest_go_first(store: Store, rows: Rows) -> None:
    stored = await rows.create_deliveries(PRUNE_STEP + 30, age=60)
    assert await prune_by_age(store, DAY, 10) == PruneResult(deliveries=PRUNE_STEP + 20, events=0)
    assert await rows.left() == set(stored[-10:])
    assert (await prune_by_age(store, 1.0, NO_LIMIT)).events == PRUNE_STEP + 30
    assert await rows.count(deliveries) == await rows.count(incidents) == 0


@each_store
async def test_between_any_hundred_rows_the_writer_belongs_to_the_others(
    store: Store, rows: Rows, monkeypatch: pytest.MonkeyPatch
) -> None:
    await rows.create_deliveries(250, age=2 * DAY)
    left: list[int] = []

    async def sleep(seconds: float) -> None:
        assert seconds >= 0.05
        left.append(await rows.count(deliveries))

    monkeypatch.setattr(asyncio, "sleep", sleep)
    await prune_by_age(store, DAY, NO_LIMIT)
    assert left[:3] == [150, 50, 0]


async def test_what_came_while_the_clock_was_ahead_keeps_nothing_that_came_since(store: Store, rows: Rows) -> None:
    ahead = await rows.create_deliveries(PRUNE_STEP + 10, age=-DAY)
    for number in range(20):
        await rows.delivery(await rows.event(f"since {number}", age=2 * DAY, goes_on=False))
    assert await prune_by_age(store, DAY, NO_LIMIT) == PruneResult(deliveries=20, events=20)
    assert await rows.left() == set(ahead)


async def test_a_step_that_is_done_again_keeps_the_same(store: Store, rows: Rows) -> None:
    remaining = await rows.delivery(await rows.event(age=3 * DAY))
    await rows.delivery(await rows.event(age=2 * DAY))
    step = by_age._DeliveryPruner(time.time() - DAY, 0, ()).step

    def undone(transaction: Transaction) -> None:
        assert step(0, transaction).pruned == 1
        raise LookupError

    with pytest.raises(LookupError):
        await store.run(undone)
    await store.run(lambda transaction: step(0, transaction))
    assert await rows.left() == {remaining}


async def test_an_end_that_is_accepted_while_a_round_is_in_progress_keeps_what_to_reply_to(
    store: Store, rows: Rows
) -> None:
    page = await rows.delivery(await rows.event(age=3 * DAY))
    step = by_age._DeliveryPruner(time.time() - DAY, 0, unsettled=()).step
    end = await rows.delivery(await rows.event(goes_on=False), "slack", DeliveryState.QUEUED)
    await store.run(lambda transaction: step(0, transaction))
    assert await rows.left() == {page, end}


@each_store
async def test_two_replicas_may_prune_at_once(database: DatabaseUrl, rows: Rows) -> None:
    await rows.create_deliveries(PRUNE_STEP * 2, age=2 * DAY)
    async with open_store(database, time.time) as one, open_store(database, time.time) as other:
        pruned = await asyncio.gather(prune_by_age(one, DAY, NO_LIMIT), prune_by_age(other, DAY, NO_LIMIT))
    assert sum(each.deliveries for each in pruned) >= PRUNE_STEP * 2
    assert await rows.left() == set()
    assert await rows.events() == []


@pytest.mark.usefixtures("short_lock_wait")
async def test_it_goes_on_after_the_store_was_not_available(tmp_path: Path, until: Until) -> None:
    file = tmp_path / "relay.db"
    async with open_store(create_sqlite_url(file), time.time) as store:
        rows = Rows(store)
        await rows.delivery(await rows.event(age=2 * DAY, goes_on=False))
        other = sqlite3.connect(file, isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        task = asyncio.create_task(run_retention(store, DAY, NO_LIMIT, interval=0.05))

        async def failed() -> bool:
            return store.error is not None

        async def pruned() -> bool:
            return await rows.events() == []

        await until(failed)
        other.execute("ROLLBACK")
        other.close()
        await until(pruned)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
