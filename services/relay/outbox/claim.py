"""Who delivers what, and when: one delivery of one incident on one channel at a time, in the order of acceptance.

A claim is a lease: it ends by itself, so that the claims of a crashed relay return. A clean stop returns its own.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final, NamedTuple
from uuid import uuid4

from sqlalchemy import Row, and_, bindparam, case, exists, func, select, update

from services.relay.model import DeliveryTask, Status
from services.relay.outbox import breaker
from services.relay.outbox.alert_groups import find_open_incidents
from services.relay.outbox.engine.batching import Transaction
from services.relay.outbox.engine.store import Store
from services.relay.outbox.merge import RetryState, merge_into_successor, try_lock_incident
from services.relay.outbox.rate_limit import count_available
from services.relay.outbox.tables import State, deliveries, events

MAX_CLAIM_BYTES: Final = 1024 * 1024
"""Bytes of events over which nothing more is claimed with them, so that memory is bounded."""

_delivery = deliveries.c
_older = deliveries.alias("older")
_FIRST_OF_INCIDENT: Final = (
    _delivery.channel == bindparam("channel"),
    _delivery.finished_at.is_(None),
    ~exists().where(
        # Not as it stands: PostgreSQL without statistics would look through all of the channel for each row.
        _older.c.channel.concat("") == _delivery.channel,
        _older.c.incident_id == _delivery.incident_id,
        _older.c.finished_at.is_(None),
        _older.c.seq < _delivery.seq,
    ),
)
"""The unfinished deliveries of a channel that no older one of their incident stands before."""
# Statements are built once: building one costs more than a database takes to run it.
_with_event_size = select(deliveries, func.length(events.c.event).label("size"), events.c.status).join(
    events, events.c.seq == _delivery.event_seq
)
_LOCK_DUE: Final = (
    _with_event_size.where(
        *_FIRST_OF_INCIDENT,
        _delivery.due_at <= bindparam("now"),
        _delivery.id.not_in(bindparam("held", expanding=True)),
    )
    .order_by(_delivery.due_at, _delivery.seq)
    .limit(bindparam("most"))
    .with_for_update(of=deliveries, skip_locked=True)
)
_LOCK_BY_ID: Final = _with_event_size.where(_delivery.id == bindparam("delivery")).with_for_update(of=deliveries)
# Not `min`, for which PostgreSQL looks at every row.
_NEXT_DUE: Final = (
    select(_delivery.due_at).where(*_FIRST_OF_INCIDENT).order_by(_delivery.due_at, _delivery.seq).limit(1)
)
_MARK_CLAIMED: Final = (
    update(deliveries)
    .where(_delivery.seq.in_(bindparam("taken", expanding=True)))
    .values(
        state=State.SENDING,
        lease=bindparam("proof"),
        due_at=bindparam("ends"),
        due_set_at=bindparam("now"),
        attempts=_delivery.attempts + 1,
        # A lease that ended by itself: whoever had it may have sent the message.
        maybe_sent=case((_delivery.state == State.SENDING, 1), else_=_delivery.maybe_sent),
    )
)
_READ_EVENTS: Final = select(events.c.seq, events.c.event).where(events.c.seq.in_(bindparam("wanted", expanding=True)))
_first_delivered = (
    select(func.min(_delivery.seq))
    .where(
        _delivery.incident_id.in_(bindparam("incidents", expanding=True)),
        _delivery.episode.in_(bindparam("episodes", expanding=True)),
        _delivery.channel == bindparam("channel"),
        _delivery.state.concat("") == State.DELIVERED,  # else a database looks through all that was delivered there
    )
    .group_by(_delivery.incident_id, _delivery.episode)
)
_FIRST_RECEIPTS: Final = select(_delivery.incident_id, _delivery.episode, _delivery.receipt).where(
    _delivery.seq.in_(_first_delivered)
)
_LAST_FIRING: Final = (
    select(_delivery.incident_id, _delivery.episode, func.max(events.c.seq).label("event"))
    .group_by(_delivery.incident_id, _delivery.episode)
    .join(
        events,
        and_(
            events.c.incident_id == _delivery.incident_id,
            events.c.seq.between(_delivery.first_event_seq, _delivery.event_seq),
        ),
    )
    .where(_delivery.incident_id.in_(bindparam("incidents", expanding=True)), _delivery.channel == bindparam("channel"))
    .where(_delivery.episode.in_(bindparam("episodes", expanding=True)), events.c.status == Status.FIRING)
)
"""The last event that fired. Of what a delivery tells any may have: what falls back late tells the beginning and the
end as one."""


@dataclass(frozen=True, slots=True)
class ClaimRequest:
    """What a worker asks for."""

    channel: str
    limit: int
    lease_owner: str
    """Whose claims they become; unique to this run of a relay."""
    lease_seconds: float
    """How long the lease lasts."""
    rate: float | None
    """Messages in a second that the channel takes; None where there is no pace."""
    dedup_channels: tuple[str, ...] = ()
    """Where incidents of a group are one on this channel: it, and others that lead to the same place."""
    in_flight_ids: tuple[str, ...] = ()
    """The deliveries that it is just sending: theirs are the leases that it trusts, whatever the clock was set to."""


class ClaimResult(NamedTuple):
    """What it gets."""

    tasks: tuple[DeliveryTask, ...]
    retry_in: float | None
    """When to ask again; None where nothing waits for a moment that is known."""
    channel_down: bool
    """Whether the channel refuses everything until a person acts."""


async def claim_due(store: Store, request: ClaimRequest) -> ClaimResult:
    """Deliveries of a channel that are due and whose predecessors of their incident are done, the oldest first.

    Raises:
        StoreUnavailableError: it is not known whether anything was claimed.
    """
    return await store.batch(_claim_batch, request)


def _claim_batch(transaction: Transaction, requests: Sequence[ClaimRequest]) -> list[ClaimResult]:
    return [_claim_channel(transaction, wanted) for wanted in requests]


def _claim_channel(transaction: Transaction, wanted: ClaimRequest) -> ClaimResult:
    admission, row = breaker.admit(transaction, wanted.channel, wanted.limit)
    if row is None or not admission.limit:
        return ClaimResult((), admission.retry_in, admission.channel_down)
    room, seconds = count_available(row.next_token_at, transaction.now, admission.limit, wanted.rate)
    due = _lock_due(transaction, wanted, room) if room else []
    if not due:
        return ClaimResult(
            (), seconds if not room else _seconds_until_next(transaction, wanted.channel), admission.channel_down
        )
    probe_seconds = wanted.lease_seconds if admission.is_breaker_trial else None
    breaker.record_claim(transaction, row, len(due), rate=wanted.rate, trial_seconds=probe_seconds)
    lease = f"{wanted.lease_owner}/{uuid4().hex}"
    taking = {"taken": [each.seq for each in due], "proof": lease, "now": transaction.now}
    transaction.connection.execute(_MARK_CLAIMED, {**taking, "ends": transaction.now + wanted.lease_seconds})
    return ClaimResult(
        _build_tasks(transaction, wanted, due, lease, admission.is_breaker_trial), 0.0, admission.channel_down
    )


def _lock_due(transaction: Transaction, wanted: ClaimRequest, limit: int) -> list[Row[*tuple[Any, ...]]]:
    """Rows of deliveries to claim, with the size and status of their event."""
    asked = {"channel": wanted.channel, "now": transaction.now, "most": limit, "held": wanted.in_flight_ids}
    found = transaction.connection.execute(_LOCK_DUE, asked).all()
    due: list[Row[*tuple[Any, ...]]] = []
    size = 0
    for row in found:
        if due and size + row.size > MAX_CLAIM_BYTES:
            break
        newest = _merge_expired_lease(transaction, row)
        if newest is not None:
            size += newest.size
            due.append(newest)
    return due


def _merge_expired_lease(transaction: Transaction, row: Row[*tuple[Any, ...]]) -> Row[*tuple[Any, ...]] | None:
    """A delivery whose lease ended waits again, and is merged into what waits behind it.

    None where somebody else is just changing what waits of its incident: it has a moment's time.
    """
    if row.state != State.SENDING:
        return row
    if not try_lock_incident(transaction, row.incident_id):
        return None
    successor = merge_into_successor(transaction, row, RetryState(row.attempts, transaction.now, row.reason))
    return transaction.connection.execute(_LOCK_BY_ID, {"delivery": successor}).one() if successor else row


def _seconds_until_next(transaction: Transaction, channel: str) -> float | None:
    """In how many seconds the next delivery becomes due, or a lease ends."""
    due_at = transaction.connection.execute(_NEXT_DUE, {"channel": channel}).scalar()
    return None if due_at is None else max(due_at - transaction.now, 0.0)


def _build_tasks(
    transaction: Transaction,
    request: ClaimRequest,
    due: Sequence[Row[*tuple[Any, ...]]],
    lease_id: str,
    is_breaker_trial: bool,
) -> tuple[DeliveryTask, ...]:
    connection, channel = transaction.connection, request.channel
    episodes = list({row.episode for row in due})
    incidents = {"incidents": [row.incident_id for row in due], "episodes": episodes, "channel": channel}
    wanted = {"wanted": [row.event_seq for row in due]}
    written = {row.seq: row.event for row in connection.execute(_READ_EVENTS, wanted).all()}
    first = connection.execute(_FIRST_RECEIPTS, incidents).all()
    receipts = {(row.incident_id, row.episode): row.receipt for row in first}
    over = any(row.status == Status.RESOLVED and (row.incident_id, row.episode) not in receipts for row in due)
    found = connection.execute(_LAST_FIRING, incidents).all() if over else ()
    fired = {(row.incident_id, row.episode): row.event for row in found}

    ends = {row.incident_id for row in due if row.status == Status.RESOLVED} if request.dedup_channels else set()
    others = find_open_incidents(connection, ends, request.dedup_channels) if ends else {}

    def build_task(row: Row[*tuple[Any, ...]]) -> DeliveryTask:
        episode = (row.incident_id, row.episode)
        receipt = receipts.get(episode)
        return DeliveryTask(
            delivery_id=row.id,
            lease_id=lease_id,
            attempt_number=row.attempts + 1,
            channel=channel,
            incident_id=row.incident_id,
            episode=row.episode,
            accepted_at=datetime.fromtimestamp(row.accepted_at, UTC),
            age=transaction.now - row.accepted_at,
            first_event_seq=row.first_event_seq,
            last_event_seq=row.event_seq,
            event_json=written[row.event_seq],
            events_size=row.size,
            first_receipt=json.loads(receipt) if receipt else None,
            firing_undelivered=receipt is None
            and row.status == Status.RESOLVED
            and fired.get(episode, 0) > (row.maybe_delivered_up_to or 0),
            maybe_sent=bool(row.maybe_sent) or row.state == State.SENDING,
            progress=json.loads(row.progress) if row.progress else {},
            remark=row.remark or "",
            is_breaker_trial=is_breaker_trial,
            dedup_channels=request.dedup_channels if row.incident_id in ends else (),
            open_group_incidents={other.other: other.latest_event_seq for other in others.get(row.incident_id, ())},
        )

    return tuple(build_task(row) for row in due)
