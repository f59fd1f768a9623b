"""A channel behind its circuit breaker, with a clock under the control of the test."""

import asyncio
from typing import Any

from services.relay.model import Claim
from services.relay.outbox.breaker import FAILURE_THRESHOLD, ChannelEffect
from services.relay.outbox.receipt import OutcomeResult
from services.relay.outbox.store import Store
from services.relay.outbox.tables import CHANNELS, ChannelRow, DeliveryState
from tests.relay.outbox.actions import accept, claim_some, end_attempt


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


async def enqueue(store: Store, number: int, channel: str = "a") -> None:
    await asyncio.gather(*(accept(store, f"{channel}{incident}", channel) for incident in range(number)))


async def fail(
    store: Store, claim: Claim, effect: ChannelEffect = ChannelEffect.FAILED, **changes: Any
) -> OutcomeResult:
    outcome: dict[str, Any] = {"reason": "timeout", "channel_effect": effect, "retry_in": 1.0}
    return await end_attempt(store, claim, DeliveryState.RETRYING, **outcome | changes)


async def state_of(store: Store, channel: str = "a") -> ChannelRow:
    (state,) = [each for each in await store.read(CHANNELS.fetch_all) if each.name == channel]
    return state


async def open_breaker(store: Store) -> None:
    """The breaker of channel `a` opens: as many attempts in a row as it takes do not reach the provider."""
    for claim in (await claim_some(store, limit=FAILURE_THRESHOLD)).claims:
        await fail(store, claim)
