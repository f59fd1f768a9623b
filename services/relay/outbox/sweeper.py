"""What no single attempt notices: a channel that accepts nothing for too long, and a clock that was wrong.

While a channel's circuit breaker is open its deliveries are not tried, so nothing else would give them up; fallback
channels get what is given up. Every wait is written as a moment of the wall clock: where it was written in what is now
the future, it would last for as long as the clock was set back, so it ends at once. What was given up in what is now
the future was given up too early, and is sent again.
"""

from collections.abc import Sequence
from functools import partial
from typing import Final

from sqlalchemy import Connection, bindparam, exists, or_, select, update

from services.relay.outbox.channel_state.breaker import FAILURE_THRESHOLD, read_down_channels
from services.relay.outbox.engine import dialect
from services.relay.outbox.engine.batching import Transaction
from services.relay.outbox.engine.store import Store
from services.relay.outbox.fallback import FALLBACK_STEP, IS_NOT_COMPARING, enqueue_fallback, fall_back
from services.relay.outbox.merge import DeliveryChanges, lock_incidents
from services.relay.outbox.operators.requeue import requeue_too_early
from services.relay.outbox.rows import DELIVERIES, DeliveryRow
from services.relay.outbox.tables import CLOCK_TOLERANCE, WAITING, DeliveryState, channels, deliveries

_delivery = deliveries.c
_older = deliveries.alias("older")
_open_breakers = select(channels.c.name).where(or_(channels.c.failures >= FAILURE_THRESHOLD, channels.c.is_down > 0))
_EXPIRED: Final = (
    _delivery.channel.in_(_open_breakers),
    _delivery.finished_at.is_(None),
    _delivery.state.in_([state.value for state in WAITING]),
    _delivery.accepted_at < bindparam("before"),
    IS_NOT_COMPARING,
    # Otherwise the older one, which may be being sent, would arrive after the newer one was given up.
    ~exists().where(
        _older.c.incident_id == _delivery.incident_id,
        _older.c.channel == _delivery.channel,
        _older.c.finished_at.is_(None),
        _older.c.seq < _delivery.seq,
    ),
)
_FIND_EXPIRED: Final = DELIVERIES.where(*_EXPIRED).limit(FALLBACK_STEP)
_LOCK_EXPIRED: Final = (
    DELIVERIES.where(_delivery.seq.in_(bindparam("seqs", expanding=True)), *_EXPIRED)
    .order_by(_delivery.seq)
    .for_update()
)
_GIVE_UP: Final = (
    update(deliveries)
    .where(_delivery.seq.in_(bindparam("seqs", expanding=True)))
    .values(
        state=DeliveryState.DEAD,
        finished_at=bindparam("at"),
        reason=select(channels.c.reason).where(channels.c.name == _delivery.channel).scalar_subquery(),
        fallback_up_to=_delivery.event_seq,
    )
)
_RESET_FUTURE_WAITS: Final = (
    update(deliveries)
    .where(_delivery.finished_at.is_(None), _delivery.due_set_at > bindparam("at") + CLOCK_TOLERANCE)
    .where(or_(_delivery.lease.is_(None), ~_delivery.lease.startswith(bindparam("owner"))))
    .values(due_at=bindparam("at"), due_set_at=bindparam("at"))
)
_RESET_FUTURE_BREAKERS: Final = (
    update(channels)
    .where(channels.c.paused_set_at > bindparam("at") + CLOCK_TOLERANCE)
    .values(paused_until=bindparam("at"), paused_set_at=bindparam("at"))
)
_RESET_FUTURE_RETRY_AFTER: Final = (
    update(channels)
    .where(channels.c.retry_after_set_at > bindparam("at") + CLOCK_TOLERANCE)
    .values(retry_after_until=None, retry_after_set_at=None)
)


async def sweep(
    store: Store, lease_owner: str, give_up_after: float, fallback_channels: Sequence[str]
) -> DeliveryChanges:
    """Gives up what waited too long behind an open circuit breaker, and undoes what a wrong clock did.

    Args:
        store: the outbox.
        lease_owner: whose leases last whatever the clock says: the holder runs, and ends them.
        give_up_after: seconds since the event was accepted.
        fallback_channels: the channels that deliver what another one does not.

    Raises:
        StoreUnavailableError: the steps before this one are done.
    """
    changes = DeliveryChanges()
    for name in await store.read(read_down_channels):  # its worker does so, too, but a channel may have none
        fallbacks = [other for other in fallback_channels if other != name]
        changes = changes.add(await fall_back(store, name, fallbacks))
    await store.run(partial(_reset_future_waits, lease_owner=lease_owner))
    changes = changes.add(await requeue_too_early(store, give_up_after))
    has_more = True
    while has_more:
        changes = changes.add(await _give_up(store, give_up_after, fallback_channels))
        has_more = changes.has_more
    return changes


def _reset_future_waits(transaction: Transaction, lease_owner: str) -> None:
    connection, now = transaction.connection, transaction.now
    connection.execute(_RESET_FUTURE_WAITS, {"at": now, "owner": lease_owner})
    connection.execute(_RESET_FUTURE_BREAKERS, {"at": now})
    connection.execute(_RESET_FUTURE_RETRY_AFTER, {"at": now})


async def _give_up(store: Store, give_up_after: float, fallback_channels: Sequence[str]) -> DeliveryChanges:
    """One step."""
    found = await store.read(partial(_find_expired, store=store, give_up_after=give_up_after))
    if not found:
        return DeliveryChanges()
    step = partial(_give_up_step, found=found, give_up_after=give_up_after, fallback_channels=fallback_channels)
    return await store.run(step)


def _find_expired(connection: Connection, store: Store, give_up_after: float) -> list[DeliveryRow]:
    now = dialect.read_clock(connection, store.clock)
    return _FIND_EXPIRED.fetch_all(connection, {"now": now, "before": now - give_up_after})


def _give_up_step(
    transaction: Transaction, found: Sequence[DeliveryRow], give_up_after: float, fallback_channels: Sequence[str]
) -> DeliveryChanges:
    connection, now = transaction.connection, transaction.now
    lock_incidents(transaction, {row.incident_id for row in found})
    values = {"seqs": [row.seq for row in found], "now": now, "before": now - give_up_after}
    rows = _LOCK_EXPIRED.fetch_all(connection, values)
    changes = DeliveryChanges()
    for row in rows:
        fallbacks = [other for other in fallback_channels if other != row.channel]
        changes = changes.add(enqueue_fallback(transaction, row, fallbacks))
    if rows:
        connection.execute(_GIVE_UP, {"seqs": [row.seq for row in rows], "at": now})
    ended = tuple((row.channel, DeliveryState.DEAD) for row in rows)
    return changes.add(DeliveryChanges(ended, frozenset(row.channel for row in rows), has_more=bool(rows)))
