"""Dead letters: how many a channel has for each reason, and how they are sent again.

They are sent not as they were, which may be long over, but as the current state of their incident. An operator requests
it, for one delivery or all of a channel: then what waits for its next attempt is due at once, and a channel behind its
circuit breaker is tried. The relay itself requests it for what was given up by a wrong clock.

The queries go by `deliveries_dead_groups`, or by `deliveries_unsettled` for all of a channel: both have only what was
not delivered, in the order of acceptance.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Final, NamedTuple, TypeVar

from sqlalchemy import ColumnElement, Connection, bindparam, func, literal_column, select, update

from services.relay.outbox import breaker
from services.relay.outbox.audit import Actor, insert_entry
from services.relay.outbox.incidents import read_current_state
from services.relay.outbox.merge import (
    DeliveryChanges,
    NewDelivery,
    enqueue_deliveries,
    list_superseded,
    lock_incidents,
)
from services.relay.outbox.store import Store, Transaction
from services.relay.outbox.tables import (
    CLOCK_TOLERANCE,
    DELIVERIES,
    IS_UNSETTLED,
    DeliveryRow,
    DeliveryState,
    attempts,
    deliveries,
    events,
    incidents,
)
from shared.http.json_api import format_json_time
from shared.sql.rows import RowQuery, select_columns, select_values

NO_ATTEMPT: Final = "no_attempt"
"""The reason of a delivery that was given up before its first attempt."""
_MAX_GROUPS: Final = 50
"""Groups with examples, those with the most dead letters."""
_EXAMPLES: Final = 3
"""Of a group."""

_delivery = deliveries.c


class DeadLetterExample(NamedTuple):
    id: str
    incident_id: str
    alertname: str
    title: str
    """Of its incident."""
    oldest_accepted_at: float
    finished_at: float | None
    """When it was given up."""
    detail: str | None
    """The provider's answer to the last attempt, or what went wrong; None without an attempt."""


class DeadLetterGroup(NamedTuple):
    """The dead letters of a channel for a reason. Times are unix seconds."""

    channel: str
    reason: str
    """Of their last attempt: one of `SendReason`, or `NO_ATTEMPT`."""
    letter_count: int
    oldest_accepted_at: float
    newest_accepted_at: float


class DeadLetters(NamedTuple):
    letter_count: int
    groups: tuple[DeadLetterGroup, ...]
    """The largest first."""
    examples: Mapping[DeadLetterGroup, Sequence[DeadLetterExample]]
    """The newest of each."""
    further_groups: int
    """How many smaller ones were left out."""


# A literal, as the indexes of dead letters have it: else PostgreSQL does not see that it may use them.
_IS_DEAD: Final = _delivery.state == literal_column("'dead'")
_COUNTS: Final = RowQuery(
    DeadLetterGroup,
    select(
        _delivery.channel,
        func.coalesce(_delivery.reason, NO_ATTEMPT).label("reason"),
        func.count().label("letter_count"),
        func.min(_delivery.oldest_accepted_at).label("oldest_accepted_at"),
        func.max(_delivery.oldest_accepted_at).label("newest_accepted_at"),
    ).group_by(_delivery.channel, _delivery.reason),
).where(_IS_DEAD)
_last_detail = (
    select(attempts.c.detail)
    .where(attempts.c.delivery_seq == _delivery.seq)
    .order_by(attempts.c.number.desc())
    .limit(1)
    .scalar_subquery()
)
EXAMPLES: Final = (
    RowQuery(
        DeadLetterExample,
        select(*select_columns(DeadLetterExample, _delivery, events.c, incidents.c, detail=_last_detail))
        .select_from(deliveries)
        .join(events, events.c.seq == _delivery.event_seq)
        .join(incidents, incidents.c.id == _delivery.incident_id),
    )
    .order_by(_delivery.oldest_accepted_at.desc(), _delivery.seq.desc())
    .limit(_EXAMPLES)
)


_COUNT: Final = select_values(int, func.count(_delivery.seq))
OLDEST: Final = DELIVERIES.order_by(_delivery.oldest_accepted_at, _delivery.seq)
R = TypeVar("R")


class DeadLetterFilter(NamedTuple):
    """Which dead letters of a channel."""

    channel: str
    reason: str | None = None
    """None stands for all."""

    def count(self, connection: Connection) -> int:
        return self.narrow(_COUNT).fetch_one(connection)

    def find(self, connection: Connection, limit: int) -> list[DeliveryRow]:
        """The oldest ones."""
        return self.narrow(OLDEST).limit(limit).fetch_all(connection)

    def find_examples(self, connection: Connection) -> list[DeadLetterExample]:
        """The newest ones."""
        return self.narrow(EXAMPLES).fetch_all(connection)

    def narrow(self, query: RowQuery[R]) -> RowQuery[R]:
        """A query for these alone."""
        if self.reason is None:
            condition: ColumnElement[bool] = IS_UNSETTLED
        elif self.reason == NO_ATTEMPT:
            condition = _delivery.reason.is_(None)
        else:
            condition = _delivery.reason == self.reason
        return query.where(_IS_DEAD, _delivery.channel == self.channel, condition)


def read_dead_letters(connection: Connection) -> DeadLetters:
    """All dead letters, grouped; for `Store.read`."""
    groups = sorted(_COUNTS.fetch_all(connection), key=lambda group: group.letter_count, reverse=True)
    listed = groups[:_MAX_GROUPS]
    examples = {group: DeadLetterFilter(group.channel, group.reason).find_examples(connection) for group in listed}
    count = sum(group.letter_count for group in groups)
    return DeadLetters(count, tuple(listed), examples, len(groups) - len(listed))


_TOO_EARLY_STEP: Final = 32
"""Deliveries that one transaction of `requeue_too_early` sends again."""
_AGE_TOLERANCE: Final = 1.0
"""Seconds: an age is measured before the outcome is committed, and by another clock."""


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


async def requeue(store: Store, delivery_id: str, actor: Actor | None = None) -> DeliveryState | None:
    """Sends a delivery again that is dead or waits; one in any other state is left alone.

    Gives the state that it had, and None if there is no such delivery. Raises StoreUnavailableError.
    """
    return await store.run(partial(_requeue_one, delivery_id=delivery_id, actor=actor))


async def requeue_dead(store: Store, letters: DeadLetterFilter, limit: int) -> int:
    """Sends up to `limit` dead letters again, the oldest first; how many. Raises StoreUnavailableError."""

    def requeue_oldest(transaction: Transaction) -> int:
        found = letters.find(transaction.connection, limit)
        if _requeue_found(transaction, found).channels_to_wake:
            breaker.allow_trial(transaction, [letters.channel])
        return len(found)

    return await store.run(requeue_oldest)


async def requeue_too_early(store: Store, give_up_after: float) -> DeliveryChanges:
    """Sends again what was given up at this age (seconds), by a clock that has been set back since.

    Raises StoreUnavailableError; the steps before it are done.
    """
    changes = DeliveryChanges()
    values = {"give_up_after": give_up_after}
    while found := await store.read_at(
        lambda connection, now: _FIND_DEAD_TOO_EARLY.fetch_all(connection, {**values, "now": now})
    ):
        changes = changes.add(await store.run(partial(_requeue_found, found=found)))
    return changes


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
        transaction.connection.execute(due.values(due_at=transaction.now))
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

    Gives the channel of each delivery that was merged into it.
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
