"""An attempt that lost its lease gets no receipt; its message may come late, so the current state is sent again."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from services.relay.model import Claim
from services.relay.outbox.claim import ClaimRequest, claim_due
from services.relay.outbox.store import Store, open_store
from services.relay.outbox.tables import DeliveryState
from shared.sql import database_url
from shared.sql.database_url import DatabaseUrl
from tests.relay.outbox.actions import accept, claim_one, end_attempt, nothing_due
from tests.relay.outbox.channel_breakers import Clock


@pytest.fixture
async def store(tmp_path: Path, clock: Clock) -> AsyncIterator[Store]:
    async with open_store(database_url.create_sqlite_url(tmp_path / "relay.db"), clock, frozenset({"every"})) as store:
        yield store


async def lost(store: Store, clock: Clock, channel: str = "a") -> Claim:
    """The claim of one whose lease ended."""
    await accept(store, "x", channel)
    claim = await claim_one(store, channel, owner="late")
    clock.now += 20
    return claim


@pytest.mark.parametrize(("channel", "first"), [("a", 1), ("every", 2)])
async def test_what_came_late_is_followed_by_how_things_stand(
    store: Store, clock: Clock, channel: str, first: int
) -> None:
    late = await lost(store, clock, channel)
    await end_attempt(store, await claim_one(store, channel))
    await accept(store, "x", channel, episode=2)
    await end_attempt(store, await claim_one(store, channel))

    recorded = await end_attempt(store, late)

    assert (recorded.lease_valid, recorded.channels_to_wake) == (False, (channel,))
    once_more = await claim_one(store, channel)
    assert (once_more.task.first_event_seq, once_more.task.last_event_seq, once_more.task.episode) == (first, 2, 2)
    await end_attempt(store, once_more)
    assert await nothing_due(store, channel)


async def test_what_was_not_sent_is_followed_by_nothing(store: Store, clock: Clock) -> None:
    late = await lost(store, clock)
    await end_attempt(store, await claim_one(store))
    assert not (await end_attempt(store, late, DeliveryState.RETRYING, maybe_sent=False)).lease_valid
    assert await nothing_due(store)


async def test_what_came_late_adds_nothing_where_its_delivery_still_waits(store: Store, clock: Clock) -> None:
    late = await lost(store, clock)
    await end_attempt(store, await claim_one(store), DeliveryState.RETRYING, maybe_sent=True, retry_in=0.0)
    await end_attempt(store, late)
    second = await claim_one(store)
    assert (second.task.delivery_id, second.task.maybe_sent) == (late.task.delivery_id, True)


async def test_a_later_episode_leaves_the_message_that_shows_what_came_late_to_its_own(
    database: DatabaseUrl, clock: Clock
) -> None:
    """The message sent late became the first one of its episode: no other episode may edit it as its own."""
    async with open_store(database, clock) as store:
        await accept(store, "x")
        (late,) = (await claim_due(store, ClaimRequest("a", 1, "late", lease_seconds=0.0, rate=None))).claims
        await accept(store, "x")
        first = await claim_one(store)
        assert [each.delivery_id for each in first.task.predecessors] == [late.task.delivery_id]
        await end_attempt(store, first)
        await accept(store, "x", episode=2)

        assert not (await end_attempt(store, late)).lease_valid

        second = await claim_one(store)
        assert (second.task.first_event_seq, second.task.last_event_seq, second.task.episode) == (1, 3, 2)
        assert (second.task.first_receipt, second.task.predecessors) == (None, ())


async def test_an_ending_whose_commit_was_not_answered_is_written_once_and_nothing_is_resent(store: Store) -> None:
    await accept(store, "x")
    claim = await claim_one(store)
    assert [(await end_attempt(store, claim)).lease_valid for _ in range(2)] == [True, True]
    assert await nothing_due(store)


async def test_what_arrived_under_a_lost_lease_is_known_to_the_message_that_repeats_it(
    store: Store, clock: Clock
) -> None:
    late = await lost(store, clock)
    assert (await claim_one(store)).task.delivery_id == late.task.delivery_id
    await end_attempt(store, late, DeliveryState.RETRYING, reason="timeout", maybe_sent=True)
    clock.now += 20
    repeat = await claim_one(store)
    assert (repeat.task.first_event_seq, repeat.task.last_event_seq) == (1, 1)
    assert [each.delivery_id for each in repeat.task.predecessors] == [late.task.delivery_id]
