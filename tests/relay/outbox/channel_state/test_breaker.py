"""A channel that cannot be reached, or refuses everything, is left alone for a while; then one tries for all."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from services.relay.outbox.channels import FAILURE_THRESHOLD, ChannelEffect, commit_allow_trial, take_token
from services.relay.outbox.store import Store, open_store
from services.relay.outbox.tables import DeliveryState
from shared.sql import database_url
from tests.relay.outbox.actions import claim_one, claim_some, end_attempt, nothing_due
from tests.relay.outbox.channel_breakers import Clock, enqueue, fail, open_breaker, state_of


@pytest.fixture
async def store(tmp_path: Path, clock: Clock) -> AsyncIterator[Store]:
    async with open_store(database_url.create_sqlite_url(tmp_path / "relay.db"), clock) as store:
        yield store


async def test_after_failures_in_a_row_one_tries_for_all_and_each_failure_doubles_the_pause(
    store: Store, clock: Clock
) -> None:
    await enqueue(store, FAILURE_THRESHOLD + 3)
    await open_breaker(store)
    for pause in (1.0, 2.0, 4.0, 8.0):
        claimed = await claim_some(store, limit=9)
        assert (claimed.claims, claimed.retry_in) == ((), pause)
        clock.now += pause
        (probe,) = (await claim_some(store, limit=9)).claims
        assert probe.is_breaker_trial
        assert await nothing_due(store)  # while it tries
        await fail(store, probe)
    clock.now += 16
    await end_attempt(store, await claim_one(store))
    assert len((await claim_some(store, limit=99)).claims) == FAILURE_THRESHOLD + 2  # also those that had to wait


async def test_the_longest_pause_has_a_bound(store: Store, clock: Clock) -> None:
    await enqueue(store, FAILURE_THRESHOLD)
    await open_breaker(store)
    for _ in range(20):
        clock.now += (await claim_some(store)).retry_in or 0
        await fail(store, await claim_one(store), retry_in=0.0)
    assert (await claim_some(store)).retry_in == 300


async def test_failures_with_a_success_between_them_break_nothing(store: Store) -> None:
    await enqueue(store, 20)
    for _ in range(4):
        for _ in range(FAILURE_THRESHOLD - 1):
            await fail(store, await claim_one(store))
        await end_attempt(store, await claim_one(store))
    assert (await state_of(store)).failures == 0


async def test_those_in_progress_when_it_breaks_do_not_make_the_pause_longer(store: Store) -> None:
    await enqueue(store, 30)
    for claim in (await claim_some(store, limit=29)).claims:
        await fail(store, claim)
    assert (await claim_some(store)).retry_in == 1.0


async def test_one_of_those_in_progress_that_arrives_closes_the_breaker(store: Store) -> None:
    await enqueue(store, FAILURE_THRESHOLD + 2)
    *others, last = (await claim_some(store, limit=FAILURE_THRESHOLD + 1)).claims
    for claim in others:
        await fail(store, claim)
    assert await nothing_due(store)
    await end_attempt(store, last)
    assert not await nothing_due(store)


async def test_a_message_that_is_refused_says_that_the_channel_works(store: Store) -> None:
    await enqueue(store, FAILURE_THRESHOLD + 1)
    for _ in range(FAILURE_THRESHOLD - 1):
        await fail(store, await claim_one(store))
    await end_attempt(store, await claim_one(store), DeliveryState.DEAD)
    assert (await state_of(store)).failures == 0


async def test_a_channel_that_refuses_everything_is_tried_after_the_longest_pause(store: Store, clock: Clock) -> None:
    await enqueue(store, 5)
    await fail(store, await claim_one(store), ChannelEffect.DOWN, reason="unauthorized", retry_in=300.0)
    assert (await state_of(store)).is_down
    claimed = await claim_some(store)
    assert (claimed.claims, claimed.retry_in, claimed.channel_down) == ((), 300.0, True)
    clock.now += 300
    (probe,) = (await claim_some(store, limit=9)).claims
    await end_attempt(store, probe)
    assert not (await state_of(store)).is_down
    assert len((await claim_some(store, limit=9)).claims) == 4


async def test_a_probe_that_says_nothing_lets_the_next_try(store: Store, clock: Clock) -> None:
    await enqueue(store, FAILURE_THRESHOLD + 1)
    await open_breaker(store)
    clock.now += 1
    await fail(store, await claim_one(store), ChannelEffect.NOTHING, retry_in=60.0)
    assert len((await claim_some(store, limit=9)).claims) == 1


async def test_a_probe_that_crashed_lets_the_next_try_when_its_lease_ends(store: Store, clock: Clock) -> None:
    await enqueue(store, FAILURE_THRESHOLD + 1)
    await open_breaker(store)
    clock.now += 1
    await claim_one(store, owner="crashed")
    assert (await claim_some(store)).retry_in == 20
    clock.now += 20
    assert len((await claim_some(store, limit=9)).claims) == 1


async def test_another_secret_is_tried_at_once_by_one_for_all(store: Store) -> None:
    await enqueue(store, 5)
    await fail(store, await claim_one(store), ChannelEffect.DOWN, retry_in=300.0)
    await commit_allow_trial(store, ["a"])
    (probe,) = (await claim_some(store, limit=9)).claims
    assert (await state_of(store)).is_down  # until something arrives
    await end_attempt(store, probe)
    assert len((await claim_some(store, limit=9)).claims) == 4


async def test_what_failed_before_is_due_at_once_when_a_probe_arrives(store: Store, clock: Clock) -> None:
    await enqueue(store, FAILURE_THRESHOLD + 1)
    for claim in (await claim_some(store, limit=FAILURE_THRESHOLD)).claims:
        await fail(store, claim, retry_in=1000.0)
    clock.now += 1
    await end_attempt(store, await claim_one(store))
    assert len((await claim_some(store, limit=9)).claims) == FAILURE_THRESHOLD


async def test_whoever_starts_again_tries_at_once(store: Store) -> None:
    await enqueue(store, FAILURE_THRESHOLD + 3)
    await open_breaker(store)
    assert await nothing_due(store)
    await commit_allow_trial(store, ["a"])
    (probe,) = (await claim_some(store, limit=9)).claims
    assert probe.is_breaker_trial


async def test_a_message_that_is_no_delivery_takes_a_token_of_the_same_rate(store: Store, clock: Clock) -> None:
    async def take(rate: float | None = 1.0) -> float:
        return await store.run(lambda transaction: take_token(transaction, "a", rate))

    assert [await take() for _ in range(7)] == [0.0] * 5 + [1.0] * 2
    assert [await take(None) for _ in range(7)] == [0.0] * 7
    await enqueue(store, FAILURE_THRESHOLD)
    assert (await claim_some(store, rate=1.0)).claims == ()
    clock.now += 1
    (claim,) = (await claim_some(store, rate=1.0)).claims
    await fail(store, claim, retry_in=0.0)
    clock.now += 60
    await open_breaker(store)
    assert await take() > 0
    clock.now += 60
    assert await take() > 0  # a delivery tries for all
