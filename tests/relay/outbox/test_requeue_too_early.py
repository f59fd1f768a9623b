"""What was given up by a clock that was ahead is sent again once that clock is right."""

from collections.abc import AsyncIterator

import pytest
from sqlalchemy import update

from services.relay.outbox.channels import commit_allow_trial
from services.relay.outbox.recovery import sweep
from services.relay.outbox.store import Store, open_store
from services.relay.outbox.tables import DeliveryState, deliveries
from shared.sql.database_url import DatabaseUrl
from tests.relay.outbox.actions import accept, claim_one, claim_some, end_attempt, nothing_due
from tests.relay.outbox.channel_breakers import enqueue, open_breaker

DAY = 86_400.0


@pytest.fixture
async def store(database: DatabaseUrl) -> AsyncIterator[Store]:
    async with open_store(database, lambda: 1000.0, frozenset({"every"})) as store:
        yield store


async def set_the_clock_back(store: Store, seconds: float) -> None:
    """What ended has ended in the future."""
    ended = update(deliveries).where(deliveries.c.finished_at.is_not(None))
    later = ended.values(finished_at=deliveries.c.finished_at + seconds)
    await store.run(lambda transaction: transaction.connection.execute(later))


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
