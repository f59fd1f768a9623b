"""A person sends a delivery to another channel: a new delivery there, of the current state of its incident.

What the channel has already is not repeated: so two clicks send one message, and nothing older follows something newer.
From then on the incident is open on that channel, and all its further events go there.
"""

from typing import Final, NamedTuple

from sqlalchemy import bindparam

from services.relay.outbox.engine.batching import Transaction
from services.relay.outbox.engine.store import Store
from services.relay.outbox.fallback import find_missing_events
from services.relay.outbox.incidents import read_current_state
from services.relay.outbox.merge import NewDelivery, enqueue_deliveries, lock_incidents
from services.relay.outbox.operators.acknowledgement import MAX_NAME
from services.relay.outbox.operators.audit import insert_entry
from services.relay.outbox.operators.retry import UnknownDeliveryError
from services.relay.outbox.rows import DELIVERIES
from services.relay.outbox.tables import DeliveryState, clean_for_database, deliveries

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


class NotSendableError(Exception):
    """The message is a sentence that says why."""


class SentElsewhere(NamedTuple):
    """What was committed."""

    delivery_id: str
    """Of the delivery on the other channel."""
    superseded_count: int
    """How many deliveries on that channel were merged into it."""


async def send_elsewhere(
    store: Store, delivery_id: str, channel: str, *, who: str, peer: str | None = None
) -> SentElsewhere:
    """Adds the delivery on another channel, with an entry in the audit; both are committed, or neither is.

    Args:
        store: the outbox.
        delivery_id: which delivery.
        channel: the other channel, which is configured.
        who: the person, or the credential.
        peer: the address that called, for the audit.

    Raises:
        UnknownDeliveryError: nothing was changed.
        NotSendableError: nothing was changed.
        StoreUnavailableError: it is not known to be committed.
    """
    who = clean_for_database(who)[:MAX_NAME]

    def work(transaction: Transaction) -> SentElsewhere:
        row = _FIND_DELIVERY.fetch_first(transaction.connection, {"delivery": delivery_id})
        if row is None:
            raise UnknownDeliveryError("no such delivery")
        if row.channel == channel:
            raise NotSendableError(f"it is for {channel} already; expected another channel, or retry it")
        lock_incidents(transaction, [row.incident_id])
        remark = f"Sent elsewhere by {who}; it was for {row.channel}."
        new = _build_delivery(transaction, row.incident_id, row.first_event_seq, channel, remark)
        enqueued = enqueue_deliveries(transaction, [new])
        insert_entry(transaction, who, peer, ACTION, f"{delivery_id} to {channel}", row.incident_id)
        return SentElsewhere(enqueued.delivery_ids[0], len(enqueued.superseded_rows))

    return await store.run(work)


def _build_delivery(
    transaction: Transaction, incident_id: str, first_event_seq: int, channel: str, remark: str
) -> NewDelivery:
    """The current state of an incident, with all events since the first one that the channel does not have."""
    current = read_current_state(transaction.connection, incident_id)
    if current is None:
        raise NotSendableError("its incident is not stored any more")
    latest = current.latest_event_seq
    missing = find_missing_events(transaction, incident_id, channel, first_event_seq, latest)
    if latest not in missing:
        there = _FIND_LATEST.fetch_one(transaction.connection, {"incident": incident_id, "channel": channel})
        if there.state == DeliveryState.DEAD:
            raise NotSendableError(f"the current state was given up on {channel}: retry delivery {there.id}")
        raise NotSendableError(f"{channel} has the current state of its incident: delivery {there.id}, {there.state}")
    # On a channel that merges nothing, an older event would follow newer ones.
    first = latest if channel in transaction.unmerged_channels else missing[0]
    return NewDelivery(latest, first, incident_id, current.episode, channel, remark)
