"""What was given up is tried again because a person says so: one delivery, or all of a channel."""

from collections.abc import AsyncIterator, Collection
from typing import Final

from services.relay.outbox import query
from services.relay.outbox.again import again, again_all
from services.relay.outbox.gate import reopened
from services.relay.outbox.query import Delivery
from services.relay.outbox.schema import State
from services.relay.outbox.store import Store

STEP: Final = 200
"""Deliveries in one transaction."""
_NOT_AGAIN: Final = {
    State.SENDING: "it is being sent",
    State.DELIVERED: "it was delivered",
    State.SUPERSEDED: "another delivery tells it instead",
}


class UnknownDeliveryError(Exception):
    """There is no such delivery, or not any more."""


class NothingToRetryError(Exception):
    """The message is a sentence that says why."""


async def retry(store: Store, delivery_id: str, channels: Collection[str]) -> Delivery:
    """Tries a delivery again that is dead, or waits for its next attempt; gives it as it stands then.

    Args:
        store: the outbox.
        delivery_id: which.
        channels: the configured names.

    Raises:
        UnknownDeliveryError: nothing was changed.
        NothingToRetryError: nothing was changed.
        StoreUnavailableError: nothing was changed, or it cannot be read how it stands.
    """
    before = await _found(store, delivery_id)
    if before.channel not in channels:
        raise NothingToRetryError(f"its channel, {before.channel}, is not configured any more")
    had = await again(store, delivery_id)
    if had in _NOT_AGAIN:
        raise NothingToRetryError(f"there is nothing to try again: {_NOT_AGAIN[had]}")
    return await _found(store, delivery_id)


async def retry_channel(store: Store, channel: str) -> AsyncIterator[int]:
    """Tries again what is dead on a channel now, in steps; gives how many each step took.

    What dies again meanwhile is left alone, else it would never end. Where the channel refuses everything, what waits
    for it is tried at once, too.

    Raises:
        StoreUnavailableError: the steps before this one are done.
    """
    await reopened(store, [channel])
    left = await query.dead(store, channel)
    while left > 0:
        taken = await again_all(store, channel, min(left, STEP))
        if taken == 0:
            return
        left -= taken
        yield taken


async def _found(store: Store, delivery_id: str) -> Delivery:
    record = await query.one(store, delivery_id)
    if record is None:
        raise UnknownDeliveryError("no such delivery")
    return record.delivery
