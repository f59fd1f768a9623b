"""Dead letters are grouped by channel and reason, and a retry takes those of a group, the oldest first."""

import time
from collections.abc import AsyncIterator

import pytest

from services.relay.outbox.dead_letters import NO_ATTEMPT, DeadLetterFilter, read_dead_letters, requeue_dead
from services.relay.outbox.store import Store, open_store
from services.relay.outbox.tables import DeliveryState
from shared.sql.database_url import DatabaseUrl
from tests.relay.outbox.rows import Rows


@pytest.fixture
async def store(database: DatabaseUrl) -> AsyncIterator[Store]:
    async with open_store(database, time.time, frozenset({"log"})) as store:
        yield store


async def test_groups_come_with_their_newest_and_what_their_provider_answered(store: Store) -> None:
    rows = Rows(store)
    events = [await rows.event(f"{number}", age=100.0 - number) for number in range(5)]
    dead = [await rows.delivery(event, "slack", DeliveryState.DEAD, reason="rejected") for event in events]
    never = await rows.delivery(events[0], "slack", DeliveryState.DEAD, reason=None)
    other = await rows.delivery(events[1], "mail", DeliveryState.DEAD, reason="timeout")
    await rows.delivery(events[2], "mail", DeliveryState.QUEUED, reason="timeout")
    await rows.delivery(events[3], "mail", DeliveryState.DELIVERED, reason="ok")

    found = await store.read(read_dead_letters)
    groups = {(group.channel, group.reason): group for group in found.groups}

    assert (found.letter_count, found.further_groups) == (7, 0)
    assert {key: group.letter_count for key, group in groups.items()} == {
        ("slack", "rejected"): 5,
        ("slack", NO_ATTEMPT): 1,
        ("mail", "timeout"): 1,
    }
    largest = found.groups[0]
    assert [example.id for example in found.examples[largest]] == [dead[4], dead[3], dead[2]]
    assert largest.newest_accepted_at - largest.oldest_accepted_at == pytest.approx(4.0, abs=1.0)
    (example,) = found.examples[groups["mail", "timeout"]]
    assert (example.id, example.incident_id, example.alertname, example.title) == (other, "1", "Alert-1", "")
    assert example.detail == "250 queued"

    letters = DeadLetterFilter("slack", "rejected")
    assert [row.id for row in await store.read(lambda connection: letters.find(connection, 2))] == dead[:2]
    assert [await store.read(DeadLetterFilter("slack", reason).count) for reason in (None, NO_ATTEMPT, "x")] == [
        6,
        1,
        0,
    ]
    assert await requeue_dead(store, DeadLetterFilter("slack", NO_ATTEMPT), 9) == 1
    assert never not in [row.id for row in await store.read(lambda connection: letters.find(connection, 9))]
    assert (await store.read(read_dead_letters)).letter_count == 6
