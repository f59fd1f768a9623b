"""A provider has one key for all episodes of an incident: what it was not told of an earlier one, it is told first."""

from collections.abc import AsyncIterator

import pytest
from sqlalchemy import update

from services.relay.model import Claim
from services.relay.outbox.claim import save_progress
from services.relay.outbox.store import Store, open_store
from services.relay.outbox.tables import DeliveryState, deliveries
from shared.sql.database_url import DatabaseUrl
from tests.relay.outbox.actions import accept, claim_one, end_attempt, prepare
from tests.relay.served_relay import event_of
from tests.stores import each_store


@pytest.fixture
async def store(database: DatabaseUrl) -> AsyncIterator[Store]:
    async with open_store(database, lambda: 1000.0) as store:
        yield store


async def _restart(store: Store, episode: int, status: str = "firing") -> Claim:
    """The claim of what waits for PagerDuty once the next episode has begun, as it goes there."""
    await accept(store, "x", episode=episode, is_open=status == "firing", event=event_of(status))
    return await prepare(store, await claim_one(store), acknowledges=True)


@each_store
async def test_a_resolve_that_did_not_arrive_comes_before_the_next_episode(store: Store) -> None:
    first = await _restart(store, 1)
    assert not first.task.resolves_earlier
    await end_attempt(store, first)
    ending = await _restart(store, 1, "resolved")
    assert not ending.task.resolves_earlier
    await end_attempt(store, ending, DeliveryState.RETRYING, reason="server_error")
    second = await _restart(store, 2)
    assert second.task.resolves_earlier
    await end_attempt(store, second)
    repeated = await _restart(store, 2)
    assert not repeated.task.resolves_earlier, "the channel has this episode"
    await end_attempt(store, repeated)
    await end_attempt(store, await _restart(store, 2, "resolved"))
    third = await _restart(store, 3)
    assert not third.task.resolves_earlier, "the resolve arrived"
    await end_attempt(store, third)
    await end_attempt(store, await _restart(store, 3, "resolved"), DeliveryState.DEAD, reason="rejected")
    assert (await _restart(store, 4)).task.resolves_earlier, "the resolve was given up"


async def test_an_episode_that_nobody_was_notified_of_needs_no_resolve(store: Store) -> None:
    await end_attempt(store, await _restart(store, 1), DeliveryState.RETRYING, reason="unreachable")
    await accept(store, "x", is_open=False, event=event_of("resolved"))
    second = await _restart(store, 2)
    assert not second.task.resolves_earlier
    await end_attempt(store, second, DeliveryState.RETRYING, reason="timeout", maybe_sent=True)
    await accept(store, "x", episode=2, is_open=False, event=event_of("resolved"))
    assert (await _restart(store, 3)).task.resolves_earlier, "it may have arrived"


async def test_what_was_begun_of_an_episode_is_not_resolved_again(store: Store) -> None:
    await end_attempt(store, await _restart(store, 1))
    begun = await _restart(store, 2)
    assert begun.task.resolves_earlier
    assert await save_progress(store, begun, {"earlier_resolved": "yes"})
    await end_attempt(store, begun, DeliveryState.RETRYING, reason="timeout", maybe_sent=True)
    assert not (await _restart(store, 2)).task.resolves_earlier, (
        "its trigger may have arrived, and was perhaps acknowledged"
    )


async def test_what_was_begun_of_an_earlier_episode_is_resolved(store: Store) -> None:
    begun = await _restart(store, 1)
    assert await save_progress(store, begun, {"triggered": "yes"})
    await end_attempt(store, begun, DeliveryState.RETRYING, reason="server_error")
    await accept(store, "x", is_open=False, event=event_of("resolved"))
    assert (await _restart(store, 2)).task.resolves_earlier


@pytest.mark.parametrize("delivered_up_to", [2, 3])
async def test_after_a_restored_backup_nobody_is_called_twice(store: Store, delivered_up_to: int) -> None:
    await end_attempt(store, await _restart(store, 1))
    await accept(store, "x", is_open=False, event=event_of("resolved"))
    await accept(store, "x", episode=2)
    restored = update(deliveries).where(deliveries.c.event_seq == 3).values(maybe_delivered_up_to=delivered_up_to)
    await store.run(lambda transaction: transaction.connection.execute(restored))
    second = await prepare(store, await claim_one(store), acknowledges=True)
    assert second.task.resolves_earlier == (delivered_up_to == 2)  # what began after it, nobody was called for
