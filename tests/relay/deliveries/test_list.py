"""What people and metrics read of the outbox, on both stores."""

import zlib

import pytest

from services.relay.deliveries import queries as delivery_list
from services.relay.deliveries.queries import AttemptRow, DeliveryFilter, list_deliveries
from services.relay.outbox.dead_letters import DeadLetterFilter
from services.relay.outbox.store import Store
from services.relay.outbox.tables import DeliveryState
from tests.relay.outbox.rows import Rows
from tests.stores import each_store


async def test_a_page_that_contains_the_rest_exactly_is_the_last(store: Store, rows: Rows) -> None:
    event = await rows.event()
    for number in range(2):
        await rows.delivery(event, f"channel-{number}")
    assert (await list_deliveries(store, DeliveryFilter(), limit=2)).older is None
    assert (await list_deliveries(store, DeliveryFilter(), limit=1)).older is not None


@each_store
async def test_one_is_shown_with_all_that_is_known_of_it(store: Store, rows: Rows) -> None:
    event = await rows.event()
    one = await rows.delivery(
        event, receipt='{"ts": "1.2"}', remark="it is late", payload=zlib.compress("{“as sent”}".encode())
    )
    before = [await rows.delivery(event, "slack", DeliveryState.SUPERSEDED, superseded_by=one) for _ in range(2)]
    record = await delivery_list.read_delivery(store, one)
    assert record is not None
    assert record.delivery.receipt == {"ts": "1.2"}
    assert record.delivery.remark == "it is late"
    assert record.payload == "{“as sent”}"
    assert record.supersedes == before
    assert record.attempts == [AttemptRow(1, record.delivery.accepted_at, 0.5, "ok", "250 queued")]
    merged = await delivery_list.read_delivery(store, before[0])
    assert merged is not None
    assert merged.delivery.superseded_by == one
    assert merged.payload is None
    assert await delivery_list.read_delivery(store, "unknown") is None


async def test_what_waits_and_what_was_given_up_is_counted(store: Store, rows: Rows) -> None:
    old, new = await rows.event("old", age=60), await rows.event("new")
    await rows.delivery(old, "slack", DeliveryState.QUEUED)
    await rows.delivery(new, "slack", DeliveryState.QUEUED)
    await rows.delivery(new, "slack", DeliveryState.DEAD)
    await rows.delivery(new, "slack", DeliveryState.DELIVERED)
    counted = await store.read(delivery_list.count_deliveries)
    now = await store.run(lambda transaction: transaction.now)
    assert {(each.channel, each.state, each.delivery_count) for each in counted} == {
        ("slack", "queued", 2),
        ("slack", "dead", 1),
    }
    assert min(each.oldest_accepted_at for each in counted) == pytest.approx(now - 60, abs=10)
    assert [await store.read(DeadLetterFilter(name).count) for name in ("slack", "email")] == [1, 0]
