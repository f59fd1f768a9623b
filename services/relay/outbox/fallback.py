"""What waits for a channel that is down goes to its fallback channels: at once, in order, each event once.

So does, after two minutes, what no channel of its route has taken, for whatever reason.

The delivery continues waiting for its own channel, too. It records how far its events fell back (`fallback_up_to`), so
that each step finds the next ones. An event that a fallback channel delivers anyway is not repeated there.

What waits for a channel on which no replica delivers any more falls back after a while: a webhook may have been
accepted under the former configuration, and nobody else would deliver it.
"""

from collections.abc import Callable, Collection, Sequence
from functools import partial
from typing import Final, TypeVar

from sqlalchemy import Connection, and_, bindparam, exists, or_, select, update

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
    DELIVERIES,
    UNFINISHED,
    WAITING,
    DeliveryRow,
    DeliveryState,
    StandIn,
    channels,
    deliveries,
    events,
    incidents,
)
from shared.sql.rows import RowQuery, select_tuples

R = TypeVar("R")

FALLBACK_STEP: Final = 32
"""How many deliveries fall back in one transaction, so that a channel for which thousands wait blocks nobody."""

UNTAKEN_AFTER: Final = 120.0
"""Seconds after which others are told what no channel of the route has taken. The breaker opens within a minute, and a
short fault of a provider is over by then; a person who waits for longer loses the time in which to act."""

_delivery = deliveries.c
IS_NOT_COMPARING: Final = or_(_delivery.maybe_delivered_up_to.is_(None), _delivery.due_at <= bindparam("now"))
"""The condition that a delivery does not wait for the comparison after a restore; see `restore_detection`."""
# Or its lease ended.
_is_free = or_(_delivery.state.in_([state.value for state in WAITING]), _delivery.due_at <= bindparam("now"))
_is_new = or_(_delivery.fallback_up_to.is_(None), _delivery.fallback_up_to < _delivery.event_seq)
_NOT_FALLEN_BACK: Final = (_delivery.finished_at.is_(None), _is_free, _is_new, IS_NOT_COMPARING)
_taken = deliveries.alias("taken")
_stand_in = deliveries.alias("stand_in")
_is_stand_in = exists().where(
    _stand_in.c.incident_id == _taken.c.incident_id,
    _stand_in.c.episode == _taken.c.episode,
    _stand_in.c.channel == _taken.c.channel,
    _stand_in.c.stand_in >= bindparam("stand_in"),
)
_is_served = exists().where(
    channels.c.name == _delivery.channel,
    channels.c.served_since <= bindparam("untaken_since"),  # a relay that was away tries first
    channels.c.served_at > bindparam("untaken_since"),
)
_open = incidents.alias("open_incidents")
_is_dead_and_open = and_(
    _delivery.state == DeliveryState.DEAD,
    exists().where(_open.c.id == _delivery.incident_id, _open.c.episode == _delivery.episode, _open.c.is_open == 1),
)
IS_UNTAKEN: Final = and_(
    _delivery.state.in_([*(state.value for state in UNFINISHED), DeliveryState.DEAD.value]),
    _delivery.oldest_accepted_at <= bindparam("untaken_since"),
    _delivery.named_in.is_(None),  # else a digest has told it
    or_(and_(_delivery.finished_at.is_(None), _is_free, IS_NOT_COMPARING), _is_dead_and_open),
    _is_served,
    ~exists().where(
        _taken.c.incident_id == _delivery.incident_id,
        _taken.c.state.concat("") == DeliveryState.DELIVERED,  # so that `deliveries_of_episode` is used
        _taken.c.event_seq >= _delivery.first_event_seq,
        ~_is_stand_in,
    ),
)
"""The condition that nobody has taken what a delivery tells since `untaken_since`, but those who stand in for others.

Those are `stand_in` or more: that a step of escalation took it matters to the next step, and not to the fallback.
"""
_FIND_NEXT: Final = (
    DELIVERIES.where(_delivery.channel == bindparam("channel"), *_NOT_FALLEN_BACK)
    .order_by(_delivery.due_at, _delivery.seq)
    .limit(FALLBACK_STEP)
)
_LOCK_DELIVERIES: Final = (
    DELIVERIES.where(_delivery.seq.in_(bindparam("seqs", expanding=True)), *_NOT_FALLEN_BACK)
    .order_by(_delivery.seq)
    .for_update()
)
_FIND_UNTAKEN: Final = (
    DELIVERIES.where(_delivery.channel == bindparam("channel"), IS_UNTAKEN, _is_new)
    .order_by(_delivery.seq)
    .limit(FALLBACK_STEP)
)
_LOCK_UNTAKEN: Final = (
    DELIVERIES.where(_delivery.seq.in_(bindparam("seqs", expanding=True)), IS_UNTAKEN, _is_new)
    .order_by(_delivery.seq)
    .for_update()
)
_UNTAKEN_CHANNELS: Final = RowQuery(str, select(_delivery.channel).distinct()).where(IS_UNTAKEN, _is_new)
_MARK_FALLEN_BACK: Final = (
    update(deliveries)
    .where(_delivery.seq.in_(bindparam("seqs", expanding=True)))
    .values(fallback_up_to=_delivery.event_seq)
)
_event_episode = select(_delivery.episode).where(_delivery.event_seq == events.c.seq).limit(1).scalar_subquery()
_MISSING_EVENTS: Final = (
    select_tuples(tuple[int, int | None], select(events.c.seq, _event_episode.label("episode")))
    .where(
        events.c.incident_id == bindparam("incident"),
        events.c.seq.between(bindparam("first"), bindparam("last")),
        ~exists().where(
            _delivery.incident_id == bindparam("incident"),
            _delivery.channel == bindparam("channel"),
            events.c.seq.between(_delivery.first_event_seq, _delivery.event_seq),
        ),
    )
    .order_by(events.c.seq)
)


async def fall_back(store: Store, channel: str, fallback_channels: Sequence[str]) -> DeliveryChanges:
    """Gives some of what waits for a channel that is down to its fallback channels. Raises StoreUnavailableError."""
    if not fallback_channels:
        return DeliveryChanges()
    found = await store.read_at(
        lambda connection, now: _FIND_NEXT.fetch_all(connection, {"channel": channel, "now": now})
    )
    if not found:
        return DeliveryChanges()
    return await store.run(
        partial(
            _fall_back_step, found=found, lock=_LOCK_DELIVERIES, fallback_channels=fallback_channels, problem="is down"
        )
    )


async def fall_back_untaken(store: Store, fallback_channels: Sequence[str]) -> DeliveryChanges:
    """Gives what no channel of its route has taken for `UNTAKEN_AFTER` to fallback channels.

    Raises StoreUnavailableError; the steps before it are done.
    """
    changes = DeliveryChanges()

    def find(query: RowQuery[R], **values: str) -> Callable[[Connection, float], list[R]]:
        return lambda connection, now: query.fetch_all(
            connection, {**values, "now": now, "untaken_since": now - UNTAKEN_AFTER, "stand_in": StandIn.STEP}
        )

    for channel in await store.read_at(find(_UNTAKEN_CHANNELS)):
        others = [other for other in fallback_channels if other != channel]
        problem = f"has not taken it for {UNTAKEN_AFTER / 60:g} min"
        while others and (found := await store.read_at(find(_FIND_UNTAKEN, channel=channel))):
            step = partial(_fall_back_step, found=found, lock=_LOCK_UNTAKEN, fallback_channels=others, problem=problem)
            changes = changes.add(await store.run(step))
    return changes


def enqueue_fallback(
    transaction: Transaction, row: DeliveryRow, fallback_channels: Sequence[str], problem: str = "is down"
) -> DeliveryChanges:
    """Adds the events of a delivery on fallback channels, where these do not deliver them anyway.

    The transaction holds the lock on the incident. `problem` is what is wrong with the delivery's own channel.
    """
    remark = f"Also sent here because channel {row.channel} {problem}."
    # Events that fell back before are left out: an incident that flaps for a day has hundreds of events.
    first = max(row.first_event_seq, (row.fallback_up_to or 0) + 1)
    span = {"incident": row.incident_id, "first": first, "last": row.event_seq}
    new = []
    for channel in fallback_channels:
        missing_events = _MISSING_EVENTS.fetch_all(transaction.connection, {**span, "channel": channel})
        if channel in transaction.unmerged_channels:
            # A delivery that waits may have events of several episodes.
            new += [
                NewDelivery(
                    seq, seq, row.incident_id, episode or row.episode, channel, remark, stand_in=StandIn.FALLBACK
                )
                for seq, episode in missing_events
            ]
        elif missing_events:
            # Something newer may have been delivered there already: so it is the current state.
            current = read_current_state(transaction.connection, row.incident_id)
            latest = row.event_seq if current is None else current.latest_event_seq
            episode = row.episode if current is None else current.episode
            first_missing, _ = missing_events[0]
            new.append(
                NewDelivery(latest, first_missing, row.incident_id, episode, channel, remark, stand_in=StandIn.FALLBACK)
            )
    superseded = [old.channel for old in enqueue_deliveries(transaction, new).superseded_rows]
    return DeliveryChanges(list_superseded(superseded), frozenset(each.channel for each in new))


def find_missing_events(
    transaction: Transaction, incident_id: str, channel: str, first_event_seq: int, last_event_seq: int
) -> list[int]:
    """The numbers of the events of an incident, from one to another, that a channel has no delivery of; in order."""
    span = {"incident": incident_id, "first": first_event_seq, "last": last_event_seq, "channel": channel}
    return [seq for seq, _ in _MISSING_EVENTS.fetch_all(transaction.connection, span)]


def _fall_back_step(
    transaction: Transaction,
    found: Sequence[DeliveryRow],
    lock: RowQuery[DeliveryRow],
    fallback_channels: Sequence[str],
    problem: str,
) -> DeliveryChanges:
    lock_incidents(transaction, {row.incident_id for row in found})
    now = transaction.now
    values = {
        "seqs": [row.seq for row in found],
        "now": now,
        "untaken_since": now - UNTAKEN_AFTER,
        "stand_in": StandIn.STEP,
    }
    rows = lock.fetch_all(transaction.connection, values)
    changes = DeliveryChanges()
    for row in rows:  # one by one, since on a channel that merges nothing several may be of one incident
        changes = changes.add(enqueue_fallback(transaction, row, fallback_channels, problem))
    if rows:
        transaction.connection.execute(_MARK_FALLEN_BACK, {"seqs": [row.seq for row in rows]})
    return changes.add(DeliveryChanges(has_more=len(found) == FALLBACK_STEP))


UNSERVED_AFTER: Final = 300.0
"""Seconds for which such a channel is left to other replicas: one may have been reloaded before this one."""


_UNSERVED_CHANNELS: Final = RowQuery(str, select(_delivery.channel).distinct()).where(
    _delivery.finished_at.is_(None),
    _delivery.channel.not_in(bindparam("configured", expanding=True)),
    _delivery.oldest_accepted_at < bindparam("before"),
    ~exists().where(channels.c.name == _delivery.channel, channels.c.served_at >= bindparam("before")),
)


async def fall_back_unserved(
    store: Store, configured_channels: Collection[str], fallback_channels: Sequence[str]
) -> DeliveryChanges:
    """Gives all that has waited for `UNSERVED_AFTER` to others, where no replica has served its channel for as long.

    Raises StoreUnavailableError; the steps before it are done.
    """
    changes = DeliveryChanges()
    configured = {"configured": sorted(configured_channels)}
    unserved = await store.read_at(
        lambda connection, now: _UNSERVED_CHANNELS.fetch_all(connection, {**configured, "before": now - UNSERVED_AFTER})
    )
    for channel in unserved:
        has_more = True
        while has_more:
            changes = changes.add(await fall_back(store, channel, fallback_channels))
            has_more = changes.has_more
    return changes
