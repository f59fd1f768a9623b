"""The pause that a provider asked for its whole channel lasts as long as it said, whatever else happens meanwhile."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from services.relay.outbox.channels import FAILURE_THRESHOLD, ChannelEffect, commit_allow_trial
from services.relay.outbox.recovery import sweep
from services.relay.outbox.store import Store, open_store
from services.relay.outbox.tables import DeliveryState
from shared.sql import database_url
from tests.relay.outbox.actions import claim_one, claim_some, end_attempt, nothing_due
from tests.relay.outbox.channel_breakers import Clock, enqueue, fail, open_breaker, state_of

LIMITED = {"reason": "rate_limited", "retry_after": 30.0, "retry_in": 30.0}


@pytest.fixture
async def store(tmp_path: Path, clock: Clock) -> AsyncIterator[Store]:
    async with open_store(database_url.create_sqlite_url(tmp_path / "relay.db"), clock) as store:
        yield store


async def waits(store: Store, seconds: float) -> bool:
    claimed = await claim_some(store, limit=9)
    return not claimed.claims and claimed.retry_in == seconds


@pytest.mark.parametrize("effect", [ChannelEffect.FAILED, ChannelEffect.NOTHING, ChannelEffect.DOWN])
async def test_another_attempt_that_fails_does_not_shorten_it(
    store: Store, clock: Clock, effect: ChannelEffect
) -> None:
    await enqueue(store, 4)
    limited, other = (await claim_some(store, limit=2)).claims
    await fail(store, limited, ChannelEffect.NOTHING, **LIMITED)
    await fail(store, other, effect)
    clock.now += 29
    assert await nothing_due(store)


async def test_another_attempt_that_arrives_does_not_shorten_it(store: Store, clock: Clock) -> None:
    await enqueue(store, 4)
    limited, other = (await claim_some(store, limit=2)).claims
    await fail(store, limited, ChannelEffect.NOTHING, **LIMITED)
    await end_attempt(store, other)
    assert await waits(store, 30)
    clock.now += 30
    assert len((await claim_some(store, limit=9)).claims) == 3


async def test_a_breaker_that_opens_does_not_shorten_it(store: Store, clock: Clock) -> None:
    await enqueue(store, FAILURE_THRESHOLD + 4)
    *failing, limited, arriving = (await claim_some(store, limit=FAILURE_THRESHOLD + 2)).claims
    for claim in failing:
        await fail(store, claim, retry_in=100.0)
    await fail(store, limited, ChannelEffect.NOTHING, **LIMITED)
    await end_attempt(store, arriving)
    assert await waits(store, 30)
    clock.now += 30
    assert (
        len((await claim_some(store, limit=9)).claims) == FAILURE_THRESHOLD + 3
    )  # those that failed wait no longer than that


async def test_whoever_starts_again_does_not_shorten_it(store: Store, clock: Clock) -> None:
    await enqueue(store, FAILURE_THRESHOLD + 4)
    *failing, limited = (await claim_some(store, limit=FAILURE_THRESHOLD + 1)).claims
    for claim in failing:
        await fail(store, claim)
    await fail(store, limited, ChannelEffect.NOTHING, **LIMITED)
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
    await fail(store, first, ChannelEffect.NOTHING, **LIMITED)
    clock.now += 10
    await fail(store, second, ChannelEffect.NOTHING, retry_after=5.0)
    assert await waits(store, 20)
    await fail(store, third, ChannelEffect.NOTHING, retry_after=40.0)
    assert await waits(store, 40)


async def test_after_a_clock_is_set_back_it_lasts_no_longer_than_the_longest_wait(store: Store, clock: Clock) -> None:
    clock.now = 1e9
    await enqueue(store, 2)
    await fail(store, await claim_one(store), ChannelEffect.NOTHING, **LIMITED)
    clock.now -= 5000
    await sweep(store, 86_400, (), 300)
    assert await waits(store, 300)


DAY = {"reason": "rate_limited", "retry_after": 86_400.0, "retry_in": 86_400.0}
"""Longer than the longest pause of the breaker: whoever is asked for that is refused."""


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


async def test_a_message_that_is_refused_ends_no_pause_but_that_of_the_breaker(store: Store, clock: Clock) -> None:
    await enqueue(store, FAILURE_THRESHOLD + 4)
    *failing, limited, refused = (await claim_some(store, limit=FAILURE_THRESHOLD + 2)).claims
    for claim in failing:
        await fail(store, claim)
    await fail(store, limited, ChannelEffect.NOTHING, **LIMITED)
    clock.now += 12
    await end_attempt(store, refused, DeliveryState.DEAD)
    assert await waits(store, 18)
