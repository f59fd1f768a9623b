"""Dead letters are sent again: not as they were, which may be long over, but as the current state of their incident.

A person asks for it, or the clock by which they were given up proves wrong. Where a person does, what waits for its
next attempt is due at once, and where a breaker holds the channel back, it is tried at once.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any, Final, NamedTuple

from sqlalchemy import Row, bindparam, literal_column, select, update

from services.relay.outbox import dialect, gate
from services.relay.outbox.enqueue import New, enqueue
from services.relay.outbox.lock import lock
from services.relay.outbox.schema import COUNTED_ONES, State, deliveries, incidents
from services.relay.outbox.store import Store
from services.relay.outbox.together import Transaction

_STEP: Final = 32
"""How many dead letters are sent again in one transaction."""
_ROUNDED: Final = 1.0
"""Seconds: an age is measured before the ending is committed, and by another clock."""

_of = deliveries.c
_ONE: Final = select(_of.seq, _of.incident_id).where(_of.id == bindparam("delivery"))
_DEAD: Final = (
    select(_of.seq, _of.incident_id)
    .where(_of.channel == bindparam("channel"), _of.state == State.DEAD, COUNTED_ONES)
    .order_by(_of.seq + 0)  # not as it stands: PostgreSQL would look for them through all that was delivered
    .limit(bindparam("most"))
)
_TOO_EARLY: Final = (
    select(_of.seq, _of.incident_id)
    # In the words of the index `deliveries_dead`.
    .where(_of.state == literal_column("'dead'"), _of.finished_at > bindparam("now") + gate.SET_BACK)
    .where(_of.finished_at - _of.accepted_at > bindparam("give_up_after") - _ROUNDED)
    .order_by(_of.finished_at)
    .limit(_STEP)
)
_ROWS: Final = (
    select(_of.seq, _of.state, _of.channel, _of.incident_id, _of.event_seq, _of.first_event, _of.episode)
    .where(_of.seq.in_(bindparam("seqs", expanding=True)))
    .order_by(_of.seq)
    .with_for_update()
)
_CURRENT: Final = select(incidents.c.episode, incidents.c.latest_event).where(incidents.c.id == bindparam("incident"))


class Requeued(NamedTuple):
    """What was sent again."""

    superseded: list[str]
    """The channel of each delivery that waited, and was merged into a new one."""
    woken: set[str]
    """The channels that have something new to deliver."""


async def again(store: Store, delivery_id: str) -> State | None:
    """Sends a delivery again that is dead or waits; one in any other state is left alone.

    Returns:
        The state that it had; None where there is no such delivery.

    Raises:
        StoreUnavailableError: it is not known to be committed.
    """
    return await store.run(lambda transaction: _again(transaction, delivery_id))


async def again_all(store: Store, channel: str, limit: int) -> int:
    """Sends up to `limit` dead letters of a channel again, the oldest first; how many. Raises StoreUnavailableError."""
    return await store.run(lambda transaction: _again_all(transaction, channel, limit))


async def requeue_too_early(store: Store, give_up_after: float) -> Requeued:
    """Sends again what was given up for its age, by a clock that has been set back since.

    Args:
        store: the outbox.
        give_up_after: the age, in seconds.

    Raises:
        StoreUnavailableError: the steps before this one are done.
    """
    done = Requeued([], set())
    while True:
        found = await store.read(
            lambda connection: connection.execute(
                _TOO_EARLY, {"now": dialect.now(connection, store.clock), "give_up_after": give_up_after}
            ).all()
        )
        if not found:
            return done
        step = await store.run(partial(_requeue, found=found))
        done.superseded.extend(step.superseded)
        done.woken.update(step.woken)


def _requeue(transaction: Transaction, found: Sequence[Row[*tuple[Any, ...]]]) -> Requeued:
    dead = [row for row in _locked(transaction, found) if row.state == State.DEAD]
    superseded = [channel for row in dead for channel in _revive(transaction, row)]
    return Requeued(superseded, {row.channel for row in dead})


def _again(transaction: Transaction, delivery_id: str) -> State | None:
    found = transaction.connection.execute(_ONE, {"delivery": delivery_id}).all()
    if not found:
        return None
    (row,) = _locked(transaction, found)
    state = State(row.state)
    if state is State.DEAD:
        _revive(transaction, row)
    elif state in (State.QUEUED, State.RETRYING):
        due = update(deliveries).where(_of.seq == row.seq).values(due_at=transaction.now, set_at=transaction.now)
        transaction.connection.execute(due)
    if state in (State.DEAD, State.QUEUED, State.RETRYING):
        gate.reopen(transaction, [row.channel])
    return state


def _again_all(transaction: Transaction, channel: str, limit: int) -> int:
    found = transaction.connection.execute(_DEAD, {"channel": channel, "most": limit}).all()
    dead = [row for row in _locked(transaction, found) if row.state == State.DEAD]
    for row in dead:
        _revive(transaction, row)
    if dead:
        gate.reopen(transaction, [channel])
    return len(found)


def _locked(transaction: Transaction, found: Sequence[Row[*tuple[Any, ...]]]) -> Sequence[Row[*tuple[Any, ...]]]:
    """The deliveries as they are once nobody else changes anything of their incidents."""
    lock(transaction, {row.incident_id for row in found})
    return transaction.connection.execute(_ROWS, {"seqs": [row.seq for row in found]}).all() if found else []


def _revive(transaction: Transaction, dead: Row[*tuple[Any, ...]]) -> list[str]:
    """A new delivery tells everything from what the dead one told to the incident's latest event.

    Returns:
        The channel of each delivery that was merged into it.
    """
    connection = transaction.connection
    current = connection.execute(_CURRENT, {"incident": dead.incident_id}).one()
    # Where every event is told by itself, the later ones have deliveries of their own.
    itself = dead.channel in transaction.unmerged
    last, episode = (dead.event_seq, dead.episode) if itself else (current.latest_event, current.episode)
    new = New(last, dead.first_event, dead.incident_id, episode, dead.channel)
    enqueued = enqueue(transaction, [new])
    (told_by,) = enqueued.told_by
    superseded = update(deliveries).where(_of.seq == dead.seq)
    connection.execute(superseded.values(state=State.SUPERSEDED, superseded_by=told_by))
    return [old.channel for old in enqueued.superseded]
