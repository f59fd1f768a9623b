"""Commits how attempts ended, and what becomes of their delivery, their channel and their incident.

An attempt whose lease was lost records nothing. But its message may have arrived after something newer, so the current
state of the incident is sent once more.
"""

import json
from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any, Final, NamedTuple

from sqlalchemy import bindparam, func, insert, update

from services.relay.channels.port import SendReason
from services.relay.model import Claim, DeliveryTask, IncidentContext
from services.relay.outbox import breaker
from services.relay.outbox.edits import (
    FirstMessage,
    MessageKey,
    find_digests,
    find_merged_episodes,
    record_first_messages,
    request_channel_edits,
)
from services.relay.outbox.fallback import enqueue_fallback
from services.relay.outbox.incidents import read_current_state
from services.relay.outbox.merge import (
    NewDelivery,
    RetryState,
    enqueue_deliveries,
    lock_incidents,
    merge_into_successor,
)
from services.relay.outbox.store import BulkStatement, Store, Transaction
from services.relay.outbox.tables import (
    DELIVERIES,
    DIGEST_EPISODE,
    WAITING,
    DeliveryRow,
    DeliveryState,
    attempts,
    clean_for_database,
    deliveries,
)
from shared.sql.rows import select_values

_delivery = deliveries.c
_LOCK_DELIVERIES: Final = (
    DELIVERIES.where(_delivery.id.in_(bindparam("ids", expanding=True))).order_by(_delivery.seq).for_update()
)
_OUTCOME_COLUMNS: Final = (
    *("state", "reason", "due_at", "finished_at", "receipt", "maybe_sent"),
    *("attempts", "digest_id", "named_in", "progress"),
)
_WRITE_OUTCOMES: Final = BulkStatement(
    update(deliveries)
    .where(_delivery.seq == bindparam("ours"))
    .values(
        lease=None,
        payload=func.coalesce(
            bindparam("new_payload"), _delivery.payload
        ),  # an attempt may only find what one before it sent
        **{name: bindparam(f"new_{name}") for name in _OUTCOME_COLUMNS},
    )
)
_INSERT_ATTEMPTS: Final = BulkStatement(insert(attempts), [column.name for column in attempts.c])
_ATTEMPT_EXISTS: Final = select_values(int, attempts.c.number).where(
    attempts.c.delivery_seq == bindparam("delivery"),
    attempts.c.number == bindparam("attempt"),
    attempts.c.started_at == bindparam("since"),
)


class AttemptOutcome(NamedTuple):
    state: DeliveryState
    """DELIVERED, RETRYING or DEAD; QUEUED where a digest named it, and its own message is still to be sent."""
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
    """To the provider, after the first, for which the claim took a token of the channel's rate."""
    rate: float | None = None
    """The channel's messages per second; None if it has no rate limit."""
    context: IncidentContext | None = IncidentContext()
    """What the message said of its incident; None if that is not known, since an earlier attempt may have sent it."""


class OutcomeResult(NamedTuple):
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


class _Ended(NamedTuple):
    claim: Claim
    outcome: AttemptOutcome
    pauses: breaker.PauseLimits
    digest_id: str | None
    """The digest whose attempt it was."""
    task: DeliveryTask
    """What its channel saw."""


async def record_outcomes(
    store: Store, claim: Claim, outcomes: Sequence[AttemptOutcome], pauses: breaker.PauseLimits
) -> list[OutcomeResult]:
    """Commits how an attempt ended: one outcome, or one for each member of a digest, in their order.

    Raises StoreUnavailableError.
    """
    digest_id = claim.task.delivery_id if claim.members else None
    ended = zip(claim.members or (claim,), outcomes, strict=True)
    return await store.batch(
        _record_batch, [_Ended(each, outcome, pauses, digest_id, each.task) for each, outcome in ended]
    )


def _record_batch(transaction: Transaction, attempts_ended: Sequence[Sequence[_Ended]]) -> list[list[OutcomeResult]]:
    """All outcomes that wait to be committed, with the same few statements."""
    ended = list(chain.from_iterable(attempts_ended))
    lock_incidents(transaction, {each.task.incident_id for each in ended})
    ids = [each.task.delivery_id for each in ended]
    rows = {row.id: row for row in _LOCK_DELIVERIES.fetch_all(transaction.connection, {"ids": ids})}
    valid = [each for each in ended if (row := rows.get(each.task.delivery_id)) and row.lease == each.claim.lease_id]
    if valid:
        _write_outcomes(transaction, valid, rows)
        _record_effects(transaction, valid)
        if editable := [each for each in valid if each.outcome.is_editable]:
            _record_edits(transaction, editable, rows)
    are_valid = frozenset(map(id, valid))
    results = iter(
        [
            _apply_outcome(transaction, each, rows[each.task.delivery_id])
            if id(each) in are_valid
            else _handle_lost_lease(transaction, each, rows.get(each.task.delivery_id))
            for each in ended
        ]
    )
    return [[next(results) for _ in one] for one in attempts_ended]


def _write_outcomes(transaction: Transaction, ended: Sequence[_Ended], rows: Mapping[str, DeliveryRow]) -> None:
    outcome_rows, attempt_rows = [], []
    for each in ended:
        row, outcome = rows[each.task.delivery_id], each.outcome
        outcome_rows.append(_build_outcome_values(each, row, transaction.now))
        if outcome.state is not DeliveryState.QUEUED:  # else only a digest named it
            attempt_rows.append(
                {
                    "delivery_seq": row.seq,
                    "number": each.claim.attempt_number,
                    "started_at": outcome.started_at,
                    "seconds": outcome.seconds,
                    "reason": outcome.reason,
                    "detail": clean_for_database(outcome.detail),
                }
            )
    _WRITE_OUTCOMES.execute(transaction.connection, outcome_rows)
    if attempt_rows:
        _INSERT_ATTEMPTS.execute(transaction.connection, attempt_rows)


def _record_effects(transaction: Transaction, ended: Sequence[_Ended]) -> None:
    """Once for each attempt, since a digest reached the channel once; in the order in which locks are taken."""
    by_attempt = {each.digest_id or each.task.delivery_id: each for each in reversed(ended)}
    healthy = breaker.find_healthy(transaction, {each.task.channel for each in ended})
    for each in sorted(by_attempt.values(), key=lambda each: each.task.channel):
        channel, outcome = each.task.channel, each.outcome
        if outcome.reason != SendReason.OK:
            breaker.record_failure(transaction, channel, outcome.reason, outcome.detail)
        if channel not in healthy or outcome.channel_effect is not breaker.ChannelEffect.REACHED:
            breaker.record_effect(
                transaction,
                channel,
                outcome.channel_effect,
                reason=outcome.reason,
                is_breaker_trial=each.claim.is_breaker_trial,
                retry_after=outcome.retry_after,
                pauses=each.pauses,
            )
            healthy -= {channel}
        if outcome.further_requests and outcome.rate is not None:
            breaker.spend_further(transaction, channel, outcome.further_requests, outcome.rate)


def _record_edits(transaction: Transaction, ended: Sequence[_Ended], rows: Mapping[str, DeliveryRow]) -> None:
    """The first message of an episode is edited at each later change, be it that its own message was given up."""
    first_messages: dict[str, FirstMessage] = {}
    named: set[MessageKey] = set()
    """What digests may have named before, be it that what they named was never sent as a message."""
    changed: set[MessageKey] = set()
    for each in ended:
        task, outcome, digest_id = each.task, each.outcome, each.digest_id
        key, seq = MessageKey(task.incident_id, task.episode, task.channel), rows[task.delivery_id].seq
        if digest_id and outcome.state in (DeliveryState.DELIVERED, DeliveryState.QUEUED):
            digest = MessageKey(digest_id, DIGEST_EPISODE, task.channel)
            first_messages.setdefault(digest_id, FirstMessage(digest, seq, receipt=_encode_receipt(outcome)))
            if task.maybe_sent:  # it may name what was merged into something newer since then
                changed.add(digest)
        elif outcome.state is DeliveryState.DELIVERED and task.first_receipt is None:
            first_messages[task.delivery_id] = FirstMessage(key, seq, context=outcome.context)
        if outcome.state in WAITING:
            continue
        named.add(key)
        if task.first_receipt is not None:
            changed.add(key)
        if task.episode > 1 and task.first_event_seq != task.last_event_seq:
            merged = find_merged_episodes(transaction, task)
            named |= merged
            changed |= merged
    # One whose answer was lost may have no member left that is claimed again: then its edit searches for it.
    older = [digest for digest in find_digests(transaction, named) if digest.key.incident_id not in first_messages]
    record_first_messages(transaction, [*first_messages.values(), *older])
    request_channel_edits(transaction, changed.union(each.key for each in older))


def _build_outcome_values(ended: _Ended, row: DeliveryRow, now: float) -> dict[str, Any]:
    outcome = ended.outcome
    is_retried = outcome.state in WAITING
    is_named_only = outcome.state is DeliveryState.QUEUED
    # A refused digest goes one by one, even where an earlier try of it may have arrived.
    is_refused = ended.digest_id is not None and outcome.reason == SendReason.REJECTED and not outcome.maybe_sent
    is_certain = outcome.state is DeliveryState.DELIVERED or is_named_only or is_refused
    maybe_sent = not is_certain and (outcome.maybe_sent or ended.task.maybe_sent)
    # A digest that certainly did not arrive is forgotten: its members may be collected anew.
    stays_in_digest = not is_retried or maybe_sent or (row.progress is not None and not is_named_only)
    return {
        "ours": row.seq,
        "new_state": _find_state(outcome, row),
        "new_reason": outcome.reason,
        "new_due_at": now + outcome.retry_in if is_retried else row.due_at,
        "new_finished_at": None if is_retried else now,
        "new_receipt": None if is_named_only else _encode_receipt(outcome),
        "new_maybe_sent": int(maybe_sent),
        "new_payload": outcome.payload,
        "new_attempts": row.attempts - is_named_only,
        "new_digest_id": row.digest_id if stays_in_digest else None,
        "new_named_in": ended.digest_id if is_named_only else row.named_in,
        "new_progress": None if is_named_only else row.progress,  # the digest's says nothing of its own message
    }


def _encode_receipt(outcome: AttemptOutcome) -> str | None:
    return None if outcome.receipt is None else clean_for_database(json.dumps(dict(outcome.receipt)))


def _find_state(outcome: AttemptOutcome, row: DeliveryRow) -> DeliveryState:
    """What the delivery is then: one that was only named is as it was before."""
    has_attempt = row.attempts > 1
    return DeliveryState.RETRYING if outcome.state is DeliveryState.QUEUED and has_attempt else outcome.state


def _apply_outcome(transaction: Transaction, ended: _Ended, row: DeliveryRow) -> OutcomeResult:
    """The delivery may be merged into what waits behind it, and fallback channels may have to deliver it."""
    outcome, state = ended.outcome, _find_state(ended.outcome, row)
    superseded, channels_to_wake = [], {row.channel}
    if state in WAITING:
        attempt_count = ended.claim.attempt_number - (outcome.state is DeliveryState.QUEUED)
        retry = RetryState(attempt_count, transaction.now + outcome.retry_in, outcome.reason)
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


def _handle_lost_lease(transaction: Transaction, ended: _Ended, row: DeliveryRow | None) -> OutcomeResult:
    """The lease was lost; or this outcome is committed already, and only the answer to the commit was lost."""
    if row is not None:
        values = {"delivery": row.seq, "attempt": ended.claim.attempt_number, "since": ended.outcome.started_at}
        if _ATTEMPT_EXISTS.fetch_first(transaction.connection, values) is not None:
            return OutcomeResult(
                lease_valid=True,
                state=DeliveryState(row.state),
                age=max(transaction.now - row.accepted_at, 0.0),
                superseded_channels=(),
                channels_to_wake=(row.channel,),
            )
    task, superseded = ended.task, []
    if ended.outcome.maybe_sent:
        current = read_current_state(transaction.connection, task.incident_id)
        if current is not None:
            latest = current.latest_event_seq
            first = latest if task.channel in transaction.unmerged_channels else task.first_event_seq
            new = NewDelivery(latest, first, task.incident_id, current.episode, task.channel)
            superseded = [old.channel for old in enqueue_deliveries(transaction, [new]).superseded_rows]
    return OutcomeResult(
        lease_valid=False,
        state=ended.outcome.state,
        age=0.0,
        superseded_channels=tuple(superseded),
        channels_to_wake=(task.channel,),
    )
