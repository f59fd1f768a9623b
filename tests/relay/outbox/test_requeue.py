"""What was given up is sent again as things stand; what waits is due at once; the rest is left alone."""

from collections.abc import AsyncIterator

import pytest

from services.relay.deliveries.queries import read_delivery
from services.relay.outbox.channels import FAILURE_THRESHOLD
from services.relay.outbox.claim import release_leases
from services.relay.outbox.dead_letters import DeadLetterFilter, requeue, requeue_dead
from services.relay.outbox.store import Store, open_store
from services.relay.outbox.tables import DeliveryState
from shared.sql.database_url import DatabaseUrl
from tests.relay.outbox.actions import accept, claim_one, claim_some, end_attempt, nothing_due


@pytest.fixture
async def store(database: DatabaseUrl) -> AsyncIterator[Store]:
    async with open_store(database, lambda: 1000.0, frozenset({"every"})) as store:
        yield store


async def state_of(store: Store, delivery_id: str) -> DeliveryState:
    record = await read_delivery(store, delivery_id)
    assert record is not None
    return record.delivery.state


async def broken(store: Store) -> None:
    """The channel's breaker opens."""
    for number in range(FAILURE_THRESHOLD):
        await accept(store, f"failing{number}")
    for claim in (await claim_some(store, limit=FAILURE_THRESHOLD)).claims:
        await end_attempt(store, claim, DeliveryState.RETRYING, retry_in=60.0)
    assert await nothing_due(store)


async def given_up(store: Store, incident: str = "x", channel: str = "a") -> str:
    await accept(store, incident, channel)
    claim = await claim_one(store, channel)
    await end_attempt(store, claim, DeliveryState.DEAD)
    return claim.task.delivery_id


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
