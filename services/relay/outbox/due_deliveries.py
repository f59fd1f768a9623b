"""Which deliveries of a channel may be claimed: what is due, and has no older one of its incident before it."""

from collections.abc import Mapping
from typing import Final

from sqlalchemy import bindparam, exists

from services.relay.outbox.engine.batching import Transaction
from services.relay.outbox.merge import RetryState, merge_into_successor, try_lock_incident
from services.relay.outbox.rows import DUE_DELIVERIES, DueRow, RowQuery
from services.relay.outbox.tables import DeliveryState, deliveries

MAX_CLAIM_BYTES: Final = 1024 * 1024
"""Bytes of events over which nothing more is claimed with them, so that memory is bounded."""

_delivery = deliveries.c
_older = deliveries.alias("older")
FIRST_OF_INCIDENT: Final = (
    _delivery.channel == bindparam("channel"),
    _delivery.finished_at.is_(None),
    ~exists().where(
        # `concat` prevents an index scan: PostgreSQL without statistics would read the whole channel for each row.
        _older.c.channel.concat("") == _delivery.channel,
        _older.c.incident_id == _delivery.incident_id,
        _older.c.finished_at.is_(None),
        _older.c.seq < _delivery.seq,
    ),
)
"""The unfinished deliveries of a channel that have no older one of their incident before them."""
IS_CLAIMABLE: Final = (
    *FIRST_OF_INCIDENT,
    _delivery.due_at <= bindparam("now"),
    _delivery.id.not_in(bindparam("in_flight", expanding=True)),
)
"""Those of them that are due, and that the worker is not sending."""
_LOCK_BY_ID: Final = DUE_DELIVERIES.where(_delivery.id == bindparam("delivery")).for_update(of=deliveries)


def lock_due(
    transaction: Transaction, query: RowQuery[DueRow], values: Mapping[str, object], most: int
) -> list[DueRow]:
    """The deliveries that a query locks, as many as their events' size allows.

    Args:
        transaction: the current one.
        query: of deliveries, at most `most` of them.
        values: of the other parameters of the query.
        most: how many.
    """
    due: list[DueRow] = []
    size = 0
    for row in query.fetch_all(transaction.connection, {**values, "most": most}):
        if due and size + row.event_size > MAX_CLAIM_BYTES:
            break
        newest = merge_expired_lease(transaction, row)
        if newest is not None:
            size += newest.event_size
            due.append(newest)
    return due


def merge_expired_lease(transaction: Transaction, row: DueRow) -> DueRow | None:
    """A delivery whose lease ended waits again, and is merged into what waits behind it.

    None if somebody else is changing what waits of its incident: it can wait a moment.
    """
    delivery = row.delivery
    if delivery.state != DeliveryState.SENDING:
        return row
    if not try_lock_incident(transaction, delivery.incident_id):
        return None
    retry = RetryState(delivery.attempts, transaction.now, delivery.reason)
    successor = merge_into_successor(transaction, delivery, retry)
    return _LOCK_BY_ID.fetch_one(transaction.connection, {"delivery": successor}) if successor else row
