"""Dead letters: their groups, and how they are sent again, by a person or once a wrong clock is right."""

from collections.abc import AsyncIterator

import pytest
from sqlalchemy import update

from services.relay.deliveries.queries import read_delivery
from services.relay.outbox.breaker import FAILURE_THRESHOLD, commit_allow_trial
from services.relay.outbox.claim import release_leases
from services.relay.outbox.dead_letters import NO_ATTEMPT, DeadLetterFilter, read_dead_letters, requeue, requeue_dead
from services.relay.outbox.recovery import sweep
from services.relay.outbox.store import Store, open_store
from services.relay.outbox.tables import DeliveryState, deliveries
from shared.sql.database_url import DatabaseUrl
from tests.relay.outbox.actions import accept, claim_one, claim_some, end_attempt, nothing_due
from tests.relay.outbox.channel_breakers import enqueue, open_breaker
from tests.relay.outbox.rows import Rows
from tests.stores import each_store

DAY = 86_400.0


@pytest.fixture
async def store(database: DatabaseUrl) -> AsyncIterator[Store]:
    async with open_store(database, lambda: 1000.0, frozenset({"every"})) as store:
        yield store


@each_store
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
    assert 4.0 <= largest.newest_accepted_at - largest.oldest_accepted_at < 60.0
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


async def state_of(store: Store, delivery_id: str) -> DeliveryState:
    record = await read_delivery(store, delivery_id)
    assert record is not None
    return record.delivery.state


async def broken(store: Store) -> None:
    """The channel's breaker opens."""
    await enqueue(store, FAILURE_THRESHOLD)
    for claim in (await claim_some(store, limit=FAILURE_THRESHOLD)).claims:
        await end_attempt(store, claim, DeliveryState.RETRYING, retry_in=60.0)
    assert await nothing_due(store)


async def given_up(store: Store, incident: str = "x", channel: str = "a") -> str:
    await accept(store, incident, channel)
    claim = await claim_one(store, channel)
    await end_attempt(store, claim, DeliveryState.DEAD)
    return claim.task.delivery_id


@each_store
async def test_a_dead_letter_is_requeued_as_its_incident_stands(store: Store) -> None:
    dead = await given_up(store)
    await accept(store, "x")
    await end_attempt(store, await claim_one(store))

    assert await requeue(store, dead) is DeliveryState.DEAD

    claim = await claim_one(store)
    assert (claim.task.first_event_seq, claim.task.last_event_seq) == (1, 2)
    assert await state_of(store, dead) is DeliveryState.SUPERSEDED


async def test_what_waits_already_reports_the_dead_letter_too(store: Store) -> None:
    dead = await given_up(store)
    await accept(store, "x")

    assert await requeue(store, dead) is DeliveryState.DEAD

    claim = await claim_one(store)
    assert (claim.task.first_event_seq, claim.task.last_event_seq) == (1, 2)
    await end_attempt(store, claim)
    assert await nothing_due(store)


@pytest.mark.parametrize("how", ["answer lost", "given back"])
async def test_what_was_sent_already_and_waits_is_reported_again_with_the_dead_letter(store: Store, how: str) -> None:
    dead = await given_up(store)
    await accept(store, "x")
    retried = await claim_one(store)
    if how == "given back":
        await release_leases(store, "me")
    else:
        await end_attempt(store, retried, DeliveryState.RETRYING, maybe_sent=True, retry_in=0.0)

    assert await requeue(store, dead) is DeliveryState.DEAD

    claim = await claim_one(store)
    assert claim.task.delivery_id != retried.task.delivery_id  # by which its channel would take it for sent
    assert (claim.task.first_event_seq, claim.task.last_event_seq, claim.task.maybe_sent) == (1, 2, False)
    assert claim.attempt_number == retried.attempt_number + (how == "answer lost")
    record = await read_delivery(store, retried.task.delivery_id)
    assert record is not None
    assert (record.delivery.state, record.delivery.superseded_by) == (DeliveryState.SUPERSEDED, claim.task.delivery_id)
    await end_attempt(store, claim)
    assert await nothing_due(store)


async def test_a_dead_letter_of_a_channel_that_reports_every_event_is_sent_as_it_was(store: Store) -> None:
    dead = await given_up(store, channel="every")
    await accept(store, "x", "every", episode=2)
    await end_attempt(store, await claim_one(store, "every"))

    assert await requeue(store, dead) is DeliveryState.DEAD

    claim = await claim_one(store, "every")
    assert (claim.task.first_event_seq, claim.task.last_event_seq, claim.task.episode) == (1, 1, 1)


async def test_what_waits_for_its_next_attempt_is_due_at_once(store: Store) -> None:
    await accept(store, "x")
    waiting = await claim_one(store)
    await end_attempt(store, waiting, DeliveryState.RETRYING, retry_in=300.0)
    assert await nothing_due(store)

    assert await requeue(store, waiting.task.delivery_id) is DeliveryState.RETRYING

    assert (await claim_one(store)).task.delivery_id == waiting.task.delivery_id


async def test_the_dead_letters_of_one_channel_are_resent_the_oldest_first(store: Store) -> None:
    dead = [await given_up(store, incident) for incident in ("x", "y", "z")]
    other = await given_up(store, "x", "b")

    assert await requeue_dead(store, DeadLetterFilter("a"), 2) == 2

    assert [await state_of(store, each) for each in dead] == [
        DeliveryState.SUPERSEDED,
        DeliveryState.SUPERSEDED,
        DeliveryState.DEAD,
    ]
    assert await state_of(store, other) is DeliveryState.DEAD
    assert [claim.task.incident_id for claim in (await claim_some(store, limit=5)).claims] == ["x", "y"]
    assert await requeue_dead(store, DeadLetterFilter("a"), 2) == 1


async def test_whoever_requests_another_try_gets_it_though_the_breaker_delays_the_channel(store: Store) -> None:
    dead = await given_up(store)
    await broken(store)
    assert await requeue(store, dead) is DeliveryState.DEAD
    assert len((await claim_some(store, limit=9)).claims) == 1  # which tries for all


async def test_dead_letters_that_are_resent_do_not_wait_for_the_breaker(store: Store) -> None:
    await given_up(store)
    await broken(store)
    assert await requeue_dead(store, DeadLetterFilter("a"), 9) == 1
    assert len((await claim_some(store, limit=9)).claims) == 1


async def set_the_clock_back(store: Store, seconds: float) -> None:
    """What ended has ended in the future."""
    ended = update(deliveries).where(deliveries.c.finished_at.is_not(None))
    later = ended.values(finished_at=deliveries.c.finished_at + seconds)
    await store.run(lambda transaction: transaction.connection.execute(later))


@each_store
async def test_all_that_waited_for_a_broken_channel_comes_back(store: Store) -> None:
    await enqueue(store, 40)
    await open_breaker(store)
    assert (await sweep(store, -1, (), 360)).ended == (("a", DeliveryState.DEAD),) * 40
    await set_the_clock_back(store, DAY)
    assert (await sweep(store, DAY, (), 360)).channels_to_wake == {"a"}
    assert (await sweep(store, DAY, (), 360)).channels_to_wake == frozenset()
    await commit_allow_trial(store, ["a"])
    (probe,) = (await claim_some(store, limit=99)).claims
    await end_attempt(store, probe)
    assert len((await claim_some(store, limit=99)).claims) == 39


async def test_what_gave_up_at_its_last_attempt_comes_back_as_its_incident_stands(store: Store) -> None:
    await accept(store, "x")
    await end_attempt(store, await claim_one(store), DeliveryState.DEAD, is_expired=True)
    await accept(store, "x")
    await end_attempt(store, await claim_one(store))
    assert (await sweep(store, DAY, (), 360)).channels_to_wake == frozenset()
    await set_the_clock_back(store, DAY)
    assert (await sweep(store, DAY, (), 360)).channels_to_wake == {"a"}
    claim = await claim_one(store)
    assert (claim.task.first_event_seq, claim.task.last_event_seq) == (1, 2)
    await end_attempt(store, claim)
    assert (await sweep(store, DAY, (), 360)).channels_to_wake == frozenset()


async def test_what_was_refused_for_what_it_is_stays_dead_as_does_what_is_over_for_long(store: Store) -> None:
    await accept(store, "x")
    await end_attempt(store, await claim_one(store), DeliveryState.DEAD)
    await set_the_clock_back(store, 60.0)  # a minute ahead made nothing a day old
    assert (await sweep(store, DAY, (), 360)).channels_to_wake == frozenset()
    assert await nothing_due(store)
