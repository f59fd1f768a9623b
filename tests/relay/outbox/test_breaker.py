"""When a channel may be used: its rate, its circuit breaker, and the pause that its provider asked for."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from services.relay.deliveries import queries as delivery_list
from services.relay.deliveries.queries import DeliveryFilter, list_deliveries
from services.relay.outbox.breaker import FAILURE_THRESHOLD, ChannelEffect, commit_allow_trial, take_token
from services.relay.outbox.claim import ClaimResult
from services.relay.outbox.recovery import sweep
from services.relay.outbox.store import Store, open_store
from services.relay.outbox.tables import DeliveryState
from shared.sql import database_url
from tests.relay.outbox.actions import accept, claim_one, claim_some, end_attempt, nothing_due
from tests.relay.outbox.channel_breakers import Clock, enqueue, fail, open_breaker, state_of


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


@pytest.mark.parametrize("back", [60, 86400])
async def test_a_clock_that_is_set_back_makes_no_pace_slower(store: Store, clock: Clock, back: float) -> None:
    clock.now = 1e9
    await enqueue(store, 10)
    await at_pace(store, 1.0)
    clock.now -= back
    await sweep(store, 86400, (), 360)
    assert len((await at_pace(store, 1.0)).claims) == 5


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


@pytest.mark.parametrize("answer", [DeliveryState.DELIVERED, DeliveryState.DEAD])
async def test_failures_with_an_answer_between_them_break_nothing_be_it_that_it_refuses_the_message(
    store: Store, answer: DeliveryState
) -> None:
    await enqueue(store, 2 * FAILURE_THRESHOLD)
    for _ in range(2):
        for _ in range(FAILURE_THRESHOLD - 1):
            await fail(store, await claim_one(store))
        await end_attempt(store, await claim_one(store), answer)
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
    await fail(store, await claim_one(store), ChannelEffect.UNCHANGED, retry_in=60.0)
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


LIMITED = {"reason": "rate_limited", "retry_after": 30.0, "retry_in": 30.0}


async def waits(store: Store, seconds: float) -> bool:
    claimed = await claim_some(store, limit=9)
    return not claimed.claims and claimed.retry_in == seconds


@pytest.mark.parametrize("effect", ChannelEffect)
async def test_another_attempt_does_not_shorten_it(store: Store, clock: Clock, effect: ChannelEffect) -> None:
    await enqueue(store, 4)
    limited, other = (await claim_some(store, limit=2)).claims
    await fail(store, limited, ChannelEffect.UNCHANGED, **LIMITED)
    await fail(store, other, effect, retry_in=0.0)
    clock.now += 29
    assert await nothing_due(store)
    clock.now += 1
    assert len((await claim_some(store, limit=9)).claims) == (0 if effect is ChannelEffect.DOWN else 4)


async def test_a_restart_does_not_shorten_it(store: Store, clock: Clock) -> None:
    await enqueue(store, FAILURE_THRESHOLD + 4)
    *failing, limited = (await claim_some(store, limit=FAILURE_THRESHOLD + 1)).claims
    for claim in failing:
        await fail(store, claim)
    await fail(store, limited, ChannelEffect.UNCHANGED, **LIMITED)
    await commit_allow_trial(store, ["a"])
    assert await waits(store, 30)
    clock.now += 30
    (probe,) = (await claim_some(store, limit=9)).claims
    assert probe.is_breaker_trial


async def test_a_probe_that_is_put_off_is_not_tried_before(store: Store, clock: Clock) -> None:
    await enqueue(store, FAILURE_THRESHOLD + 4)
    await open_breaker(store)
    clock.now += 1
    (probe,) = (await claim_some(store, limit=9)).claims
    await fail(store, probe, ChannelEffect.FAILED, **LIMITED)  # the breaker alone would pause for 2 s
    assert await waits(store, 30)


async def test_the_longer_of_two_counts(store: Store, clock: Clock) -> None:
    await enqueue(store, 4)
    first, second, third = (await claim_some(store, limit=3)).claims
    await fail(store, first, ChannelEffect.UNCHANGED, **LIMITED)
    clock.now += 10
    await fail(store, second, ChannelEffect.UNCHANGED, retry_after=5.0)
    assert await waits(store, 20)
    await fail(store, third, ChannelEffect.UNCHANGED, retry_after=40.0)
    assert await waits(store, 40)


async def test_after_a_clock_is_set_back_it_lasts_no_longer_than_the_longest_wait(store: Store, clock: Clock) -> None:
    clock.now = 1e9
    await enqueue(store, 2)
    await fail(store, await claim_one(store), ChannelEffect.UNCHANGED, **LIMITED)
    clock.now -= 5000
    await sweep(store, 86_400, (), 300)
    assert await waits(store, 300)


DAY = {"reason": "rate_limited", "retry_after": 86_400.0, "retry_in": 86_400.0}
"""Longer than the longest pause of the breaker: the channel counts as down."""


@pytest.mark.parametrize(("how", "most"), [(DAY, 86_400), ({"reason": "unauthorized", "retry_in": 300.0}, 300)])
async def test_after_a_clock_is_set_back_a_channel_is_down_for_as_long_as_its_provider_may_have_asked(
    store: Store, clock: Clock, how: dict[str, Any], most: float
) -> None:
    clock.now = 1e9
    await enqueue(store, 2)
    await fail(store, await claim_one(store), ChannelEffect.DOWN, **how)
    clock.now -= 500_000
    await sweep(store, 86_400, (), 300)
    assert await waits(store, most)


@pytest.mark.parametrize("then", [ChannelEffect.REACHED, ChannelEffect.FAILED, ChannelEffect.DOWN])
async def test_what_was_in_progress_does_not_end_the_pause_of_a_channel_that_is_down(
    store: Store, clock: Clock, then: ChannelEffect
) -> None:
    await enqueue(store, 4)
    limited, other = (await claim_some(store, limit=2)).claims
    await fail(store, limited, ChannelEffect.DOWN, **DAY)
    await fail(store, other, then)
    await sweep(store, 86_400, (), 300)
    assert (await state_of(store)).is_down
    assert await waits(store, 86_400)
    clock.now += 86_400
    (probe,) = (await claim_some(store, limit=9)).claims
    await end_attempt(store, probe)
    assert not (await state_of(store)).is_down


async def test_an_answer_to_one_message_never_silences_its_channel_for_a_day(store: Store) -> None:
    await enqueue(store, 4)
    await fail(store, await claim_one(store))
    await end_attempt(store, await claim_one(store), DeliveryState.DEAD, retry_after=86_400.0)
    assert not await nothing_due(store)
