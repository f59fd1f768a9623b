"""Dead letters are sent again: not as they were, which may be long over, but as the current state of their incident.

A person asks for it, or the clock by which they were given up proves wrong. Where a person does, what waits for its
next attempt is due at once, and where a breaker holds the channel back, it is tried at once.

What was given up is tried again because a person says so: one delivery, or all of a channel.
"""

from collections.abc import AsyncIterator, Collection, Sequence
from functools import partial
from typing import Any, Final, NamedTuple

from sqlalchemy import Row, bindparam, literal_column, select, update

from services.relay.outbox import breaker, queries
from services.relay.outbox.breaker import commit_allow_trial
from services.relay.outbox.engine import dialect
from services.relay.outbox.engine.batching import Transaction
from services.relay.outbox.engine.store import Store
from services.relay.outbox.merge import NewDelivery, enqueue_deliveries, lock_incidents
from services.relay.outbox.queries import DeliveryRow
from services.relay.outbox.tables import IS_UNSETTLED, State, deliveries, incidents

_REQUEUE_STEP: Final = 32
"""How many dead letters are sent again in one transaction."""
_AGE_TOLERANCE: Final = 1.0
"""Seconds: an age is measured before the ending is committed, and by another clock."""

_delivery = deliveries.c
_FIND_DELIVERY: Final = select(_delivery.seq, _delivery.incident_id).where(_delivery.id == bindparam("delivery"))
_FIND_DEAD: Final = (
    select(_delivery.seq, _delivery.incident_id)
    .where(_delivery.channel == bindparam("channel"), _delivery.state == State.DEAD, IS_UNSETTLED)
    .order_by(_delivery.seq + 0)  # not as it stands: PostgreSQL would look for them through all that was delivered
    .limit(bindparam("most"))
)
_FIND_DEAD_TOO_EARLY: Final = (
    select(_delivery.seq, _delivery.incident_id)
    # In the words of the index `deliveries_dead`.
    .where(
        _delivery.state == literal_column("'dead'"), _delivery.finished_at > bindparam("now") + breaker.CLOCK_TOLERANCE
    )
    .where(_delivery.finished_at - _delivery.accepted_at > bindparam("give_up_after") - _AGE_TOLERANCE)
    .order_by(_delivery.finished_at)
    .limit(_REQUEUE_STEP)
)
_LOCK_DELIVERIES: Final = (
    select(
        _delivery.seq,
        _delivery.state,
        _delivery.channel,
        _delivery.incident_id,
        _delivery.event_seq,
        _delivery.first_event_seq,
        _delivery.episode,
    )
    .where(_delivery.seq.in_(bindparam("seqs", expanding=True)))
    .order_by(_delivery.seq)
    .with_for_update()
)
_CURRENT_STATE: Final = select(incidents.c.episode, incidents.c.latest_event_seq).where(
    incidents.c.id == bindparam("incident")
)


class RequeueResult(NamedTuple):
    """What was sent again."""

    superseded_channels: list[str]
    """The channel of each delivery that waited, and was merged into a new one."""
    channels_to_wake: set[str]
    """The channels that have something new to deliver."""


async def requeue(store: Store, delivery_id: str) -> State | None:
    """Sends a delivery again that is dead or waits; one in any other state is left alone.

    Returns:
        The state that it had; None where there is no such delivery.

    Raises:
        StoreUnavailableError: it is not known to be committed.
    """
    return await store.run(lambda transaction: _requeue_one(transaction, delivery_id))


async def requeue_dead(store: Store, channel: str, limit: int) -> int:
    """Sends up to `limit` dead letters of a channel again, the oldest first; how many. Raises StoreUnavailableError."""
    return await store.run(lambda transaction: _requeue_channel(transaction, channel, limit))


async def requeue_too_early(store: Store, give_up_after: float) -> RequeueResult:
    """Sends again what was given up for its age, by a clock that has been set back since.

    Args:
        store: the outbox.
        give_up_after: the age, in seconds.

    Raises:
        StoreUnavailableError: the steps before this one are done.
    """
    done = RequeueResult([], set())
    while True:
        found = await store.read(
            lambda connection: connection.execute(
                _FIND_DEAD_TOO_EARLY,
                {"now": dialect.read_clock(connection, store.clock), "give_up_after": give_up_after},
            ).all()
        )
        if not found:
            return done
        step = await store.run(partial(_requeue_found, found=found))
        done.superseded_channels.extend(step.superseded_channels)
        done.channels_to_wake.update(step.channels_to_wake)


def _requeue_found(transaction: Transaction, found: Sequence[Row[*tuple[Any, ...]]]) -> RequeueResult:
    dead = [row for row in _lock_deliveries(transaction, found) if row.state == State.DEAD]
    superseded = [channel for row in dead for channel in _enqueue_current_state(transaction, row)]
    return RequeueResult(superseded, {row.channel for row in dead})


def _requeue_one(transaction: Transaction, delivery_id: str) -> State | None:
    found = transaction.connection.execute(_FIND_DELIVERY, {"delivery": delivery_id}).all()
    if not found:
        return None
    (row,) = _lock_deliveries(transaction, found)
    state = State(row.state)
    if state is State.DEAD:
        _enqueue_current_state(transaction, row)
    elif state in (State.QUEUED, State.RETRYING):
        due = (
            update(deliveries)
            .where(_delivery.seq == row.seq)
            .values(due_at=transaction.now, due_set_at=transaction.now)
        )
        transaction.connection.execute(due)
    if state in (State.DEAD, State.QUEUED, State.RETRYING):
        breaker.allow_trial(transaction, [row.channel])
    return state


def _requeue_channel(transaction: Transaction, channel: str, limit: int) -> int:
    found = transaction.connection.execute(_FIND_DEAD, {"channel": channel, "most": limit}).all()
    dead = [row for row in _lock_deliveries(transaction, found) if row.state == State.DEAD]
    for row in dead:
        _enqueue_current_state(transaction, row)
    if dead:
        breaker.allow_trial(transaction, [channel])
    return len(found)


def _lock_deliveries(
    transaction: Transaction, found: Sequence[Row[*tuple[Any, ...]]]
) -> Sequence[Row[*tuple[Any, ...]]]:
    """The deliveries as they are once nobody else changes anything of their incidents."""
    lock_incidents(transaction, {row.incident_id for row in found})
    return transaction.connection.execute(_LOCK_DELIVERIES, {"seqs": [row.seq for row in found]}).all() if found else []


def _enqueue_current_state(transaction: Transaction, dead: Row[*tuple[Any, ...]]) -> list[str]:
    """A new delivery tells everything from what the dead one told to the incident's latest event.

    Returns:
        The channel of each delivery that was merged into it.
    """
    connection = transaction.connection
    current = connection.execute(_CURRENT_STATE, {"incident": dead.incident_id}).one()
    # Where every event is told by itself, the later ones have deliveries of their own.
    itself = dead.channel in transaction.unmerged_channels
    last, episode = (dead.event_seq, dead.episode) if itself else (current.latest_event_seq, current.episode)
    new = NewDelivery(last, dead.first_event_seq, dead.incident_id, episode, dead.channel)
    enqueued = enqueue_deliveries(transaction, [new])
    (told_by,) = enqueued.delivery_ids
    superseded = update(deliveries).where(_delivery.seq == dead.seq)
    connection.execute(superseded.values(state=State.SUPERSEDED, superseded_by=told_by))
    return [old.channel for old in enqueued.superseded_rows]


BULK_STEP: Final = 200
"""Deliveries in one transaction."""
_NOT_RETRYABLE: Final = {
    State.SENDING: "it is being sent",
    State.DELIVERED: "it was delivered",
    State.SUPERSEDED: "another delivery tells it instead",
}


class UnknownDeliveryError(Exception):
    """There is no such delivery, or not any more."""


class NotRetryableError(Exception):
    """The message is a sentence that says why."""


async def retry_delivery(store: Store, delivery_id: str, channels: Collection[str]) -> DeliveryRow:
    """Tries a delivery again that is dead, or waits for its next attempt; gives it as it stands then.

    Args:
        store: the outbox.
        delivery_id: which.
        channels: the configured names.

    Raises:
        UnknownDeliveryError: nothing was changed.
        NotRetryableError: nothing was changed.
        StoreUnavailableError: nothing was changed, or it cannot be read how it stands.
    """
    before = await _read_delivery(store, delivery_id)
    if before.channel not in channels:
        raise NotRetryableError(f"its channel, {before.channel}, is not configured any more")
    had = await requeue(store, delivery_id)
    if had in _NOT_RETRYABLE:
        raise NotRetryableError(f"there is nothing to try again: {_NOT_RETRYABLE[had]}")
    return await _read_delivery(store, delivery_id)


async def retry_channel(store: Store, channel: str) -> AsyncIterator[int]:
    """Tries again what is dead on a channel now, in steps; gives how many each step took.

    What dies again meanwhile is left alone, else it would never end. Where the channel refuses everything, what waits
    for it is tried at once, too.

    Raises:
        StoreUnavailableError: the steps before this one are done.
    """
    await commit_allow_trial(store, [channel])
    left = await queries.count_dead(store, channel)
    while left > 0:
        taken = await requeue_dead(store, channel, min(left, BULK_STEP))
        if taken == 0:
            return
        left -= taken
        yield taken


async def _read_delivery(store: Store, delivery_id: str) -> DeliveryRow:
    record = await queries.read_delivery(store, delivery_id)
    if record is None:
        raise UnknownDeliveryError("no such delivery")
    return record.delivery
