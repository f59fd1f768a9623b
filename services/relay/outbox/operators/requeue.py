"""Sends dead letters again: not as they were, which may be long over, but as the current state of their incident.

An operator requests it, for one delivery or all of a channel; or the relay itself, if they were given up by a wrong
clock. If an operator requests it, what waits for its next attempt is due at once, and a channel behind its circuit
breaker is tried.
"""

from collections.abc import AsyncIterator, Sequence
from functools import partial
from typing import Final

from sqlalchemy import Connection, bindparam, literal_column, update

from services.relay.outbox.channel_state import breaker
from services.relay.outbox.engine import dialect
from services.relay.outbox.engine.batching import Transaction
from services.relay.outbox.engine.store import Store
from services.relay.outbox.incidents import read_current_state
from services.relay.outbox.merge import (
    DeliveryChanges,
    NewDelivery,
    enqueue_deliveries,
    list_superseded,
    lock_incidents,
)
from services.relay.outbox.operators.audit import Actor, insert_entry
from services.relay.outbox.operators.dead_letters import DeadLetterFilter
from services.relay.outbox.rows import DELIVERIES, DeliveryRow
from services.relay.outbox.tables import CLOCK_TOLERANCE, DeliveryState, deliveries
from shared.http.json_api import format_json_time

BULK_STEP: Final = 100
"""Deliveries that one transaction of `retry_channel` sends again."""
_TOO_EARLY_STEP: Final = 32
"""Deliveries that one transaction of `requeue_too_early` sends again."""
_AGE_TOLERANCE: Final = 1.0
"""Seconds: an age is measured before the outcome is committed, and by another clock."""

_delivery = deliveries.c
_FIND_DELIVERY: Final = DELIVERIES.where(_delivery.id == bindparam("delivery"))
_FIND_DEAD_TOO_EARLY: Final = (
    DELIVERIES.where(
        _delivery.state == literal_column("'dead'"),  # as the index `deliveries_dead` has it
        _delivery.finished_at > bindparam("now") + CLOCK_TOLERANCE,
        _delivery.finished_at - _delivery.accepted_at > bindparam("give_up_after") - _AGE_TOLERANCE,
    )
    .order_by(_delivery.finished_at)
    .limit(_TOO_EARLY_STEP)
)
_LOCK_DELIVERIES: Final = (
    DELIVERIES.where(_delivery.seq.in_(bindparam("seqs", expanding=True))).order_by(_delivery.seq).for_update()
)


async def retry_channel(store: Store, channel: str, reason: str | None = None) -> AsyncIterator[int]:
    """Tries again what is dead on a channel now, in steps; gives how many each step took.

    What dies again meanwhile is left alone, else it would never end. Where the channel is down, what waits for it is
    tried at once, too.

    Args:
        store: the outbox.
        channel: its name.
        reason: of the last attempt, or `NO_ATTEMPT`; None takes all.

    Raises:
        StoreUnavailableError: the steps before this one are done.
    """
    await breaker.commit_allow_trial(store, [channel])
    letters = DeadLetterFilter(channel, reason)
    left = await store.read(letters.count)
    while left > 0:
        count = await requeue_dead(store, letters, min(left, BULK_STEP))
        if count == 0:
            return
        left -= count
        yield count


async def requeue(store: Store, delivery_id: str, actor: Actor | None = None) -> DeliveryState | None:
    """Sends a delivery again that is dead or waits; one in any other state is left alone.

    Returns:
        The state that it had; None if there is no such delivery.

    Raises:
        StoreUnavailableError: it is not known to be committed.
    """
    return await store.run(partial(_requeue_one, delivery_id=delivery_id, actor=actor))


async def requeue_dead(store: Store, letters: DeadLetterFilter, limit: int) -> int:
    """Sends up to `limit` dead letters again, the oldest first; how many. Raises StoreUnavailableError."""
    return await store.run(partial(requeue_dead_letters, letters=letters, limit=limit))


def requeue_dead_letters(transaction: Transaction, letters: DeadLetterFilter, limit: int) -> int:
    """Sends up to `limit` dead letters again, the oldest first; how many."""
    found = letters.find(transaction.connection, limit)
    dead = [row for row in _lock_deliveries(transaction, found) if row.state == DeliveryState.DEAD]
    for row in dead:
        _enqueue_current_state(transaction, row)
    if dead:
        breaker.allow_trial(transaction, [letters.channel])
    return len(found)


async def requeue_too_early(store: Store, give_up_after: float) -> DeliveryChanges:
    """Sends again what was given up for its age, by a clock that has been set back since.

    Args:
        store: the outbox.
        give_up_after: the age, in seconds.

    Raises:
        StoreUnavailableError: the steps before this one are done.
    """
    changes = DeliveryChanges()
    while found := await store.read(partial(_find_dead_too_early, store=store, give_up_after=give_up_after)):
        changes = changes.add(await store.run(partial(_requeue_found, found=found)))
    return changes


def _find_dead_too_early(connection: Connection, store: Store, give_up_after: float) -> list[DeliveryRow]:
    now = dialect.read_clock(connection, store.clock)
    return _FIND_DEAD_TOO_EARLY.fetch_all(connection, {"now": now, "give_up_after": give_up_after})


def _requeue_found(transaction: Transaction, found: Sequence[DeliveryRow]) -> DeliveryChanges:
    dead = [row for row in _lock_deliveries(transaction, found) if row.state == DeliveryState.DEAD]
    superseded = [channel for row in dead for channel in _enqueue_current_state(transaction, row)]
    return DeliveryChanges(list_superseded(superseded), frozenset(row.channel for row in dead))


def _requeue_one(transaction: Transaction, delivery_id: str, actor: Actor | None) -> DeliveryState | None:
    found = _FIND_DELIVERY.fetch_all(transaction.connection, {"delivery": delivery_id})
    if not found:
        return None
    (row,) = _lock_deliveries(transaction, found)
    state = DeliveryState(row.state)
    if state is DeliveryState.DEAD:
        _enqueue_current_state(transaction, row)
    elif state in (DeliveryState.QUEUED, DeliveryState.RETRYING):
        due = update(deliveries).where(_delivery.seq == row.seq)
        transaction.connection.execute(due.values(due_at=transaction.now, due_set_at=transaction.now))
    if state in (DeliveryState.DEAD, DeliveryState.QUEUED, DeliveryState.RETRYING):
        breaker.allow_trial(transaction, [row.channel])
        if actor:
            insert_entry(transaction, actor.who, actor.peer, "retry", delivery_id)
    return state


def _lock_deliveries(transaction: Transaction, found: Sequence[DeliveryRow]) -> Sequence[DeliveryRow]:
    """The deliveries as they are once nobody else changes anything of their incidents."""
    if not found:
        return ()
    lock_incidents(transaction, {row.incident_id for row in found})
    return _LOCK_DELIVERIES.fetch_all(transaction.connection, {"seqs": [row.seq for row in found]})


def _enqueue_current_state(transaction: Transaction, dead: DeliveryRow) -> list[str]:
    """A new delivery of everything from the dead one's first event to the incident's latest one.

    Returns:
        The channel of each delivery that was merged into it.
    """
    current = read_current_state(transaction.connection, dead.incident_id)
    if current is None or dead.channel in transaction.unmerged_channels:
        # On a channel that merges nothing, the later events have deliveries of their own.
        latest, episode = dead.event_seq, dead.episode
    else:
        latest, episode = current.latest_event_seq, current.episode
    new = NewDelivery(latest, dead.first_event_seq, dead.incident_id, episode, dead.channel)
    enqueued = enqueue_deliveries(transaction, [new])
    (successor,) = enqueued.delivery_ids
    given_up_at = "" if dead.finished_at is None else f" at {format_json_time(dead.finished_at)}"
    superseded = update(deliveries).where(_delivery.seq == dead.seq)
    transaction.connection.execute(
        superseded.values(
            state=DeliveryState.SUPERSEDED,
            superseded_by=successor,
            finished_at=transaction.now,  # who reads the incident sees it merged now, not when it was given up
            remark=" ".join(filter(None, [dead.remark, f"It was given up{given_up_at}, and is sent again."])),
        )
    )
    return [old.channel for old in enqueued.superseded_rows]
