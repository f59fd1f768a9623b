"""What was given up is tried again because a person says so: one delivery, or all of a channel."""

from collections.abc import AsyncIterator, Collection
from typing import Final

from services.relay.outbox import query
from services.relay.outbox.again import requeue, requeue_dead
from services.relay.outbox.gate import commit_allow_trial
from services.relay.outbox.query import DeliveryRow
from services.relay.outbox.schema import State
from services.relay.outbox.store import Store

BULK_STEP: Final = 200
"""Deliveries in one transaction."""
_NOT_RETRYABLE: Final = {
    State.SENDING: "it is being sent",
    State.DELIVERED: "it was delivered",
    State.SUPERSEDED: "another delivery tells it instead",
}


class UnknownDeliveryError(Exception):
    """There is no such delivery, or not any more."""


class NotRetryableError(Exception):
    """The message is a sentence that says why."""


async def retry_delivery(store: Store, delivery_id: str, channels: Collection[str]) -> DeliveryRow:
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
    before = await _read_delivery(store, delivery_id)
    if before.channel not in channels:
        raise NotRetryableError(f"its channel, {before.channel}, is not configured any more")
    had = await requeue(store, delivery_id)
    if had in _NOT_RETRYABLE:
        raise NotRetryableError(f"there is nothing to try again: {_NOT_RETRYABLE[had]}")
    return await _read_delivery(store, delivery_id)


async def retry_channel(store: Store, channel: str) -> AsyncIterator[int]:
    """Tries again what is dead on a channel now, in steps; gives how many each step took.

    What dies again meanwhile is left alone, else it would never end. Where the channel refuses everything, what waits
    for it is tried at once, too.

    Raises:
        StoreUnavailableError: the steps before this one are done.
    """
    await commit_allow_trial(store, [channel])
    left = await query.count_dead(store, channel)
    while left > 0:
        taken = await requeue_dead(store, channel, min(left, BULK_STEP))
        if taken == 0:
            return
        left -= taken
        yield taken


async def _read_delivery(store: Store, delivery_id: str) -> DeliveryRow:
    record = await query.read_delivery(store, delivery_id)
    if record is None:
        raise UnknownDeliveryError("no such delivery")
    return record.delivery
