"""What comes for an incident goes on where what waited stood: since when, after how many attempts, and until when."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from services.relay.deliveries import queries as delivery_list
from services.relay.outbox.breaker import ChannelEffect, commit_allow_trial
from services.relay.outbox.claim import save_progress
from services.relay.outbox.dead_letters import requeue
from services.relay.outbox.fallback import fall_back
from services.relay.outbox.store import Store, open_store
from services.relay.outbox.tables import DeliveryState
from shared.sql import database_url
from shared.sql.database_url import DatabaseUrl
from tests.relay.outbox.actions import accept, claim_one, claim_some, end_attempt, nothing_due
from tests.relay.outbox.channel_breakers import Clock, fail
from tests.relay.served_relay import event_of
from tests.stores import each_store


@pytest.fixture
async def store(tmp_path: Path, clock: Clock) -> AsyncIterator[Store]:
    async with open_store(database_url.create_sqlite_url(tmp_path / "relay.db"), clock) as store:
        yield store


async def oldest_accepted_at(store: Store) -> float:
    """What RelayOutboxStuck and the outside ping go by."""
    (waiting,) = await store.read(delivery_list.count_deliveries)
    return waiting.oldest_accepted_at


async def test_a_message_that_is_replaced_again_and_again_gets_no_younger(store: Store, clock: Clock) -> None:
    for _ in range(3):
        await accept(store, "x")
        clock.now += 1800
    assert await oldest_accepted_at(store) == 1000


async def test_a_message_into_which_a_failed_attempt_is_merged_gets_no_younger(store: Store, clock: Clock) -> None:
    await accept(store, "x")
    claim = await claim_one(store)
    clock.now += 10
    await accept(store, "x")
    await fail(store, claim)
    assert await oldest_accepted_at(store) == 1000


async def test_what_replaces_a_message_that_failed_is_tried_no_sooner_and_counts_its_attempts(
    store: Store, clock: Clock
) -> None:
    await accept(store, "x")
    await fail(store, await claim_one(store), retry_in=100.0)
    clock.now += 60
    await accept(store, "x")
    assert (await claim_some(store)).retry_in == 40
    clock.now += 39
    assert await nothing_due(store)
    clock.now += 1
    second = await claim_one(store)
    assert (second.attempt_number, second.task.first_event_seq, second.task.last_event_seq) == (2, 1, 2)
    await end_attempt(store, second)
    await accept(store, "x")
    assert (await claim_one(store)).attempt_number == 1  # what arrived leaves nothing behind


async def test_a_dead_letter_goes_to_the_fallback_though_the_message_it_is_merged_into_went_there_before(
    store: Store,
) -> None:
    await accept(store, "x")
    dead = await claim_one(store)
    await end_attempt(store, dead, DeliveryState.DEAD)
    await accept(store, "x")
    await fail(store, await claim_one(store), ChannelEffect.DOWN, fallback_channels=("b",))
    await fall_back(store, "a", ("b",))
    await commit_allow_trial(store, ["a"])
    claim = await claim_one(store)
    await requeue(store, dead.task.delivery_id)
    await fail(store, claim, ChannelEffect.DOWN)  # merged into what tells of both
    await fall_back(store, "a", ("b",))
    assert (await claim_one(store, "b")).task.first_event_seq == 1


async def test_a_first_message_knows_what_was_merged_into_it_and_may_have_arrived(store: Store, clock: Clock) -> None:
    for incident, changes in (("lost", {"maybe_sent": True}), ("refused", {})):
        await accept(store, incident)
        failed = await claim_one(store)
        await end_attempt(store, failed, DeliveryState.RETRYING, retry_in=1.0, **changes)
        await accept(store, incident)
        clock.now += 1
        merged = await claim_one(store)
        found = [each.delivery_id for each in merged.task.predecessors]
        assert found == ([failed.task.delivery_id] if changes else []), incident
        await end_attempt(store, merged)
        await accept(store, incident)
        await accept(store, incident)
        later = await claim_one(store)
        assert not later.task.predecessors
        await end_attempt(store, later)
    await accept(store, "killed")
    killed = await claim_one(store)
    await save_progress(store, killed, {"ts": "1"})
    await accept(store, "killed")
    clock.now += 21
    (predecessor,) = (await claim_one(store)).task.predecessors
    assert (predecessor.delivery_id, predecessor.progress) == (killed.task.delivery_id, {"ts": "1"})


@each_store
async def test_a_first_message_knows_all_that_may_have_arrived_however_often_no_answer_came(
    database: DatabaseUrl, clock: Clock
) -> None:
    lost: list[str] = []
    async with open_store(database, clock) as store:
        for _ in range(12):
            await accept(store, "x")
            claimed = await claim_one(store)
            assert [each.delivery_id for each in claimed.task.predecessors] == lost[::-1]
            uncertain = {"maybe_sent": True, "channel_effect": ChannelEffect.UNCHANGED}
            await end_attempt(store, claimed, DeliveryState.RETRYING, **uncertain)
            lost.append(claimed.task.delivery_id)


async def test_a_reply_to_an_earlier_episode_is_not_taken_over_by_the_next(store: Store, clock: Clock) -> None:
    await accept(store, "x")
    await end_attempt(store, await claim_one(store))
    await accept(store, "x", is_open=False, event=event_of("resolved"))
    reply = await claim_one(store)
    await end_attempt(store, reply, DeliveryState.RETRYING, retry_in=1.0, maybe_sent=True)
    await accept(store, "x", episode=2)
    clock.now += 1
    second = await claim_one(store)
    assert (second.task.first_event_seq, second.task.last_event_seq, second.task.first_receipt) == (2, 3, None)
    assert not second.task.predecessors


async def test_what_was_merged_into_one_first_message_is_not_taken_over_by_another(store: Store, clock: Clock) -> None:
    await accept(store, "x")
    dead = await claim_one(store)
    await end_attempt(store, dead, DeliveryState.DEAD)
    await accept(store, "x")
    lost = await claim_one(store)
    await end_attempt(store, lost, DeliveryState.RETRYING, retry_in=1.0, maybe_sent=True)
    await accept(store, "x")
    clock.now += 1
    first = await claim_one(store)
    assert [each.delivery_id for each in first.task.predecessors] == [lost.task.delivery_id]
    await end_attempt(store, first)
    await accept(store, "x", episode=2)
    await requeue(store, dead.task.delivery_id)
    second = await claim_one(store)
    assert (second.task.first_event_seq, second.task.episode, second.task.first_receipt) == (1, 2, None)
    assert not second.task.predecessors


@each_store
@pytest.mark.parametrize("is_lost_itself", [False, True], ids=["merged into it", "itself"])
async def test_what_may_have_arrived_is_known_across_dead_letters_until_a_first_message_is_there(
    database: DatabaseUrl, clock: Clock, is_lost_itself: bool
) -> None:
    """Also to a first message of a later episode: else it is a second one, and nobody edits the other."""
    uncertain = {"maybe_sent": True, "channel_effect": ChannelEffect.UNCHANGED}
    async with open_store(database, clock) as store:
        await accept(store, "x")
        lost = await claim_one(store)
        end = DeliveryState.DEAD if is_lost_itself else DeliveryState.RETRYING
        await end_attempt(store, lost, end, **uncertain)
        for episode in (1, 1, 2):
            await accept(store, "x", episode=episode)
            dead = await claim_one(store)
            assert [each.delivery_id for each in dead.task.predecessors] == [lost.task.delivery_id]
            await end_attempt(store, dead, DeliveryState.DEAD, reason="rejected")
        await requeue(store, lost.task.delivery_id)
        await accept(store, "x", episode=3)
        first = await claim_one(store)
        assert [each.delivery_id for each in first.task.predecessors] == [lost.task.delivery_id]
        await end_attempt(store, first)
        await requeue(store, dead.task.delivery_id)
        await end_attempt(store, await claim_one(store))
        await accept(store, "x", episode=4)
        assert not (await claim_one(store)).task.predecessors, "it is the first message of the episode before"
