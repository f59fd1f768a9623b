"""Whether the outbox drains, on both stores: slowly is healthy; not at all is not, nor is slowly for too long."""

import time
from functools import partial

import pytest
from sqlalchemy import Connection, text

from services.relay.monitors.watchdog import _FIND_DELIVERED, is_draining
from services.relay.outbox.store import Store
from services.relay.outbox.tables import DeliveryState
from tests.relay.outbox.rows import Rows
from tests.stores import each_store


async def draining(store: Store, *channels: str) -> bool:
    return await store.run(partial(is_draining, channels=channels, within=600, max_age=7200))


async def waiting(rows: Rows, channel: str, age: float, state: DeliveryState = DeliveryState.QUEUED) -> None:
    await rows.delivery(await rows.event(f"waits for {channel}", age=age), channel, state)


async def ended(rows: Rows, channel: str, ago: float, state: DeliveryState = DeliveryState.DELIVERED) -> None:
    """One that was accepted long before."""
    await rows.delivery(await rows.event("another", age=9000), channel, state, finished_at=time.time() - ago)


@pytest.mark.parametrize("state", [DeliveryState.QUEUED, DeliveryState.SENDING, DeliveryState.RETRYING])
async def test_what_is_old_while_nothing_is_delivered_shows_that_it_does_not_drain(
    store: Store, rows: Rows, state: DeliveryState
) -> None:
    assert await draining(store, "slack")
    await waiting(rows, "slack", 590)
    assert await draining(store, "slack", "email")
    await waiting(rows, "slack", 620, state)
    assert not await draining(store, "slack", "email")
    assert await draining(store, "email"), "what waits for another channel is waited for by nobody"


async def test_an_old_backlog_that_is_delivered_slowly_drains_until_it_is_too_old(store: Store, rows: Rows) -> None:
    await waiting(rows, "slack", 7100)
    await ended(rows, "slack", 620)
    assert not await draining(store, "slack")
    await ended(rows, "slack", 580)
    assert await draining(store, "slack")
    await waiting(rows, "slack", 7300)
    assert not await draining(store, "slack")


@pytest.mark.parametrize("state", [DeliveryState.SUPERSEDED, DeliveryState.DEAD])
async def test_what_was_merged_or_given_up_or_delivered_on_another_channel_was_not_delivered_on_this_one(
    store: Store, rows: Rows, state: DeliveryState
) -> None:
    await waiting(rows, "slack", 700)
    await ended(rows, "slack", 1, state)
    await ended(rows, "email", 1)
    assert not await draining(store, "slack", "email")


async def test_one_channel_that_does_not_drain_is_enough(store: Store, rows: Rows) -> None:
    for channel in ("slack", "email"):
        await waiting(rows, channel, 700)
    await ended(rows, "slack", 1)
    assert not await draining(store, "slack", "email")
    assert await draining(store, "slack")


@each_store
async def test_of_what_was_delivered_no_more_than_the_index_is_searched(store: Store, rows: Rows) -> None:
    await ended(rows, "slack", 1)

    def plan(connection: Connection) -> str:
        if connection.dialect.name == "postgresql":  # in so small a table it would look through all
            connection.execute(text("SET LOCAL enable_seqscan = off"))
        explain = "EXPLAIN QUERY PLAN" if connection.dialect.name == "sqlite" else "EXPLAIN"
        query = _FIND_DELIVERED.statement.params(on="slack", since=1.0)
        statement = query.compile(connection, compile_kwargs={"literal_binds": True})
        return str(connection.execute(text(f"{explain} {statement}")).all())

    assert "deliveries_delivered" in await store.read(plan)
