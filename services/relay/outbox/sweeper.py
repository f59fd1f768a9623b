"""What no single attempt notices: a channel that takes nothing for too long, and a clock that was wrong.

While a channel's gate is closed its deliveries are not tried, so nothing else would give them up; other channels get
what is given up. Every wait is written as a moment of the wall clock: where that moment was set in what is now the
future, the wait would last for as long as the clock was set back, so it is over at once. What was given up in what is
now the future was given up too early, and is sent again.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

from sqlalchemy import Connection, Row, bindparam, exists, or_, select, update

from services.relay.outbox.breaker import CLOCK_TOLERANCE, FAILURE_THRESHOLD, read_down_channels
from services.relay.outbox.engine import dialect
from services.relay.outbox.engine.batching import Transaction
from services.relay.outbox.engine.store import Store
from services.relay.outbox.fallback import FALLBACK_STEP, FallbackResult, build_fallback_deliveries, fall_back
from services.relay.outbox.merge import enqueue_deliveries, lock_incidents
from services.relay.outbox.requeue import requeue_too_early
from services.relay.outbox.tables import WAITING, State, channels, deliveries

_delivery = deliveries.c
_older = deliveries.alias("older")
_open_breakers = select(channels.c.name).where(or_(channels.c.failures >= FAILURE_THRESHOLD, channels.c.is_down > 0))
_EXPIRED: Final = (
    _delivery.channel.in_(_open_breakers),
    _delivery.finished_at.is_(None),
    _delivery.state.in_([state.value for state in WAITING]),
    _delivery.accepted_at < bindparam("before"),
    or_(
        _delivery.maybe_delivered_up_to.is_(None), _delivery.due_at <= bindparam("now")
    ),  # else it is held back, see `restored`
    # Else the older one, which may be under way, would be sent after what is newer was given up.
    ~exists().where(
        _older.c.incident_id == _delivery.incident_id,
        _older.c.channel == _delivery.channel,
        _older.c.finished_at.is_(None),
        _older.c.seq < _delivery.seq,
    ),
)
_FIND_EXPIRED: Final = select(_delivery.seq, _delivery.incident_id).where(*_EXPIRED).limit(FALLBACK_STEP)
_LOCK_EXPIRED: Final = (
    select(
        *(
            _delivery.seq,
            _delivery.channel,
            _delivery.incident_id,
            _delivery.episode,
            _delivery.event_seq,
            _delivery.first_event_seq,
            _delivery.fallback_up_to,
        )
    )
    .where(_delivery.seq.in_(bindparam("seqs", expanding=True)), *_EXPIRED)
    .order_by(_delivery.seq)
    .with_for_update()
)
_GIVE_UP: Final = (
    update(deliveries)
    .where(_delivery.seq.in_(bindparam("seqs", expanding=True)))
    .values(
        state=State.DEAD,
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


@dataclass(frozen=True, slots=True)
class SweepResult:
    """What was done."""

    ended: tuple[tuple[str, State], ...]
    """The channel of each delivery that was given up, or merged into one that tells it instead, and which it was."""
    channels_to_wake: frozenset[str]
    """The channels that have something new to deliver."""


async def sweep(store: Store, lease_owner: str, give_up_after: float, fallback_channels: Sequence[str]) -> SweepResult:
    """Gives up what waited too long for a closed gate, and undoes what a wrong clock did.

    Args:
        store: the outbox.
        lease_owner: whose leases last whatever the clock says: the holder is here, and ends them.
        give_up_after: seconds since the event was accepted.
        fallback_channels: channels that tell what another one refuses, or did not take until it was given up.

    Raises:
        StoreUnavailableError: the steps before this one are done.
    """
    ended: list[tuple[str, State]] = []
    woken: set[str] = set()

    def fell_back(result: FallbackResult) -> None:
        ended.extend((channel, State.SUPERSEDED) for channel in result.superseded_channels)
        woken.update(result.channels_to_wake)

    for name in await store.read(
        read_down_channels
    ):  # its worker does so, too, but it has none where it is configured no more
        fell_back(await fall_back(store, name, [other for other in fallback_channels if other != name]))
    await store.run(partial(_reset_future_waits, lease_owner=lease_owner))
    requeued = await requeue_too_early(store, give_up_after)
    ended += [(channel, State.SUPERSEDED) for channel in requeued.superseded_channels]
    woken.update(requeued.channels_to_wake)
    more = True
    while more:
        result, given_up = await _give_up(store, give_up_after, fallback_channels)
        fell_back(result)
        ended += [(channel, State.DEAD) for channel in given_up]
        woken.update(given_up)
        more = result.has_more
    return SweepResult(tuple(ended), frozenset(woken))


def _reset_future_waits(transaction: Transaction, lease_owner: str) -> None:
    connection, now = transaction.connection, transaction.now
    connection.execute(_RESET_FUTURE_WAITS, {"at": now, "owner": lease_owner})
    connection.execute(_RESET_FUTURE_BREAKERS, {"at": now})
    connection.execute(_RESET_FUTURE_RETRY_AFTER, {"at": now})


async def _give_up(store: Store, give_up_after: float, fallback: Sequence[str]) -> tuple[FallbackResult, list[str]]:
    """One step: what others tell instead, and the channel of each delivery that is dead now."""
    found = await store.read(
        lambda connection: _find_expired(connection, dialect.read_clock(connection, store.clock), give_up_after)
    )
    if not found:
        return FallbackResult(), []
    return await store.run(partial(_give_up_step, found=found, give_up_after=give_up_after, fallback=fallback))


def _find_expired(connection: Connection, now: float, give_up_after: float) -> Sequence[Row[*tuple[Any, ...]]]:
    return connection.execute(_FIND_EXPIRED, {"now": now, "before": now - give_up_after}).all()


def _give_up_step(
    transaction: Transaction, found: Sequence[Row[*tuple[Any, ...]]], give_up_after: float, fallback: Sequence[str]
) -> tuple[FallbackResult, list[str]]:
    connection, now = transaction.connection, transaction.now
    lock_incidents(transaction, {row.incident_id for row in found})
    asked = {"seqs": [row.seq for row in found], "now": now, "before": now - give_up_after}
    rows = connection.execute(_LOCK_EXPIRED, asked).all()
    superseded, woken = [], set()
    for row in rows:
        news = build_fallback_deliveries(transaction, row, [other for other in fallback if other != row.channel])
        superseded += [old.channel for old in enqueue_deliveries(transaction, news).superseded_rows]
        woken |= {new.channel for new in news}
    if rows:
        connection.execute(_GIVE_UP, {"seqs": [row.seq for row in rows], "at": now})
    result = FallbackResult(tuple(superseded), tuple(sorted(woken)), has_more=bool(rows))
    return result, [row.channel for row in rows]
