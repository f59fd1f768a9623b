"""What waits for a channel that refuses everything → those that stand in for it: at once, in order, each event once.

So does, after a while, what waits for a channel on which no replica delivers any more: a webhook may have been accepted
by the configuration of before, and nobody else would ever tell of it.

It goes on waiting for its own channel, too. How far it was handed on is noted in the delivery (`fell_back`), so that
each step finds the next ones; what another channel tells already, be it because it refused it before, is not repeated.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

from sqlalchemy import Connection, Row, bindparam, exists, or_, select, update

from services.relay.outbox import dialect
from services.relay.outbox.enqueue import New, enqueue
from services.relay.outbox.lock import lock
from services.relay.outbox.schema import WAITING, channels, deliveries, events, incidents
from services.relay.outbox.store import Store
from services.relay.outbox.together import Transaction

STEP: Final = 32
"""How many deliveries are handed on in one transaction, so that a channel for which thousands wait holds nobody up."""

GONE_AFTER: Final = 300.0
"""Seconds for which that is left to others: another replica may have been reloaded before this one."""

_of = deliveries.c
_GONE: Final = (
    select(_of.channel)
    .distinct()
    .where(_of.finished_at.is_(None), _of.channel.not_in(bindparam("configured", expanding=True)))
    .where(_of.waits_since < bindparam("before"))
    .where(~exists().where(channels.c.name == _of.channel, channels.c.served_at >= bindparam("before")))
)
_LEFT: Final = (
    _of.finished_at.is_(None),
    or_(_of.state.in_([state.value for state in WAITING]), _of.due_at <= bindparam("now")),  # or its lease ended
    or_(_of.fell_back.is_(None), _of.fell_back < _of.event_seq),
    or_(_of.maybe_told.is_(None), _of.due_at <= bindparam("now")),  # else it is held back, see `restored`
)
_NEXT: Final = (
    select(_of.seq, _of.incident_id)
    .where(_of.channel == bindparam("channel"), *_LEFT)
    .order_by(_of.due_at, _of.seq)
    .limit(STEP)
)
_ROWS: Final = (
    select(*(_of.seq, _of.channel, _of.incident_id, _of.episode, _of.event_seq, _of.first_event, _of.fell_back))
    .where(_of.seq.in_(bindparam("seqs", expanding=True)), *_LEFT)
    .order_by(_of.seq)
    .with_for_update()
)
_FELL_BACK: Final = (
    update(deliveries).where(_of.seq.in_(bindparam("seqs", expanding=True))).values(fell_back=_of.event_seq)
)
_EPISODE: Final = select(_of.episode).where(_of.event_seq == events.c.seq).limit(1).scalar_subquery()
_UNTOLD: Final = (
    select(events.c.seq, _EPISODE.label("episode"))
    .where(
        events.c.incident_id == bindparam("incident"),
        events.c.seq.between(bindparam("first"), bindparam("last")),
        ~exists().where(
            _of.incident_id == bindparam("incident"),
            _of.channel == bindparam("channel"),
            events.c.seq.between(_of.first_event, _of.event_seq),
        ),
    )
    .order_by(events.c.seq)
)
_CURRENT: Final = select(incidents.c.episode, incidents.c.latest_event).where(incidents.c.id == bindparam("incident"))


@dataclass(frozen=True, slots=True)
class FellBack:
    """What one step handed on."""

    superseded: tuple[str, ...] = ()
    """The channel of each delivery that was merged into a new one."""
    woken: tuple[str, ...] = ()
    """The channels that have something new to deliver."""
    more: bool = False
    """Whether there may be more to hand on."""


async def fall_back(store: Store, channel: str, others: Sequence[str]) -> FellBack:
    """Hands on some of what waits for a channel that refuses everything; where there is nothing, nobody waits for it.

    Args:
        store: the outbox.
        channel: that refuses.
        others: that tell it instead.

    Raises:
        StoreUnavailableError: it is not known to be committed.
    """
    if not others:
        return FellBack()
    found = await store.read(lambda connection: _next(connection, channel, dialect.now(connection, store.clock)))
    if not found:
        return FellBack()
    return await store.run(partial(_step, found=found, others=others))


async def fall_back_of_gone(store: Store, configured: Collection[str], others: Sequence[str]) -> FellBack:
    """Hands on what has waited for `GONE_AFTER` for channels that no replica has served for as long; all of it.

    Args:
        store: the outbox.
        configured: the channels of this one.
        others: that tell it instead.

    Raises:
        StoreUnavailableError: the steps before this one are done.
    """
    superseded: tuple[str, ...] = ()
    woken: set[str] = set()
    for channel in await store.read(lambda connection: _gone(connection, configured, store)):
        more = True
        while more:
            told = await fall_back(store, channel, others)
            superseded, more = superseded + told.superseded, told.more
            woken.update(told.woken)
    return FellBack(superseded, tuple(sorted(woken)))


def _gone(connection: Connection, configured: Collection[str], store: Store) -> Sequence[str]:
    before = dialect.now(connection, store.clock) - GONE_AFTER
    return connection.execute(_GONE, {"configured": sorted(configured), "before": before}).scalars().all()


def _next(connection: Connection, channel: str, now: float) -> Sequence[Row[*tuple[Any, ...]]]:
    return connection.execute(_NEXT, {"channel": channel, "now": now}).all()


def _step(transaction: Transaction, found: Sequence[Row[*tuple[Any, ...]]], others: Sequence[str]) -> FellBack:
    connection = transaction.connection
    lock(transaction, {row.incident_id for row in found})
    asked = {"seqs": [row.seq for row in found], "now": transaction.now}
    superseded, woken = [], set()
    rows = connection.execute(_ROWS, asked).all()
    for row in rows:  # one by one, since where every event is told by itself, several may be of one incident
        news = instead(transaction, row, others)
        superseded += [old.channel for old in enqueue(transaction, news).superseded]
        woken |= {new.channel for new in news}
    if rows:
        connection.execute(_FELL_BACK, {"seqs": [row.seq for row in rows]})
    return FellBack(tuple(superseded), tuple(sorted(woken)), more=len(found) == STEP)


def instead(transaction: Transaction, row: Row[*tuple[Any, ...]], others: Sequence[str]) -> list[New]:
    """What other channels tell of a delivery, as far as they do not tell it anyway.

    Args:
        transaction: the one under way, which holds the incident.
        row: the delivery, with channel, incident_id, episode, event_seq, first_event and fell_back.
        others: the names of the channels.
    """
    note = f"{row.channel} takes no messages at the moment, so this comes here as well"
    # What was handed on before is not even looked for: an incident that flaps for a day has hundreds of events.
    span = {"incident": row.incident_id, "first": max(row.first_event, (row.fell_back or 0) + 1), "last": row.event_seq}
    news = []
    for channel in others:
        untold = transaction.connection.execute(_UNTOLD, {**span, "channel": channel}).all()
        if channel in transaction.unmerged:
            # One that waits may tell events of several episodes.
            for event, episode in untold:
                news.append(New(event, event, row.incident_id, episode or row.episode, channel, note))
        elif untold:
            current = transaction.connection.execute(_CURRENT, {"incident": row.incident_id}).one()
            # Something newer may have been told there already: so it tells how things stand now.
            news.append(New(current.latest_event, untold[0].seq, row.incident_id, current.episode, channel, note))
    return news
