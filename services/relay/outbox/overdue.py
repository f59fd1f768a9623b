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

from services.relay.outbox import dialect
from services.relay.outbox.again import requeue_too_early
from services.relay.outbox.enqueue import enqueue
from services.relay.outbox.fallback import STEP, FellBack, fall_back, instead
from services.relay.outbox.gate import BREAKS_AFTER, SET_BACK, refusing
from services.relay.outbox.lock import lock
from services.relay.outbox.schema import WAITING, State, channels, deliveries
from services.relay.outbox.store import Store
from services.relay.outbox.together import Transaction

_of = deliveries.c
_older = deliveries.alias("older")
_closed = select(channels.c.name).where(or_(channels.c.failures >= BREAKS_AFTER, channels.c.refused > 0))
_OVERDUE: Final = (
    _of.channel.in_(_closed),
    _of.finished_at.is_(None),
    _of.state.in_([state.value for state in WAITING]),
    _of.accepted_at < bindparam("before"),
    or_(_of.maybe_told.is_(None), _of.due_at <= bindparam("now")),  # else it is held back, see `restored`
    # Else the older one, which may be under way, would be sent after what is newer was given up.
    ~exists().where(
        _older.c.incident_id == _of.incident_id,
        _older.c.channel == _of.channel,
        _older.c.finished_at.is_(None),
        _older.c.seq < _of.seq,
    ),
)
_NEXT: Final = select(_of.seq, _of.incident_id).where(*_OVERDUE).limit(STEP)
_ROWS: Final = (
    select(*(_of.seq, _of.channel, _of.incident_id, _of.episode, _of.event_seq, _of.first_event, _of.fell_back))
    .where(_of.seq.in_(bindparam("seqs", expanding=True)), *_OVERDUE)
    .order_by(_of.seq)
    .with_for_update()
)
_GIVE_UP: Final = (
    update(deliveries)
    .where(_of.seq.in_(bindparam("seqs", expanding=True)))
    .values(
        state=State.DEAD,
        finished_at=bindparam("at"),
        reason=select(channels.c.reason).where(channels.c.name == _of.channel).scalar_subquery(),
        fell_back=_of.event_seq,
    )
)
_OVER: Final = (
    update(deliveries)
    .where(_of.finished_at.is_(None), _of.set_at > bindparam("at") + SET_BACK)
    .where(or_(_of.lease.is_(None), ~_of.lease.startswith(bindparam("owner"))))
    .values(due_at=bindparam("at"), set_at=bindparam("at"))
)
_OPEN: Final = (
    update(channels)
    .where(channels.c.set_at > bindparam("at") + SET_BACK)
    .values(open_at=bindparam("at"), set_at=bindparam("at"))
)

_FORGET: Final = (
    update(channels).where(channels.c.asked_at > bindparam("at") + SET_BACK).values(asked_until=None, asked_at=None)
)


@dataclass(frozen=True, slots=True)
class Looked:
    """What was done."""

    ended: tuple[tuple[str, State], ...]
    """The channel of each delivery that was given up, or merged into one that tells it instead, and which it was."""
    woken: frozenset[str]
    """The channels that have something new to deliver."""


async def look_after(store: Store, owner: str, give_up_after: float, fallback: Sequence[str]) -> Looked:
    """Gives up what waited too long for a closed gate, and undoes what a wrong clock did.

    Args:
        store: the outbox.
        owner: whose leases last whatever the clock says: the holder is here, and ends them.
        give_up_after: seconds since the event was accepted.
        fallback: channels that tell what another one refuses, or did not take until it was given up.

    Raises:
        StoreUnavailableError: the steps before this one are done.
    """
    ended: list[tuple[str, State]] = []
    woken: set[str] = set()

    def fell_back(told: FellBack) -> None:
        ended.extend((channel, State.SUPERSEDED) for channel in told.superseded)
        woken.update(told.woken)

    for name in await store.read(refusing):  # its worker does so, too, but it has none where it is configured no more
        fell_back(await fall_back(store, name, [other for other in fallback if other != name]))
    await store.run(partial(_end_false_waits, owner=owner))
    requeued = await requeue_too_early(store, give_up_after)
    ended += [(channel, State.SUPERSEDED) for channel in requeued.superseded]
    woken.update(requeued.woken)
    more = True
    while more:
        told, given_up = await _give_up(store, give_up_after, fallback)
        fell_back(told)
        ended += [(channel, State.DEAD) for channel in given_up]
        woken.update(given_up)
        more = told.more
    return Looked(tuple(ended), frozenset(woken))


def _end_false_waits(transaction: Transaction, owner: str) -> None:
    connection, now = transaction.connection, transaction.now
    connection.execute(_OVER, {"at": now, "owner": owner})
    connection.execute(_OPEN, {"at": now})
    connection.execute(_FORGET, {"at": now})


async def _give_up(store: Store, give_up_after: float, fallback: Sequence[str]) -> tuple[FellBack, list[str]]:
    """One step: what others tell instead, and the channel of each delivery that is dead now."""
    found = await store.read(
        lambda connection: _overdue(connection, dialect.now(connection, store.clock), give_up_after)
    )
    if not found:
        return FellBack(), []
    return await store.run(partial(_step, found=found, give_up_after=give_up_after, fallback=fallback))


def _overdue(connection: Connection, now: float, give_up_after: float) -> Sequence[Row[*tuple[Any, ...]]]:
    return connection.execute(_NEXT, {"now": now, "before": now - give_up_after}).all()


def _step(
    transaction: Transaction, found: Sequence[Row[*tuple[Any, ...]]], give_up_after: float, fallback: Sequence[str]
) -> tuple[FellBack, list[str]]:
    connection, now = transaction.connection, transaction.now
    lock(transaction, {row.incident_id for row in found})
    asked = {"seqs": [row.seq for row in found], "now": now, "before": now - give_up_after}
    rows = connection.execute(_ROWS, asked).all()
    superseded, woken = [], set()
    for row in rows:
        news = instead(transaction, row, [other for other in fallback if other != row.channel])
        superseded += [old.channel for old in enqueue(transaction, news).superseded]
        woken |= {new.channel for new in news}
    if rows:
        connection.execute(_GIVE_UP, {"seqs": [row.seq for row in rows], "at": now})
    told = FellBack(tuple(superseded), tuple(sorted(woken)), more=bool(rows))
    return told, [row.channel for row in rows]
