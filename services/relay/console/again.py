"""What was given up is tried again because a person says so: one delivery, or all of a channel."""

from collections.abc import AsyncIterator
from typing import Final

from services.relay.outbox import query
from services.relay.outbox.again import again_all
from services.relay.outbox.schema import State
from services.relay.outbox.store import Store

STEP: Final = 200
"""Deliveries in one transaction."""
OVER: Final = {State.DELIVERED: "it was delivered", State.SUPERSEDED: "another delivery tells it instead"}
"""The states in which there is nothing to try again, and why."""


async def retry_channel(store: Store, channel: str) -> AsyncIterator[int]:
    """Retries what is dead on a channel now, in steps; gives how many each step took.

    What dies again meanwhile is left alone, else it would never end.

    Raises:
        StoreUnavailableError: the steps before this one are done.
    """
    left = await query.dead(store, channel)
    while left > 0:
        taken = await again_all(store, channel, min(left, STEP))
        if taken == 0:
            return
        left -= taken
        yield taken
