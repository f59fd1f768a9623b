"""Order, leases, and what a crash or a stop leaves behind.

An attempt that lost its lease gets no receipt; its message may come late, so the current state is sent again.
"""

import asyncio
import zlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from services.relay.deliveries.queries import DeliveryFilter, list_deliveries, read_delivery
from services.relay.model import Claim, decode_event
from services.relay.outbox.claim import ClaimRequest, claim_due, read_merged_events, release_leases, save_progress
from services.relay.outbox.recovery import sweep
from services.relay.outbox.store import Store, open_store
from services.relay.outbox.storm import MAX_CLAIM_BYTES
from services.relay.outbox.tables import DeliveryState
from shared.sql import database_url
from shared.sql.database_url import DatabaseUrl
from tests.relay.outbox.actions import accept, claim_one, claim_some, end_attempt, nothing_due
from tests.relay.outbox.channel_breakers import Clock
from tests.relay.outbox.store_jobs import blocked
from tests.relay.served_relay import event_of
from tests.stores import each_store


@pytest.fixture
async def store(tmp_path: Path, clock: Clock) -> AsyncIterator[Store]:
    async with open_store(database_url.create_sqlite_url(tmp_path / "relay.db"), clock, frozenset({"every"})) as store:
        yield store


@pytest.fixture
async def either(database: DatabaseUrl) -> AsyncIterator[Store]:
    """One of each kind, by its own clock."""
    async with open_store(database, lambda: 1000.0, frozenset({"every"})) as store:
        yield store


@each_store
async def test_what_is_committed_together_is_claimed_as_it_came(either: Store) -> None:
    async with blocked(either):
        together = [asyncio.create_task(accept(either, incident, "every")) for incident in "xyyx"]
        await asyncio.sleep(0.1)
    await asyncio.gather(*together)
    claimed = []
    for _ in range(2):
        claims = (await claim_some(either, "every", limit=4)).claims
        claimed += [claim.task.incident_id for claim in claims]
        for claim in claims:
            await end_attempt(either, claim)
    assert claimed == ["x", "y", "y", "x"]


@each_store
async def test_the_oldest_is_claimed_first_and_incidents_do_not_wait_for_each_other(either: Store) -> None:
    await accept(either, "x")
    await accept(either, "y")
    assert [(await claim_one(either)).task.incident_id for _ in range(2)] == ["x", "y"]
    assert await nothing_due(either)


@each_store
async def test_every_event_goes_out_by_itself_and_in_order_where_the_channel_merges_none(either: Store) -> None:
    for _ in range(3):
        await accept(either, "x", "every")
    first = await claim_one(either, "every")
    assert await nothing_due(either, "every")
    await end_attempt(either, first, DeliveryState.RETRYING, retry_in=0.0)
    retried = await claim_one(either, "every")
    assert (retried.task.delivery_id, retried.attempt_number) == (first.task.delivery_id, 2)
    await end_attempt(either, retried)
    second = await claim_one(either, "every")
    assert second.task.delivery_id != first.task.delivery_id
    await end_attempt(either, second, DeliveryState.DEAD)
    third = await claim_one(either, "every")
    assert third.task.delivery_id not in {first.task.delivery_id, second.task.delivery_id}
    assert {each.task.first_event_seq - each.task.last_event_seq for each in (first, second, third)} == {0}


async def test_what_failed_waits_for_its_time(store: Store, clock: Clock) -> None:
    await accept(store, "x")
    await end_attempt(store, await claim_one(store), DeliveryState.RETRYING, retry_in=5.0)
    claimed = await claim_some(store)
    assert (claimed.claims, claimed.retry_in) == ((), 5.0)
    clock.now += 5
    assert (await claim_one(store)).attempt_number == 2


async def test_a_crashed_relays_claim_returns_when_its_lease_ends(store: Store, clock: Clock) -> None:
    await accept(store, "x")
    lost = await claim_one(store)
    assert (await claim_some(store)).retry_in == 20
    clock.now += 19.9
    assert await nothing_due(store)
    clock.now += 0.1
    retried = await claim_one(store, owner="other")
    assert retried.task.delivery_id == lost.task.delivery_id
    assert (lost.task.maybe_sent, retried.task.maybe_sent) == (False, True)
    assert not await save_progress(store, lost, {"late": "yes"})
    assert not (await end_attempt(store, lost, DeliveryState.RETRYING)).lease_valid  # its time is over
    assert (await end_attempt(store, retried)).lease_valid
    assert (await claim_some(store)).retry_in is None


@pytest.mark.parametrize("back", [30, 86400 * 365])
async def test_a_clock_that_is_set_back_costs_minutes_at_most(store: Store, clock: Clock, back: float) -> None:
    clock.now = 1e9
    for incident in ("retried", "leased", "given back", "queued", "ours"):
        await accept(store, incident)
    await end_attempt(store, await claim_one(store), DeliveryState.RETRYING, retry_in=300.0)
    await claim_one(store, owner="crashed")
    await claim_one(store, owner="stopped")
    await release_leases(store, "stopped")
    clock.now -= back
    await sweep(store, 86400, (), 300)
    assert [(await claim_one(store)).task.incident_id for _ in range(3)] == ["given back", "queued", "ours"]
    assert await nothing_due(store)  # what is held stays held: another claim would send it twice
    clock.now += 300
    claims = (await claim_some(store, limit=9)).claims
    assert {"retried", "leased"} <= {each.task.incident_id for each in claims}


async def test_a_clock_that_is_set_back_by_a_moment_ends_no_wait_and_no_lease(store: Store, clock: Clock) -> None:
    clock.now = 1e9
    await accept(store, "retried")
    await accept(store, "leased")
    await end_attempt(store, await claim_one(store), DeliveryState.RETRYING, retry_in=300.0)
    await claim_one(store, owner="them")
    clock.now -= 5
    await sweep(store, 86400, (), 360)
    assert await nothing_due(store)
    clock.now += 305
    assert (await claim_one(store)).task.incident_id == "leased"
    assert (await claim_one(store)).task.incident_id == "retried"


@each_store
async def test_a_clean_stop_returns_its_own_claims_and_no_others(either: Store) -> None:
    await accept(either, "x")
    await accept(either, "y")
    mine, _theirs = await claim_one(either, owner="me"), await claim_one(either, owner="them")
    await release_leases(either, "me")
    back = await claim_one(either)
    assert (back.task.delivery_id, back.attempt_number, back.task.maybe_sent) == (mine.task.delivery_id, 1, True)
    assert await nothing_due(either)


@each_store
async def test_the_first_receipt_is_that_of_this_episode_on_this_channel(either: Store) -> None:
    receipts = []
    for number, episode in enumerate((1, 1, 1, 2), 1):
        await accept(either, "x", "a", "b", episode=episode)
        mine = await claim_one(either, "a")
        receipts.append(mine.task.first_receipt)
        if number == 1:
            await end_attempt(either, mine, DeliveryState.DEAD)
        else:
            await end_attempt(either, mine, receipt={"number": str(number)})
    assert receipts == [None, None, {"number": "2"}, None]
    assert (await claim_one(either, "b")).task.first_receipt is None


@each_store
async def test_progress_outlives_an_attempt_and_a_restart(database: DatabaseUrl) -> None:
    async with open_store(database, lambda: 1000.0) as store:
        await accept(store, "x")
        mine = await claim_one(store)
        assert await save_progress(store, mine, {"have_it": "oncall@example.org"})
        await end_attempt(store, mine, DeliveryState.RETRYING)
    async with open_store(database, lambda: 1000.0) as store:
        assert (await claim_one(store)).task.progress == {"have_it": "oncall@example.org"}


@each_store
async def test_large_events_are_claimed_one_by_one(either: Store) -> None:
    large = event_of(common_annotations={"description": "x" * MAX_CLAIM_BYTES})
    for number in range(3):
        await accept(either, str(number), event=large)
    assert len((await claim_some(either, limit=3)).claims) == 1


@each_store
async def test_all_events_of_a_long_wait_are_reported_in_their_order(either: Store) -> None:
    await accept(either, "x")
    await end_attempt(either, await claim_one(either), DeliveryState.RETRYING)
    for number in range(40):
        await accept(either, "x", event=event_of(truncated_alerts=number))
        await accept(either, "y", event=event_of(truncated_alerts=1000))
    claims = {each.task.incident_id: each for each in (await claim_some(either, limit=3)).claims}
    counts = [decode_event(encoded).truncated_alerts async for encoded in read_merged_events(either, claims["x"].task)]
    assert counts == [0, *range(40)]


@each_store
async def test_a_delivery_is_its_own_receipt_with_each_of_its_attempts(either: Store) -> None:
    accepted = await accept(either, "x")
    await end_attempt(either, await claim_one(either), DeliveryState.RETRYING, detail="put off")
    await end_attempt(either, await claim_one(either), detail="taken", payload=zlib.compress(b"what was sent"))
    (delivery,) = (
        await list_deliveries(either, DeliveryFilter(state=DeliveryState.DELIVERED, channel="a"), limit=10)
    ).deliveries
    assert (delivery.event_id, delivery.attempt_count, delivery.receipt) == (accepted.event_id, 2, {"number": "1"})
    found = await read_delivery(either, delivery.id)
    assert found is not None
    assert [(attempt.number, attempt.seconds, attempt.detail) for attempt in found.attempts] == [
        (1, 1.5, "put off"),
        (2, 1.5, "taken"),
    ]
    assert found.payload == "what was sent"
    assert (await list_deliveries(either, DeliveryFilter(state=DeliveryState.DEAD), limit=10)).deliveries == []
    assert await read_delivery(either, "unknown") is None


async def test_a_clock_that_is_set_forward_ends_no_lease_of_what_is_just_being_sent(store: Store, clock: Clock) -> None:
    await accept(store, "x")
    ours = await claim_one(store)
    clock.now += 3600
    assert not (
        await claim_due(store, ClaimRequest("a", 1, "me", 20, None, in_flight_ids=(ours.task.delivery_id,)))
    ).claims
    assert (await end_attempt(store, ours)).lease_valid


@each_store
async def test_what_a_stop_returns_is_merged_into_what_waits_behind_it(either: Store) -> None:
    await accept(either, "x")
    await claim_one(either)
    await accept(either, "x")
    await release_leases(either, "me")
    claim = await claim_one(either)
    assert (claim.task.first_event_seq, claim.task.last_event_seq, claim.attempt_number) == (1, 2, 1)
    await end_attempt(either, claim)
    assert await nothing_due(either)


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


@each_store
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
