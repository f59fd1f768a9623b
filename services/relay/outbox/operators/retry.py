"""Tries one delivery again that is dead, or waits for its next attempt."""

from collections.abc import Collection
from typing import Final

from services.relay.outbox.engine.store import Store
from services.relay.outbox.operators.audit import Actor
from services.relay.outbox.operators.requeue import requeue
from services.relay.outbox.queries import delivery_list
from services.relay.outbox.queries.delivery_list import DeliverySummary
from services.relay.outbox.tables import DeliveryState

_NOT_RETRYABLE: Final = {
    DeliveryState.SENDING: "it is being sent",
    DeliveryState.DELIVERED: "it was delivered",
    DeliveryState.SUPERSEDED: "another delivery supersedes it",
}


class UnknownDeliveryError(Exception):
    """There is no such delivery, or not any more."""


class NotRetryableError(Exception):
    """The message is a sentence that says why."""


async def retry_delivery(
    store: Store, delivery_id: str, channels: Collection[str], actor: Actor | None = None
) -> DeliverySummary:
    """Tries a delivery again that is dead, or waits for its next attempt; gives it as it stands then.

    Args:
        store: the outbox.
        delivery_id: which.
        channels: the configured names.
        actor: with an entry in the audit; both are committed, or neither is.

    Raises:
        UnknownDeliveryError: nothing was changed.
        NotRetryableError: nothing was changed.
        StoreUnavailableError: nothing was changed, or it cannot be read how it stands.
    """
    before = await _read_delivery(store, delivery_id)
    if before.channel not in channels:
        raise NotRetryableError(f"its channel, {before.channel}, is not configured any more")
    state = await requeue(store, delivery_id, actor)
    if state in _NOT_RETRYABLE:
        raise NotRetryableError(f"there is nothing to try again: {_NOT_RETRYABLE[state]}")
    return await _read_delivery(store, delivery_id)


async def _read_delivery(store: Store, delivery_id: str) -> DeliverySummary:
    details = await delivery_list.read_delivery(store, delivery_id)
    if details is None:
        raise UnknownDeliveryError("no such delivery")
    return details.delivery
