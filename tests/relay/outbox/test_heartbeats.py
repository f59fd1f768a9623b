"""When a watchdog was seen, on both stores."""

import asyncio
from collections.abc import AsyncIterator

import pytest
from sqlalchemy import insert

from services.relay.outbox.heartbeats import count_silence, read_last_seen, record_heartbeats
from services.relay.outbox.store import Store, open_store
from services.relay.outbox.tables import watchdogs
from shared.sql.database_url import DatabaseUrl
from tests.relay.monitors.monitored_outbox import START
from tests.stores import each_store


@pytest.fixture
async def store(database: DatabaseUrl) -> AsyncIterator[Store]:
    async with open_store(database, lambda: START) as store:
        yield store


async def now(store: Store) -> float:
    return await store.run(lambda transaction: transaction.now)


async def silences(store: Store, *names: str) -> dict[str, float]:
    found = await store.run(lambda transaction: count_silence(transaction, dict.fromkeys(names, 300.0), 600.0))
    return {name: silence.since_last for name, silence in found.items()}


@each_store
async def test_heartbeats_of_several_watchdogs_and_at_once_are_all_kept(store: Store) -> None:
    await asyncio.gather(
        record_heartbeats(store, ["a", "b"]),
        record_heartbeats(store, ["b", "a"]),
        record_heartbeats(store, {"c"}),
        record_heartbeats(store, []),
    )
    assert set(await store.read(read_last_seen)) == {"a", "b", "c"}


async def test_a_heartbeat_never_moves_it_backwards(store: Store) -> None:
    future = await now(store) + 5
    row = insert(watchdogs).values(name="Watchdog", last_seen_at=future)
    await store.run(lambda transaction: transaction.connection.execute(row))
    await record_heartbeats(store, ["Watchdog"])
    assert await store.read(read_last_seen) == {"Watchdog": future}
    assert await silences(store, "Watchdog") == {"Watchdog": 0}


async def test_a_clock_that_was_set_back_hides_no_absence(store: Store) -> None:
    moment = await now(store)
    row = insert(watchdogs).values(name="Watchdog", last_seen_at=moment + 3600)
    await store.run(lambda transaction: transaction.connection.execute(row))
    await silences(store, "Watchdog")
    assert (await store.read(read_last_seen))["Watchdog"] == pytest.approx(moment, abs=60)
