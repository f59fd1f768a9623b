"""Tries deliveries again, and sends them elsewhere.

A retry sends the current state of an incident. Retrying many is retrying each in small transactions: whatever ends it
early, what is left is still a dead letter.

Another channel gets a new delivery of the current state of the incident, unless it has that already: two clicks send
one message. From then on the incident is open on that channel, and all its further events go there.
"""

from collections.abc import AsyncIterator, Collection
from typing import Final, NamedTuple

from sqlalchemy import bindparam

from services.relay.acknowledgement.store import MAX_NAME
from services.relay.deliveries.queries import DeliverySummary, read_delivery
from services.relay.outbox import breaker
from services.relay.outbox.audit import Actor, insert_entry
from services.relay.outbox.dead_letters import DeadLetterFilter, requeue, requeue_dead
from services.relay.outbox.fallback import find_missing_events
from services.relay.outbox.incidents import read_current_state
from services.relay.outbox.merge import NewDelivery, enqueue_deliveries, lock_incidents
from services.relay.outbox.store import Store, Transaction
from services.relay.outbox.tables import DELIVERIES, DeliveryState, clean_for_database, deliveries
from shared.http.json_api import RefusedError

STEP: Final = 50
"""Dead letters of one transaction: some tens of milliseconds of the writer's time, so that webhooks hardly wait."""
_NOT_RETRYABLE: Final = {
    DeliveryState.SENDING: "it is being sent",
    DeliveryState.DELIVERED: "it was delivered",
    DeliveryState.SUPERSEDED: "another delivery supersedes it",
}


class UnknownDeliveryError(RefusedError):
    """There is no such delivery, or not any more."""

    status = 404

    def __init__(self) -> None:
        super().__init__(
            "no such delivery", hint="It may have been deleted: `retention` says for how long deliveries are kept."
        )


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
        RefusedError: nothing was changed.
        StoreUnavailableError: nothing was changed, or it cannot be read how it stands.
    """
    before = await _read_delivery(store, delivery_id)
    if before.channel not in channels:
        raise RefusedError(f"its channel, {before.channel}, is not configured any more", 409)
    state = await requeue(store, delivery_id, actor)
    if state in _NOT_RETRYABLE:
        raise RefusedError(f"there is nothing to try again: {_NOT_RETRYABLE[state]}", 409)
    return await _read_delivery(store, delivery_id)


async def _read_delivery(store: Store, delivery_id: str) -> DeliverySummary:
    details = await read_delivery(store, delivery_id)
    if details is None:
        raise UnknownDeliveryError
    return details.delivery


async def retry_channel(store: Store, channel: str, reason: str | None, actor: Actor) -> AsyncIterator[int]:
    """Tries again what is dead on a channel now, with an entry in the audit; gives how many each step took.

    A delivery that dies again meanwhile is left alone, else it would never end. If the channel is down, waiting
    deliveries are tried at once, too.

    Args:
        store: the outbox.
        channel: its name.
        reason: of the last attempt, or `NO_ATTEMPT`; None takes all.
        actor: who asks.

    Raises:
        StoreUnavailableError: the steps before this one are done.
    """

    def begin(transaction: Transaction) -> int:
        insert_entry(transaction, actor.who, actor.peer, "retry all", " ".join(filter(None, (channel, reason))))
        breaker.allow_trial(transaction, [channel])
        return letters.count(transaction.connection)

    letters = DeadLetterFilter(channel, reason)
    left = await store.run(begin)
    while left > 0 and (count := await requeue_dead(store, letters, min(left, STEP))):
        left -= count
        yield count


ACTION: Final = "send elsewhere"
"""In the audit."""
_delivery = deliveries.c
_FIND_DELIVERY: Final = DELIVERIES.where(_delivery.id == bindparam("delivery"))
_FIND_LATEST: Final = (
    DELIVERIES.where(
        _delivery.incident_id == bindparam("incident"),
        _delivery.channel.concat("") == bindparam("channel"),  # so that `deliveries_of_episode` is used
    )
    .order_by((_delivery.seq + 0).desc())
    .limit(1)
)


class SentElsewhere(NamedTuple):
    delivery_id: str
    """Of the delivery on the other channel."""
    superseded_count: int
    """How many deliveries on that channel were merged into it."""


async def send_elsewhere(store: Store, delivery_id: str, channel: str, actor: Actor) -> SentElsewhere:
    """Adds the delivery on another, configured channel, with an entry in the audit; commits both or neither.

    Raises:
        RefusedError: nothing was changed.
        StoreUnavailableError: it is not known to be committed.
    """
    who = clean_for_database(actor.who)[:MAX_NAME]

    def work(transaction: Transaction) -> SentElsewhere:
        row = _FIND_DELIVERY.fetch_first(transaction.connection, {"delivery": delivery_id})
        if row is None:
            raise UnknownDeliveryError
        if row.channel == channel:
            raise RefusedError(f"it is for {channel} already; expected another channel, or retry it", 409)
        lock_incidents(transaction, [row.incident_id])
        remark = f"Sent elsewhere by {who}; it was for {row.channel}."
        new = _build_delivery(transaction, row.incident_id, row.first_event_seq, channel, remark)
        enqueued = enqueue_deliveries(transaction, [new])
        insert_entry(transaction, who, actor.peer, ACTION, f"{delivery_id} to {channel}", row.incident_id)
        return SentElsewhere(enqueued.delivery_ids[0], len(enqueued.superseded_rows))

    return await store.run(work)


def _build_delivery(
    transaction: Transaction, incident_id: str, first_event_seq: int, channel: str, remark: str
) -> NewDelivery:
    """The current state of an incident, with all events since the first one that the channel does not have."""
    current = read_current_state(transaction.connection, incident_id)
    if current is None:
        raise RefusedError("its incident is not stored any more", 409)
    latest = current.latest_event_seq
    missing = find_missing_events(transaction, incident_id, channel, first_event_seq, latest)
    if latest not in missing:
        there = _FIND_LATEST.fetch_one(transaction.connection, {"incident": incident_id, "channel": channel})
        if there.state == DeliveryState.DEAD:
            raise RefusedError(f"the current state was given up on {channel}: retry delivery {there.id}", 409)
        raise RefusedError(f"{channel} has the current state of its incident: delivery {there.id}, {there.state}", 409)
    # On a channel that merges nothing, an older event would follow newer ones.
    first = latest if channel in transaction.unmerged_channels else missing[0]
    return NewDelivery(latest, first, incident_id, current.episode, channel, remark)
