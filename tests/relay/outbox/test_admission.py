"""When a channel may be used: pace and Retry-After, by a clock under the test's control."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from services.relay.deliveries import queries as delivery_list
from services.relay.deliveries.queries import DeliveryFilter, list_deliveries
from services.relay.outbox.channels import ChannelEffect, commit_allow_trial
from services.relay.outbox.claim import ClaimResult
from services.relay.outbox.recovery import sweep
from services.relay.outbox.store import Store, open_store
from services.relay.outbox.tables import DeliveryState
from shared.sql import database_url
from tests.relay.outbox.actions import accept, claim_one, claim_some, nothing_due
from tests.relay.outbox.channel_breakers import Clock, enqueue, fail, state_of


@pytest.fixture
async def store(tmp_path: Path, clock: Clock) -> AsyncIterator[Store]:
    async with open_store(database_url.create_sqlite_url(tmp_path / "relay.db"), clock) as store:
        yield store


async def at_pace(store: Store, rate: float, limit: int = 100) -> ClaimResult:
    return await claim_some(store, limit=limit, rate=rate)


async def test_a_channel_sends_at_once_what_its_pace_saved_up_and_then_keeps_it(store: Store, clock: Clock) -> None:
    await enqueue(store, 12)
    assert len((await at_pace(store, 1.0)).claims) == 5
    assert (await at_pace(store, 1.0)).retry_in == pytest.approx(1.0)
    clock.now += 0.5
    assert (await at_pace(store, 1.0)).retry_in == pytest.approx(0.5)
    clock.now += 0.5
    assert len((await at_pace(store, 1.0)).claims) == 1
    clock.now += 2.5
    assert len((await at_pace(store, 1.0)).claims) == 2
    clock.now += 15
    assert len((await at_pace(store, 1.0)).claims) == 4  # there are no more


async def test_a_slow_pace_lets_one_go_at_a_time(store: Store, clock: Clock) -> None:
    await enqueue(store, 3)
    assert len((await at_pace(store, 1 / 60)).claims) == 1
    claimed = await at_pace(store, 1 / 60)
    assert not claimed.claims
    assert claimed.retry_in == pytest.approx(60)
    clock.now += 59
    assert not (await at_pace(store, 1 / 60)).claims
    clock.now += 1
    assert len((await at_pace(store, 1 / 60)).claims) == 1


async def test_a_pace_counts_what_was_taken_and_not_what_might_have_been(store: Store) -> None:
    await enqueue(store, 1)
    assert len((await at_pace(store, 1.0)).claims) == 1
    await enqueue(store, 10)
    assert len((await at_pace(store, 1.0)).claims) == 4


@pytest.mark.parametrize("back", [60, 86400])
async def test_a_clock_that_is_set_back_makes_no_pace_slower(store: Store, clock: Clock, back: float) -> None:
    clock.now = 1e9
    await enqueue(store, 10)
    await at_pace(store, 1.0)
    clock.now -= back
    await sweep(store, 86400, (), 360)
    assert len((await at_pace(store, 1.0)).claims) == 5


async def test_nothing_is_sent_before_a_provider_said(store: Store, clock: Clock) -> None:
    await enqueue(store, 2)
    await enqueue(store, 1, "b")
    await fail(store, await claim_one(store), ChannelEffect.NOTHING, retry_after=30.0, retry_in=30.0)
    claimed = await claim_some(store)
    assert (claimed.claims, claimed.retry_in) == ((), 30.0)
    assert (await claim_some(store, "b")).claims  # another channel waits for nobody
    clock.now += 29.9
    assert await nothing_due(store)
    clock.now += 0.1
    assert len((await claim_some(store, limit=5)).claims) == 2
    assert not (await state_of(store)).is_down


async def test_a_shorter_retry_after_does_not_shorten_a_longer_one(store: Store, clock: Clock) -> None:
    await enqueue(store, 3)
    first, second = (await claim_some(store, limit=2)).claims
    await fail(store, first, ChannelEffect.NOTHING, retry_after=30.0)
    await fail(store, second, ChannelEffect.NOTHING, retry_after=5.0)
    clock.now += 29
    assert await nothing_due(store)


async def test_a_pause_that_a_provider_asked_for_is_kept_whoever_starts_again(store: Store) -> None:
    await enqueue(store, 2)
    await fail(store, await claim_one(store), ChannelEffect.NOTHING, retry_after=30.0)
    await commit_allow_trial(store, ["a"])
    assert (await claim_some(store)).retry_in == 30


async def test_what_an_open_breaker_kept_waiting_for_too_long_is_given_up_and_nothing_else(
    store: Store, clock: Clock
) -> None:
    await enqueue(store, 3)
    await fail(store, await claim_one(store), ChannelEffect.DOWN, reason="unauthorized", retry_in=300.0)
    await enqueue(store, 2, "b")
    clock.now += 3000
    await accept(store, "late", "a")
    clock.now += 700
    assert (await sweep(store, 3600, (), 360)).ended == (("a", DeliveryState.DEAD),) * 3
    assert [(each.channel, each.reason) for each in await _states(store, DeliveryState.DEAD)] == [
        ("a", "unauthorized")
    ] * 3
    assert {each.channel for each in await _states(store, DeliveryState.QUEUED)} == {"a", "b"}


async def _states(store: Store, state: DeliveryState) -> list[delivery_list.DeliverySummary]:
    return (await list_deliveries(store, DeliveryFilter(state=state), limit=100)).deliveries
