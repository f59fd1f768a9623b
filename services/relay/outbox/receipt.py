"""The last stride's commit: how an attempt ended, and what becomes of its delivery, its channel and its incident.

Whoever lost the lease before writes no receipt. But what he sent may have arrived after something newer: so the current
state of the incident is sent once more. So is that of another incident which began while an end was under way that ends
it, too (see `same_group`).
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

from sqlalchemy import Row, bindparam, insert, select, update

from services.relay.model import DeliveryTask
from services.relay.outbox import breaker
from services.relay.outbox.alert_groups import find_open_incidents
from services.relay.outbox.engine.batching import BulkStatement, Transaction
from services.relay.outbox.engine.store import Store
from services.relay.outbox.fallback import build_fallback_deliveries
from services.relay.outbox.merge import (
    NewDelivery,
    RetryState,
    enqueue_deliveries,
    lock_incidents,
    merge_into_successor,
)
from services.relay.outbox.tables import State, attempts, clean_for_database, deliveries, incidents

_delivery = deliveries.c
# Statements are built once: building one costs more than a database takes to run it.
_LOCK_DELIVERIES: Final = (
    select(
        *(
            _delivery.seq,
            _delivery.id,
            _delivery.lease,
            _delivery.due_at,
            _delivery.event_seq,
            _delivery.first_event_seq,
            _delivery.incident_id,
            _delivery.episode,
        )
    )
    .add_columns(
        _delivery.channel,
        _delivery.accepted_at,
        _delivery.oldest_accepted_at,
        _delivery.state,
        _delivery.remark,
        _delivery.fallback_up_to,
        _delivery.maybe_delivered_up_to,
    )
    .where(_delivery.id.in_(bindparam("ids", expanding=True)))
    .order_by(_delivery.seq)
    .with_for_update()
)
_OUTCOME_COLUMNS: Final = ("state", "reason", "due_at", "due_set_at", "finished_at", "receipt", "maybe_sent", "payload")
_WRITE_OUTCOMES: Final = BulkStatement(
    update(deliveries)
    .where(_delivery.seq == bindparam("ours"))
    .values(lease=None, **{name: bindparam(f"new_{name}") for name in _OUTCOME_COLUMNS})
)
_INSERT_ATTEMPTS: Final = BulkStatement(insert(attempts), [column.name for column in attempts.c])
_ATTEMPT_EXISTS: Final = select(attempts.c.number).where(
    attempts.c.delivery_seq == bindparam("delivery"),
    attempts.c.number == bindparam("attempt"),
    attempts.c.started_at == bindparam("since"),
)
_CURRENT_STATE: Final = select(incidents.c.episode, incidents.c.latest_event_seq).where(
    incidents.c.id == bindparam("incident")
)


class AttemptOutcome(NamedTuple):
    """How one attempt ended."""

    state: State
    """DELIVERED, RETRYING or DEAD."""
    started_at: float
    """Unix seconds."""
    seconds: float
    reason: str
    detail: str
    """The provider's answer or what went wrong, for a person; holds no secret."""
    channel_effect: breaker.ChannelEffect
    """What it says about the channel."""
    receipt: Mapping[str, str] | None = None
    retry_in: float = 0.0
    """Seconds until the next attempt, where it is RETRYING."""
    retry_after: float | None = None
    """Seconds that the provider asked the whole channel to wait."""
    maybe_sent: bool = False
    """Whether it arrived, or may have."""
    payload: bytes | None = None
    """As it was sent, credentials masked, compressed by zlib; None where nothing was."""
    fallback_channels: tuple[str, ...] = ()
    """Channels that get the same events, where this one refuses everything, or where the delivery was given up."""
    is_expired: bool = False
    """Whether it is DEAD for its age alone: nothing is wrong with the message."""


class OutcomeResult(NamedTuple):
    """What was committed."""

    lease_valid: bool
    """False where the lease was lost before: then another worker's ending counts, and not this one."""
    state: State
    """What the delivery is now; SUPERSEDED where it was to be tried again and something newer waited."""
    age: float
    """Since the acceptance of the event."""
    superseded_channels: tuple[str, ...]
    """The channel of each delivery that was merged into another one."""
    channels_to_wake: tuple[str, ...]
    """The channels that have something new to deliver."""


class _Request(NamedTuple):
    task: DeliveryTask
    outcome: AttemptOutcome
    pauses: breaker.PauseLimits


async def record_outcome(
    store: Store, task: DeliveryTask, outcome: AttemptOutcome, pauses: breaker.PauseLimits
) -> OutcomeResult:
    """Commits an ending. Raises StoreUnavailableError: it is not known to be committed."""
    return await store.batch(_record_batch, _Request(task, outcome, pauses))


def _record_batch(transaction: Transaction, requests: Sequence[_Request]) -> list[OutcomeResult]:
    connection = transaction.connection
    others = {new.incident_id for new in _build_group_repeats(transaction, requests)}
    lock_incidents(transaction, others.union(each.task.incident_id for each in requests))
    ids = [each.task.delivery_id for each in requests]
    rows = {row.id: row for row in connection.execute(_LOCK_DELIVERIES, {"ids": ids}).all()}
    ours = [each for each in requests if _is_lease_valid(each.task, rows)]
    if ours:
        _WRITE_OUTCOMES.execute(
            connection, [_build_outcome_values(each, rows[each.task.delivery_id], transaction.now) for each in ours]
        )
        _INSERT_ATTEMPTS.execute(connection, [_build_attempt_row(each, rows[each.task.delivery_id]) for each in ours])
    reached = breaker.find_healthy(transaction, {each.task.channel for each in ours}) if ours else frozenset()
    for each in sorted(ours, key=lambda each: each.task.channel):  # in one order, as locks have to be taken
        if each.task.channel not in reached or each.outcome.channel_effect is not breaker.ChannelEffect.REACHED:
            breaker.record_effect(
                transaction,
                each.task.channel,
                each.outcome.channel_effect,
                reason=each.outcome.reason,
                is_breaker_trial=each.task.is_breaker_trial,
                retry_after=each.outcome.retry_after,
                pauses=each.pauses,
            )
            reached -= {each.task.channel}
    if others:
        enqueue_deliveries(transaction, _build_group_repeats(transaction, requests))
    return [
        _apply_outcome(transaction, each, rows[each.task.delivery_id])
        if _is_lease_valid(each.task, rows)
        else _handle_lost_lease(transaction, each, rows.get(each.task.delivery_id))
        for each in requests
    ]


def _build_group_repeats(transaction: Transaction, request: Sequence[_Request]) -> list[NewDelivery]:
    """The current state of the incidents that began, or went on, while ends were told that end them, too."""
    news: dict[tuple[str, str], NewDelivery] = {}
    for claim, ending, _ in request:
        if not claim.dedup_channels or not ending.maybe_sent or (ending.payload is None and not claim.maybe_sent):
            continue
        for other in find_open_incidents(transaction.connection, [claim.incident_id], claim.dedup_channels).get(
            claim.incident_id, ()
        ):
            # A replica may commit an event later than another one commits one with a higher number.
            if (
                other.latest_event_seq > claim.last_event_seq
                or other.latest_event_seq != claim.open_group_incidents.get(other.other)
            ):
                new = NewDelivery(
                    other.latest_event_seq, other.latest_event_seq, other.other, other.episode, other.channel
                )
                news[other.other, other.channel] = new
    return list(news.values())


def _is_lease_valid(task: DeliveryTask, rows: Mapping[str, Row[*tuple[Any, ...]]]) -> bool:
    row = rows.get(task.delivery_id)
    return row is not None and row.lease == task.lease_id


def _build_outcome_values(request: _Request, row: Row[*tuple[Any, ...]], now: float) -> dict[str, Any]:
    ending = request.outcome
    again = ending.state is State.RETRYING
    return {
        "ours": row.seq,
        "new_state": ending.state,
        "new_reason": ending.reason,
        "new_due_at": now + ending.retry_in if again else row.due_at,
        "new_due_set_at": now,
        "new_finished_at": None if again else now,
        "new_receipt": None if ending.receipt is None else clean_for_database(json.dumps(dict(ending.receipt))),
        "new_maybe_sent": int(again and (ending.maybe_sent or request.task.maybe_sent)),
        "new_payload": ending.payload,
    }


def _build_attempt_row(request: _Request, row: Row[*tuple[Any, ...]]) -> dict[str, Any]:
    ending = request.outcome
    return {
        "delivery_seq": row.seq,
        "number": request.task.attempt_number,
        "started_at": ending.started_at,
        "seconds": ending.seconds,
        "reason": ending.reason,
        "detail": clean_for_database(ending.detail),
    }


def _apply_outcome(transaction: Transaction, request: _Request, row: Row[*tuple[Any, ...]]) -> OutcomeResult:
    """What follows from an ending: it may be merged into what waits behind it, and others may have to tell of it."""
    ending, superseded, state = request.outcome, [], request.outcome.state
    woken = [row.channel]
    if state is State.RETRYING:
        waits = RetryState(request.task.attempt_number, transaction.now + ending.retry_in, ending.reason)
        if merge_into_successor(transaction, row, waits):
            state = State.SUPERSEDED
            superseded.append(row.channel)
    if ending.channel_effect is breaker.ChannelEffect.DOWN or (
        state is State.DEAD and (ending.is_expired or row.channel in breaker.read_down_channels(transaction.connection))
    ):
        news = build_fallback_deliveries(transaction, row, ending.fallback_channels)
        superseded += [old.channel for old in enqueue_deliveries(transaction, news).superseded_rows]
        woken += [new.channel for new in news]
    return OutcomeResult(
        lease_valid=True,
        state=state,
        age=max(transaction.now - row.accepted_at, 0.0),
        superseded_channels=tuple(superseded),
        channels_to_wake=tuple(woken),
    )


def _handle_lost_lease(transaction: Transaction, request: _Request, row: Row[*tuple[Any, ...]] | None) -> OutcomeResult:
    """The lease was lost; or this very ending is committed already, and only the answer to the commit was lost."""
    if row is not None:
        known = {"delivery": row.seq, "attempt": request.task.attempt_number, "since": request.outcome.started_at}
        if transaction.connection.execute(_ATTEMPT_EXISTS, known).first() is not None:
            seconds = max(transaction.now - row.accepted_at, 0.0)
            return OutcomeResult(
                lease_valid=True,
                state=State(row.state),
                age=seconds,
                superseded_channels=(),
                channels_to_wake=(row.channel,),
            )
    return _enqueue_current_state(transaction, request)


def _enqueue_current_state(transaction: Transaction, request: _Request) -> OutcomeResult:
    claim, superseded = request.task, []
    if request.outcome.maybe_sent:
        current = transaction.connection.execute(_CURRENT_STATE, {"incident": claim.incident_id}).first()
        if current is not None:
            latest: int = current.latest_event_seq
            first = latest if claim.channel in transaction.unmerged_channels else claim.first_event_seq
            new = NewDelivery(latest, first, claim.incident_id, current.episode, claim.channel)
            superseded = [old.channel for old in enqueue_deliveries(transaction, [new]).superseded_rows]
    return OutcomeResult(
        lease_valid=False,
        state=request.outcome.state,
        age=0.0,
        superseded_channels=tuple(superseded),
        channels_to_wake=(claim.channel,),
    )
