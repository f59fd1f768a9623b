"""The last stride's commit: how an attempt ended, and what becomes of its delivery, its channel and its incident.

Whoever lost the lease before writes no receipt. But what he sent may have arrived after something newer: so the current
state of the incident is sent once more. So is that of another incident which began while an end was under way that ends
it, too (see `same_group`).
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

from sqlalchemy import Row, bindparam, insert, select, update

from services.relay.outbox import gate
from services.relay.outbox.claim import Claim
from services.relay.outbox.enqueue import New, Waits, enqueue, merge_into_successor
from services.relay.outbox.fallback import instead
from services.relay.outbox.lock import lock
from services.relay.outbox.many import Many
from services.relay.outbox.same_group import open_on
from services.relay.outbox.schema import State, attempts, deliveries, incidents, plain
from services.relay.outbox.store import Store
from services.relay.outbox.together import Transaction

_of = deliveries.c
# Statements are built once: building one costs more than a database takes to run it.
_FIND: Final = (
    select(*(_of.seq, _of.id, _of.lease, _of.due_at, _of.event_seq, _of.first_event, _of.incident_id, _of.episode))
    .add_columns(_of.channel, _of.accepted_at, _of.waits_since, _of.state, _of.note, _of.fell_back, _of.maybe_told)
    .where(_of.id.in_(bindparam("ids", expanding=True)))
    .order_by(_of.seq)
    .with_for_update()
)
_CHANGES: Final = ("state", "reason", "due_at", "set_at", "finished_at", "receipt", "maybe_sent", "payload")
_END: Final = Many(
    update(deliveries)
    .where(_of.seq == bindparam("ours"))
    .values(lease=None, **{name: bindparam(f"new_{name}") for name in _CHANGES})
)
_TRIED: Final = Many(insert(attempts), [column.name for column in attempts.c])
_KNOWN: Final = select(attempts.c.number).where(
    attempts.c.delivery_seq == bindparam("delivery"),
    attempts.c.number == bindparam("attempt"),
    attempts.c.started_at == bindparam("since"),
)
_CURRENT: Final = select(incidents.c.episode, incidents.c.latest_event).where(incidents.c.id == bindparam("incident"))


class Ending(NamedTuple):
    """How one attempt ended."""

    state: State
    """DELIVERED, RETRYING or DEAD."""
    started_at: float
    """Unix seconds."""
    seconds: float
    reason: str
    detail: str
    """The provider's answer or what went wrong, for a person; holds no secret."""
    effect: gate.Effect
    """What it says about the channel."""
    receipt: Mapping[str, str] | None = None
    again_in: float = 0.0
    """Seconds until the next attempt, where it is RETRYING."""
    retry_after: float | None = None
    """Seconds that the provider asked the whole channel to wait."""
    sent: bool = False
    """Whether it arrived, or may have."""
    payload: bytes | None = None
    """As it was sent, credentials masked, compressed by zlib; None where nothing was."""
    fallback: tuple[str, ...] = ()
    """Channels that get the same events, where this one refuses everything, or where the delivery was given up."""
    gave_up: bool = False
    """Whether it is DEAD for its age alone: nothing is wrong with the message."""


class Recorded(NamedTuple):
    """What was committed."""

    ours: bool
    """False where the lease was lost before: then another worker's ending counts, and not this one."""
    state: State
    """What the delivery is now; SUPERSEDED where it was to be tried again and something newer waited."""
    seconds: float
    """Since the acceptance of the event."""
    superseded: tuple[str, ...]
    """The channel of each delivery that was merged into another one."""
    woken: tuple[str, ...]
    """The channels that have something new to deliver."""


class _Asked(NamedTuple):
    claim: Claim
    ending: Ending
    pauses: gate.Pauses


async def record(store: Store, claim: Claim, ending: Ending, pauses: gate.Pauses) -> Recorded:
    """Commits an ending. Raises StoreUnavailableError: it is not known to be committed."""
    return await store.batch(_record, _Asked(claim, ending, pauses))


def _record(transaction: Transaction, asked: Sequence[_Asked]) -> list[Recorded]:
    connection = transaction.connection
    others = {new.incident_id for new in _ended_as_well(transaction, asked)}
    lock(transaction, others.union(each.claim.incident_id for each in asked))
    ids = [each.claim.delivery_id for each in asked]
    rows = {row.id: row for row in connection.execute(_FIND, {"ids": ids}).all()}
    ours = [each for each in asked if _is_ours(each.claim, rows)]
    if ours:
        _END.execute(connection, [_end(each, rows[each.claim.delivery_id], transaction.now) for each in ours])
        _TRIED.execute(connection, [_tried(each, rows[each.claim.delivery_id]) for each in ours])
    reached = gate.untroubled(transaction, {each.claim.channel for each in ours}) if ours else frozenset()
    for each in sorted(ours, key=lambda each: each.claim.channel):  # in one order, as locks have to be taken
        if each.claim.channel not in reached or each.ending.effect is not gate.Effect.REACHED:
            gate.note(
                transaction,
                each.claim.channel,
                each.ending.effect,
                reason=each.ending.reason,
                probe=each.claim.probe,
                retry_after=each.ending.retry_after,
                pauses=each.pauses,
            )
            reached -= {each.claim.channel}
    if others:
        enqueue(transaction, _ended_as_well(transaction, asked))
    return [
        _follow(transaction, each, rows[each.claim.delivery_id])
        if _is_ours(each.claim, rows)
        else _not_ours(transaction, each, rows.get(each.claim.delivery_id))
        for each in asked
    ]


def _ended_as_well(transaction: Transaction, asked: Sequence[_Asked]) -> list[New]:
    """The current state of the incidents that began, or went on, while ends were told that end them, too."""
    news: dict[tuple[str, str], New] = {}
    for claim, ending, _ in asked:
        if not claim.sharing or not ending.sent or (ending.payload is None and not claim.maybe_sent):
            continue
        for other in open_on(transaction.connection, [claim.incident_id], claim.sharing).get(claim.incident_id, ()):
            # A replica may commit an event later than another one commits one with a higher number.
            if other.latest_event > claim.last_event or other.latest_event != claim.others.get(other.other):
                new = New(other.latest_event, other.latest_event, other.other, other.episode, other.channel)
                news[other.other, other.channel] = new
    return list(news.values())


def _is_ours(claim: Claim, rows: Mapping[str, Row[*tuple[Any, ...]]]) -> bool:
    row = rows.get(claim.delivery_id)
    return row is not None and row.lease == claim.lease


def _end(asked: _Asked, row: Row[*tuple[Any, ...]], now: float) -> dict[str, Any]:
    ending = asked.ending
    again = ending.state is State.RETRYING
    return {
        "ours": row.seq,
        "new_state": ending.state,
        "new_reason": ending.reason,
        "new_due_at": now + ending.again_in if again else row.due_at,
        "new_set_at": now,
        "new_finished_at": None if again else now,
        "new_receipt": None if ending.receipt is None else plain(json.dumps(dict(ending.receipt))),
        "new_maybe_sent": int(again and (ending.sent or asked.claim.maybe_sent)),
        "new_payload": ending.payload,
    }


def _tried(asked: _Asked, row: Row[*tuple[Any, ...]]) -> dict[str, Any]:
    ending = asked.ending
    return {
        "delivery_seq": row.seq,
        "number": asked.claim.attempt,
        "started_at": ending.started_at,
        "seconds": ending.seconds,
        "reason": ending.reason,
        "detail": plain(ending.detail),
    }


def _follow(transaction: Transaction, asked: _Asked, row: Row[*tuple[Any, ...]]) -> Recorded:
    """What follows from an ending: it may be merged into what waits behind it, and others may have to tell of it."""
    ending, superseded, state = asked.ending, [], asked.ending.state
    woken = [row.channel]
    if state is State.RETRYING:
        waits = Waits(asked.claim.attempt, transaction.now + ending.again_in, ending.reason)
        if merge_into_successor(transaction, row, waits):
            state = State.SUPERSEDED
            superseded.append(row.channel)
    if ending.effect is gate.Effect.REFUSED or (
        state is State.DEAD and (ending.gave_up or row.channel in gate.refusing(transaction.connection))
    ):
        news = instead(transaction, row, ending.fallback)
        superseded += [old.channel for old in enqueue(transaction, news).superseded]
        woken += [new.channel for new in news]
    return Recorded(
        ours=True,
        state=state,
        seconds=max(transaction.now - row.accepted_at, 0.0),
        superseded=tuple(superseded),
        woken=tuple(woken),
    )


def _not_ours(transaction: Transaction, asked: _Asked, row: Row[*tuple[Any, ...]] | None) -> Recorded:
    """The lease was lost; or this very ending is committed already, and only the answer to the commit was lost."""
    if row is not None:
        known = {"delivery": row.seq, "attempt": asked.claim.attempt, "since": asked.ending.started_at}
        if transaction.connection.execute(_KNOWN, known).first() is not None:
            seconds = max(transaction.now - row.accepted_at, 0.0)
            return Recorded(ours=True, state=State(row.state), seconds=seconds, superseded=(), woken=(row.channel,))
    return _send_once_more(transaction, asked)


def _send_once_more(transaction: Transaction, asked: _Asked) -> Recorded:
    claim, superseded = asked.claim, []
    if asked.ending.sent:
        current = transaction.connection.execute(_CURRENT, {"incident": claim.incident_id}).first()
        if current is not None:
            latest: int = current.latest_event
            first = latest if claim.channel in transaction.unmerged else claim.first_event
            new = New(latest, first, claim.incident_id, current.episode, claim.channel)
            superseded = [old.channel for old in enqueue(transaction, [new]).superseded]
    return Recorded(
        ours=False,
        state=asked.ending.state,
        seconds=0.0,
        superseded=tuple(superseded),
        woken=(claim.channel,),
    )
