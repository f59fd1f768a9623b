"""Commits how attempts ended, and what becomes of their delivery, their channel and their incident.

Whoever lost the lease before records nothing. But the message may have arrived after something newer: so the current
state of the incident is sent once more. So is that of another incident of the group that was opened while a resolve was
in progress that closes it at the provider, too (see `alert_groups`).
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

from sqlalchemy import bindparam, insert, update

from services.relay.model import DeliveryTask, IncidentContext
from services.relay.outbox import breaker
from services.relay.outbox.alert_groups import find_open_incidents
from services.relay.outbox.edits import FirstMessage, record_first_messages, request_channel_edits, request_merged_edits
from services.relay.outbox.engine.batching import BulkStatement, Transaction
from services.relay.outbox.engine.store import Store
from services.relay.outbox.fallback import enqueue_fallback
from services.relay.outbox.incidents import read_current_state
from services.relay.outbox.merge import (
    NewDelivery,
    RetryState,
    enqueue_deliveries,
    lock_incidents,
    merge_into_successor,
)
from services.relay.outbox.rows import DELIVERIES, DeliveryRow, select_values
from services.relay.outbox.tables import DeliveryState, attempts, clean_for_database, deliveries

_delivery = deliveries.c
_LOCK_DELIVERIES: Final = (
    DELIVERIES.where(_delivery.id.in_(bindparam("ids", expanding=True))).order_by(_delivery.seq).for_update()
)
_OUTCOME_COLUMNS: Final = ("state", "reason", "due_at", "due_set_at", "finished_at", "receipt", "maybe_sent", "payload")
_WRITE_OUTCOMES: Final = BulkStatement(
    update(deliveries)
    .where(_delivery.seq == bindparam("ours"))
    .values(lease=None, **{name: bindparam(f"new_{name}") for name in _OUTCOME_COLUMNS})
)
_INSERT_ATTEMPTS: Final = BulkStatement(insert(attempts), [column.name for column in attempts.c])
_ATTEMPT_EXISTS: Final = select_values(int, attempts.c.number).where(
    attempts.c.delivery_seq == bindparam("delivery"),
    attempts.c.number == bindparam("attempt"),
    attempts.c.started_at == bindparam("since"),
)


class AttemptOutcome(NamedTuple):
    """How one attempt ended."""

    state: DeliveryState
    """DELIVERED, RETRYING or DEAD."""
    started_at: float
    """Unix seconds."""
    seconds: float
    reason: str
    detail: str
    """The provider's answer or what went wrong, for a person; contains no secret."""
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
    """As it was sent, credentials masked, compressed by zlib; None if nothing was."""
    fallback_channels: tuple[str, ...] = ()
    """Channels that get the same events where this one is down, or where the delivery was given up."""
    is_expired: bool = False
    """Whether it is DEAD for its age alone: nothing is wrong with the message."""
    is_editable: bool = False
    """Whether the channel edits its messages."""
    further_requests: int = 0
    """To the provider, beside the one for which the claim took a token of the channel's rate."""
    rate: float | None = None
    """The channel's messages per second; None if it has no rate limit."""
    context: IncidentContext | None = IncidentContext()
    """What the message said of its incident; None if that is not known, since an earlier attempt may have sent it."""


class OutcomeResult(NamedTuple):
    """What was committed."""

    lease_valid: bool
    """False if the lease was lost before: then another worker's outcome counts."""
    state: DeliveryState
    """What the delivery is now; SUPERSEDED where it was to be tried again and something newer waited."""
    age: float
    """Since the acceptance of the event."""
    superseded_channels: tuple[str, ...]
    """The channel of each delivery that was merged into another one."""
    channels_to_wake: tuple[str, ...]
    """The channels that have something new to deliver."""


class _OutcomeRequest(NamedTuple):
    task: DeliveryTask
    outcome: AttemptOutcome
    pauses: breaker.PauseLimits


async def record_outcome(
    store: Store, task: DeliveryTask, outcome: AttemptOutcome, pauses: breaker.PauseLimits
) -> OutcomeResult:
    """Commits an outcome. Raises StoreUnavailableError: it is not known to be committed."""
    return await store.batch(_record_batch, _OutcomeRequest(task, outcome, pauses))


def _record_batch(transaction: Transaction, requests: Sequence[_OutcomeRequest]) -> list[OutcomeResult]:
    connection = transaction.connection
    others = {new.incident_id for new in _build_group_repeats(transaction, requests)}
    lock_incidents(transaction, others.union(each.task.incident_id for each in requests))
    ids = [each.task.delivery_id for each in requests]
    rows = {row.id: row for row in _LOCK_DELIVERIES.fetch_all(connection, {"ids": ids})}
    valid_requests = [each for each in requests if _is_lease_valid(each.task, rows)]
    if valid_requests:
        _WRITE_OUTCOMES.execute(
            connection,
            [_build_outcome_values(each, rows[each.task.delivery_id], transaction.now) for each in valid_requests],
        )
        _INSERT_ATTEMPTS.execute(
            connection, [_build_attempt_row(each, rows[each.task.delivery_id]) for each in valid_requests]
        )
    reached = (
        breaker.find_healthy(transaction, {each.task.channel for each in valid_requests})
        if valid_requests
        else frozenset()
    )
    for each in sorted(valid_requests, key=lambda each: each.task.channel):  # in one order, as locks have to be taken
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
        if each.outcome.further_requests and each.outcome.rate is not None:
            breaker.spend_further(transaction, each.task.channel, each.outcome.further_requests, each.outcome.rate)
    editable = [each for each in valid_requests if each.outcome.is_editable]
    if editable:
        _record_edits(transaction, editable, rows)
    if others:
        enqueue_deliveries(transaction, _build_group_repeats(transaction, requests))
    return [
        _apply_outcome(transaction, each, rows[each.task.delivery_id])
        if _is_lease_valid(each.task, rows)
        else _handle_lost_lease(transaction, each, rows.get(each.task.delivery_id))
        for each in requests
    ]


def _record_edits(
    transaction: Transaction, requests: Sequence[_OutcomeRequest], rows: Mapping[str, DeliveryRow]
) -> None:
    """The first message of an episode is edited at each later change, be it that its own message was given up."""
    ended = [(task, outcome) for task, outcome, _ in requests if outcome.state is not DeliveryState.RETRYING]
    record_first_messages(
        transaction,
        [
            FirstMessage(task.incident_id, task.episode, task.channel, rows[task.delivery_id].seq, outcome.context)
            for task, outcome in ended
            if task.first_receipt is None and outcome.state is DeliveryState.DELIVERED
        ],
    )
    changed = {(task.incident_id, task.episode, task.channel) for task, _ in ended if task.first_receipt is not None}
    request_channel_edits(transaction, changed)
    for task, _ in ended:
        if task.episode > 1 and task.first_event_seq != task.last_event_seq:
            request_merged_edits(transaction, task)


def _build_group_repeats(transaction: Transaction, requests: Sequence[_OutcomeRequest]) -> list[NewDelivery]:
    """The current state of incidents that were opened, or got events, while another's resolve closed them, too."""
    repeats: dict[tuple[str, str], NewDelivery] = {}
    for task, outcome, _ in requests:
        if not task.dedup_channels or not outcome.maybe_sent or (outcome.payload is None and not task.maybe_sent):
            continue
        found = find_open_incidents(transaction.connection, [task.incident_id], task.dedup_channels)
        for other in found.get(task.incident_id, ()):
            # A replica may commit an event later than another one commits one with a higher number.
            latest = other.latest_event_seq
            if latest > task.last_event_seq or latest != task.open_group_incidents.get(other.other_id):
                repeat = NewDelivery(latest, latest, other.other_id, other.episode, other.channel)
                repeats[other.other_id, other.channel] = repeat
    return list(repeats.values())


def _is_lease_valid(task: DeliveryTask, rows: Mapping[str, DeliveryRow]) -> bool:
    row = rows.get(task.delivery_id)
    return row is not None and row.lease == task.lease_id


def _build_outcome_values(request: _OutcomeRequest, row: DeliveryRow, now: float) -> dict[str, Any]:
    outcome = request.outcome
    is_retried = outcome.state is DeliveryState.RETRYING
    return {
        "ours": row.seq,
        "new_state": outcome.state,
        "new_reason": outcome.reason,
        "new_due_at": now + outcome.retry_in if is_retried else row.due_at,
        "new_due_set_at": now,
        "new_finished_at": None if is_retried else now,
        "new_receipt": None if outcome.receipt is None else clean_for_database(json.dumps(dict(outcome.receipt))),
        "new_maybe_sent": int(is_retried and (outcome.maybe_sent or request.task.maybe_sent)),
        "new_payload": outcome.payload,
    }


def _build_attempt_row(request: _OutcomeRequest, row: DeliveryRow) -> dict[str, Any]:
    outcome = request.outcome
    return {
        "delivery_seq": row.seq,
        "number": request.task.attempt_number,
        "started_at": outcome.started_at,
        "seconds": outcome.seconds,
        "reason": outcome.reason,
        "detail": clean_for_database(outcome.detail),
    }


def _apply_outcome(transaction: Transaction, request: _OutcomeRequest, row: DeliveryRow) -> OutcomeResult:
    """The delivery may be merged into what waits behind it, and fallback channels may have to deliver it."""
    outcome, state = request.outcome, request.outcome.state
    superseded, channels_to_wake = [], {row.channel}
    if state is DeliveryState.RETRYING:
        retry = RetryState(request.task.attempt_number, transaction.now + outcome.retry_in, outcome.reason)
        if merge_into_successor(transaction, row, retry):
            state = DeliveryState.SUPERSEDED
            superseded.append(row.channel)
    is_down = outcome.channel_effect is breaker.ChannelEffect.DOWN
    if state is DeliveryState.DEAD and not is_down and not outcome.is_expired:
        is_down = row.channel in breaker.read_down_channels(transaction.connection)
    if is_down or (state is DeliveryState.DEAD and outcome.is_expired):
        changes = enqueue_fallback(transaction, row, outcome.fallback_channels)
        superseded += [channel for channel, _ in changes.ended]
        channels_to_wake |= changes.channels_to_wake
    return OutcomeResult(
        lease_valid=True,
        state=state,
        age=max(transaction.now - row.accepted_at, 0.0),
        superseded_channels=tuple(superseded),
        channels_to_wake=tuple(sorted(channels_to_wake)),
    )


def _handle_lost_lease(transaction: Transaction, request: _OutcomeRequest, row: DeliveryRow | None) -> OutcomeResult:
    """The lease was lost; or this outcome is committed already, and only the answer to the commit was lost."""
    if row is not None:
        values = {"delivery": row.seq, "attempt": request.task.attempt_number, "since": request.outcome.started_at}
        if _ATTEMPT_EXISTS.fetch_first(transaction.connection, values) is not None:
            return OutcomeResult(
                lease_valid=True,
                state=DeliveryState(row.state),
                age=max(transaction.now - row.accepted_at, 0.0),
                superseded_channels=(),
                channels_to_wake=(row.channel,),
            )
    return _enqueue_current_state(transaction, request)


def _enqueue_current_state(transaction: Transaction, request: _OutcomeRequest) -> OutcomeResult:
    task, superseded = request.task, []
    if request.outcome.maybe_sent:
        current = read_current_state(transaction.connection, task.incident_id)
        if current is not None:
            latest = current.latest_event_seq
            first = latest if task.channel in transaction.unmerged_channels else task.first_event_seq
            new = NewDelivery(latest, first, task.incident_id, current.episode, task.channel)
            superseded = [old.channel for old in enqueue_deliveries(transaction, [new]).superseded_rows]
    return OutcomeResult(
        lease_valid=False,
        state=request.outcome.state,
        age=0.0,
        superseded_channels=tuple(superseded),
        channels_to_wake=(task.channel,),
    )
