"""What a claim takes in a storm: one digest of many incidents, or the next messages of incidents that need their own.

It is a storm where more than `digest_over` deliveries wait for the channel's rate. Then deliveries are collected into
digests of at most `digest_size`, each for one token of the rate. What is critical, the resolve of an incident that was
sent alone, and what may have arrived alone are sent alone all the same, and first. Only when an incident has waited for
as long as a burst of messages takes, a digest goes before them. It then names the waiting critical incidents, too;
their own messages follow.

A digest that may have arrived, because its answer was lost, is claimed again as a whole and under its id, so that its
channel can search for it: its members have its `digest_id`, and may have been sent. A digest that certainly did not
arrive is forgotten, and its members are collected anew. What changes meanwhile leaves the digest, and once a message of
it was sent, the digest is searched for and edited.
"""

from collections.abc import Mapping
from typing import Final, NamedTuple
from uuid import uuid4

from sqlalchemy import and_, bindparam, case, exists, func, not_, or_, select

from services.relay.channels.port import SendReason
from services.relay.model import Status
from services.relay.outbox.breaker import Admission
from services.relay.outbox.merge import RetryState, merge_into_successor, try_lock_incident
from services.relay.outbox.rate_limit import BURST_SECONDS
from services.relay.outbox.store import Transaction
from services.relay.outbox.tables import (
    DUE_DELIVERIES,
    HAS_PREDECESSOR,
    WAITING,
    DeliveryState,
    DueRow,
    deliveries,
    events,
    incidents,
)
from services.relay.text import Severity
from shared.sql.rows import RowQuery, select_values

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
"""Of these, what is due and what the worker is not sending."""
_LOCK_BY_ID: Final = DUE_DELIVERIES.where(_delivery.id == bindparam("delivery")).for_update(of=deliveries)


def lock_due(
    transaction: Transaction, query: RowQuery[DueRow], values: Mapping[str, object], most: int
) -> list[DueRow]:
    """At most `most` deliveries that a query locks, and as many as their events' size allows."""
    due: list[DueRow] = []
    size = 0
    for row in query.fetch_all(transaction.connection, {**values, "most": most}):
        if due and size + row.event_size > MAX_CLAIM_BYTES:
            break
        newest = row if row.delivery.state != DeliveryState.SENDING else _merge_expired_lease(transaction, row)
        if newest is not None:
            size += newest.event_size
            due.append(newest)
    return due


def _merge_expired_lease(transaction: Transaction, row: DueRow) -> DueRow | None:
    """A delivery whose lease ended waits again, and is merged into its successor; None while its incident is locked."""
    delivery = row.delivery
    if not try_lock_incident(transaction, delivery.incident_id):
        return None
    retry = RetryState(delivery.attempts, transaction.now, delivery.reason)
    successor = merge_into_successor(transaction, delivery, retry)
    return _LOCK_BY_ID.fetch_one(transaction.connection, {"delivery": successor}) if successor else row


_MAX_BUILDS: Final = 3
"""How often a digest is tried that fails by the relay's own fault."""

_own = deliveries.alias("own")
_was_sent_alone = (
    select(_own.c.seq)
    .where(
        _own.c.incident_id == _delivery.incident_id,
        _own.c.episode == _delivery.episode,
        _own.c.channel.concat("") == _delivery.channel,
        _own.c.state.concat("") == DeliveryState.DELIVERED,  # as in `claim`
        _own.c.digest_id.is_(None),
    )
    .exists()
)
# A refused digest goes one by one, and so does one that could not be built: else a member would hold up all others.
_goes_into_digests = or_(
    _delivery.reason.is_(None),
    and_(
        _delivery.reason != SendReason.REJECTED,
        or_(_delivery.reason != SendReason.INTERNAL, _delivery.attempts < _MAX_BUILDS),
    ),
)
_may_join_digest = and_(
    _delivery.state.in_([state.value for state in WAITING]),
    _delivery.named_in.is_(None),
    _delivery.maybe_sent == 0,
    _delivery.progress.is_(None),
    _goes_into_digests,
    or_(events.c.status == Status.FIRING, not_(_was_sent_alone)),
    not_(HAS_PREDECESSOR),  # that may be a message which has to be found and edited
)
"""What a digest may name: it was not sent yet, alone or in a digest."""
_is_in_maybe_sent_digest = and_(
    _delivery.digest_id.is_not(None),
    or_(_delivery.maybe_sent != 0, _delivery.state == DeliveryState.SENDING, _delivery.progress.is_not(None)),
)
"""What is in a digest that may have arrived."""
_is_critical = incidents.c.severity == Severity.CRITICAL
_OLDEST_FIRST: Final = (_delivery.due_at, _delivery.seq)
_CRITICAL_FIRST: Final = (
    case((and_(_is_critical, events.c.status == Status.FIRING), 0), else_=1),
    *_OLDEST_FIRST,
)
_LOCK_CLAIMABLE: Final = DUE_DELIVERIES.where(*IS_CLAIMABLE).limit(bindparam("most"))
_some_claimable = select(_delivery.seq).where(*IS_CLAIMABLE).limit(bindparam("most")).subquery()
_COUNT_CLAIMABLE: Final = RowQuery(int, select(func.count()).select_from(_some_claimable))
_FIRST_FOR_DIGEST: Final = DUE_DELIVERIES.where(*IS_CLAIMABLE, _may_join_digest).order_by(*_OLDEST_FIRST).limit(1)
_LOCK_FOR_DIGEST: Final = (
    _LOCK_CLAIMABLE.where(_may_join_digest).order_by(*_CRITICAL_FIRST).for_update(of=deliveries, skip_locked=True)
)
LOCK_ALONE: Final = (
    _LOCK_CLAIMABLE.where(not_(_is_in_maybe_sent_digest))
    .order_by(*_OLDEST_FIRST)
    .for_update(of=deliveries, skip_locked=True)
)
"""What is claimed where there is no storm."""
_LOCK_ALONE_IN_STORM: Final = (
    _LOCK_CLAIMABLE.where(not_(_is_in_maybe_sent_digest), or_(_is_critical, not_(_may_join_digest)))
    .order_by(*_CRITICAL_FIRST)
    .for_update(of=deliveries, skip_locked=True)
)
_FIRST_MAYBE_SENT: Final = (
    select_values(str, _delivery.digest_id)
    .where(*IS_CLAIMABLE, _is_in_maybe_sent_digest)
    .order_by(*_OLDEST_FIRST)
    .limit(1)
)
_of_digest = (
    _delivery.digest_id == bindparam("digest"),
    _delivery.channel == bindparam("channel"),
    _delivery.finished_at.is_(None),
    _is_in_maybe_sent_digest,
)
_COUNT_MAYBE_SENT: Final = select_values(int, func.count(_delivery.seq)).where(*_of_digest)
_LOCK_MAYBE_SENT: Final = (
    DUE_DELIVERIES.where(*_of_digest).order_by(_delivery.seq).for_update(of=deliveries, skip_locked=True)
)


class Selection(NamedTuple):
    """The locked deliveries to claim."""

    rows: list[DueRow]
    digest_id: str | None = None
    """None if each delivery is a message."""


def is_named_only(row: DueRow) -> bool:
    """Whether a digest names this delivery and leaves it its own message."""
    return row.severity == Severity.CRITICAL


def select_in_storm(
    transaction: Transaction,
    values: Mapping[str, object],
    admission: Admission,
    *,
    digest_over: int,
    digest_size: int,
    rate: float,
) -> Selection | None:
    """What a channel sends next, where it is a digest or a storm; None if it is neither.

    `values` are those of `IS_CLAIMABLE`; the others are as in `ClaimRequest`.
    """
    digest_id = _FIRST_MAYBE_SENT.fetch_first(transaction.connection, values)
    if digest_id is not None and (maybe_sent := _lock_maybe_sent(transaction, values, digest_id)):
        return maybe_sent
    most = max(digest_over, admission.limit)
    if _COUNT_CLAIMABLE.fetch_one(transaction.connection, {**values, "most": most + 1}) <= most:
        return None
    oldest = _FIRST_FOR_DIGEST.fetch_first(transaction.connection, values)
    max_delay = BURST_SECONDS * max(1.0, 1.0 / rate)
    is_late = oldest is not None and transaction.now - oldest.delivery.oldest_accepted_at > max_delay
    # A digest that is overdue gets the last token, unless the first message after an outage may be a critical one.
    alone_limit = admission.limit - (is_late and not admission.is_breaker_trial)
    alone = lock_due(transaction, _LOCK_ALONE_IN_STORM, values, alone_limit) if alone_limit else []
    if alone:
        return Selection(alone)
    # Of their events a digest holds a title each, so their size does not matter.
    members = _LOCK_FOR_DIGEST.fetch_all(transaction.connection, {**values, "most": digest_size})
    if len(members) == 1:
        return Selection(members)
    return Selection(members, uuid4().hex) if members else None


def _lock_maybe_sent(transaction: Transaction, values: Mapping[str, object], digest_id: str) -> Selection | None:
    """A digest that may have arrived: all of its members, or it waits a moment.

    In a part of them its channel could not tell whether the post that it finds names these members.
    """
    digest = {"digest": digest_id, "channel": values["channel"]}
    count = _COUNT_MAYBE_SENT.fetch_one(transaction.connection, digest)
    rows = _LOCK_MAYBE_SENT.fetch_all(transaction.connection, digest)
    if len(rows) < count:
        return None
    merged = [
        _merge_expired_lease(transaction, row) if row.delivery.state == DeliveryState.SENDING else row for row in rows
    ]
    # What was merged into its successor is no member any more.
    members = [row for row in merged if row is not None and row.delivery.digest_id == digest_id]
    return Selection(members, digest_id) if members and None not in merged else None
