"""What follows from an ending: for its delivery, for what waits behind it, and for the channels that stand in."""

from collections.abc import AsyncIterator

import pytest

from services.relay.outbox.channels import ChannelEffect
from services.relay.outbox.claim import release_leases
from services.relay.outbox.store import Store, open_store
from services.relay.outbox.tables import DeliveryState
from shared.sql.database_url import DatabaseUrl
from tests.relay.outbox.actions import accept, claim_one, end_attempt, nothing_due

REFUSED = {"channel_effect": ChannelEffect.DOWN, "retry_in": 300.0, "fallback_channels": ("b", "every")}


@pytest.fixture
async def store(database: DatabaseUrl) -> AsyncIterator[Store]:
    async with open_store(database, lambda: 1000.0, frozenset({"every"})) as store:
        yield store


async def test_an_attempt_that_failed_is_merged_into_what_waits_behind_it(store: Store) -> None:
    await accept(store, "x")
    first = await claim_one(store)
    await accept(store, "x")

    recorded = await end_attempt(store, first, DeliveryState.RETRYING, retry_in=0.0)

    assert (recorded.lease_valid, recorded.state, recorded.superseded_channels) == (
        True,
        DeliveryState.SUPERSEDED,
        ("a",),
    )
    second = await claim_one(store)
    assert (second.task.first_event_seq, second.task.last_event_seq, second.attempt_number) == (1, 2, 2)
    await end_attempt(store, second)
    assert await nothing_due(store)


async def test_what_a_stop_gives_back_is_merged_into_what_waits_behind_it(store: Store) -> None:
    await accept(store, "x")
    await claim_one(store)
    await accept(store, "x")

    await release_leases(store, "me")

    claim = await claim_one(store)
    assert (claim.task.first_event_seq, claim.task.last_event_seq, claim.attempt_number) == (1, 2, 1)
    await end_attempt(store, claim)
    assert await nothing_due(store)


async def test_what_a_channel_refuses_goes_to_its_fallbacks_once(store: Store) -> None:
    await accept(store, "x")
    claim = await claim_one(store)

    recorded = await end_attempt(store, claim, DeliveryState.RETRYING, **REFUSED)

    assert set(recorded.channels_to_wake) == {"a", "b", "every"}
    for channel in ("b", "every"):
        instead = await claim_one(store, channel)
        assert (instead.task.first_event_seq, instead.task.last_event_seq) == (1, 1)
        assert instead.task.remark == "Also sent here because channel a is down."
        await end_attempt(store, instead)
        assert await nothing_due(store, channel)


async def test_a_fallback_that_gets_the_event_anyway_gets_nothing_more(store: Store) -> None:
    await accept(store, "x", "a", "b", "every")
    await accept(store, "x", "b")  # its delivery there tells both

    recorded = await end_attempt(store, await claim_one(store), DeliveryState.RETRYING, **REFUSED)

    assert recorded.channels_to_wake == ("a",)


async def test_a_fallback_never_gets_something_older_than_it_knows(store: Store) -> None:
    await accept(store, "x")
    refused = await claim_one(store)
    await accept(store, "x", "a", "b")
    await end_attempt(store, await claim_one(store, "b"))

    await end_attempt(store, refused, DeliveryState.RETRYING, **REFUSED)

    instead = await claim_one(store, "b")
    assert (instead.task.first_event_seq, instead.task.last_event_seq) == (1, 2)
