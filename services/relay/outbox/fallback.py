"""What waits for a channel that refuses everything → those that stand in for it: at once, in order, each event once.

So does, after a while, what waits for a channel on which no replica delivers any more: a webhook may have been accepted
by the configuration of before, and nobody else would ever tell of it.

It goes on waiting for its own channel, too. The delivery records how far its events fell back (`fallback_up_to`), so
that each step finds the next ones. An event that a fallback channel delivers anyway is not repeated there.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

from sqlalchemy import Connection, Row, bindparam, exists, or_, select, update

from services.relay.outbox.engine import dialect
from services.relay.outbox.engine.batching import Transaction
from services.relay.outbox.engine.store import Store
from services.relay.outbox.merge import NewDelivery, enqueue_deliveries, lock_incidents
from services.relay.outbox.tables import WAITING, channels, deliveries, events, incidents

FALLBACK_STEP: Final = 32
"""How many deliveries are handed on in one transaction, so that a channel for which thousands wait holds nobody up."""

UNSERVED_AFTER: Final = 300.0
"""Seconds for which that is left to others: another replica may have been reloaded before this one."""

_delivery = deliveries.c
_UNSERVED_CHANNELS: Final = (
    select(_delivery.channel)
    .distinct()
    .where(_delivery.finished_at.is_(None), _delivery.channel.not_in(bindparam("configured", expanding=True)))
    .where(_delivery.oldest_accepted_at < bindparam("before"))
    .where(~exists().where(channels.c.name == _delivery.channel, channels.c.served_at >= bindparam("before")))
)
_NOT_FALLEN_BACK: Final = (
    _delivery.finished_at.is_(None),
    or_(
        _delivery.state.in_([state.value for state in WAITING]), _delivery.due_at <= bindparam("now")
    ),  # or its lease ended
    or_(_delivery.fallback_up_to.is_(None), _delivery.fallback_up_to < _delivery.event_seq),
    or_(
        _delivery.maybe_delivered_up_to.is_(None), _delivery.due_at <= bindparam("now")
    ),  # else it is held back, see `restored`
)
_FIND_NEXT: Final = (
    select(_delivery.seq, _delivery.incident_id)
    .where(_delivery.channel == bindparam("channel"), *_NOT_FALLEN_BACK)
    .order_by(_delivery.due_at, _delivery.seq)
    .limit(FALLBACK_STEP)
)
_LOCK_DELIVERIES: Final = (
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
    .where(_delivery.seq.in_(bindparam("seqs", expanding=True)), *_NOT_FALLEN_BACK)
    .order_by(_delivery.seq)
    .with_for_update()
)
_MARK_FALLEN_BACK: Final = (
    update(deliveries)
    .where(_delivery.seq.in_(bindparam("seqs", expanding=True)))
    .values(fallback_up_to=_delivery.event_seq)
)
_EVENT_EPISODE: Final = select(_delivery.episode).where(_delivery.event_seq == events.c.seq).limit(1).scalar_subquery()
_MISSING_EVENTS: Final = (
    select(events.c.seq, _EVENT_EPISODE.label("episode"))
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
_CURRENT_STATE: Final = select(incidents.c.episode, incidents.c.latest_event_seq).where(
    incidents.c.id == bindparam("incident")
)


@dataclass(frozen=True, slots=True)
class FallbackResult:
    """What one step handed on."""

    superseded_channels: tuple[str, ...] = ()
    """The channel of each delivery that was merged into a new one."""
    channels_to_wake: tuple[str, ...] = ()
    """The channels that have something new to deliver."""
    has_more: bool = False
    """Whether there may be more to hand on."""


async def fall_back(store: Store, channel: str, fallback_channels: Sequence[str]) -> FallbackResult:
    """Hands on some of what waits for a channel that refuses everything; where there is nothing, nobody waits for it.

    Args:
        store: the outbox.
        channel: that refuses.
        fallback_channels: that tell it instead.

    Raises:
        StoreUnavailableError: it is not known to be committed.
    """
    if not fallback_channels:
        return FallbackResult()
    found = await store.read(
        lambda connection: _find_next(connection, channel, dialect.read_clock(connection, store.clock))
    )
    if not found:
        return FallbackResult()
    return await store.run(partial(_fall_back_step, found=found, others=fallback_channels))


async def fall_back_unserved(
    store: Store, configured_channels: Collection[str], fallback_channels: Sequence[str]
) -> FallbackResult:
    """Hands on what has waited for `UNSERVED_AFTER` for channels that no replica has served for as long; all of it.

    Args:
        store: the outbox.
        configured_channels: the channels of this one.
        fallback_channels: that tell it instead.

    Raises:
        StoreUnavailableError: the steps before this one are done.
    """
    superseded: tuple[str, ...] = ()
    woken: set[str] = set()
    for channel in await store.read(lambda connection: _read_unserved_channels(connection, configured_channels, store)):
        more = True
        while more:
            told = await fall_back(store, channel, fallback_channels)
            superseded, more = superseded + told.superseded_channels, told.has_more
            woken.update(told.channels_to_wake)
    return FallbackResult(superseded, tuple(sorted(woken)))


def _read_unserved_channels(connection: Connection, configured: Collection[str], store: Store) -> Sequence[str]:
    before = dialect.read_clock(connection, store.clock) - UNSERVED_AFTER
    return connection.execute(_UNSERVED_CHANNELS, {"configured": sorted(configured), "before": before}).scalars().all()


def _find_next(connection: Connection, channel: str, now: float) -> Sequence[Row[*tuple[Any, ...]]]:
    return connection.execute(_FIND_NEXT, {"channel": channel, "now": now}).all()


def _fall_back_step(
    transaction: Transaction, found: Sequence[Row[*tuple[Any, ...]]], others: Sequence[str]
) -> FallbackResult:
    connection = transaction.connection
    lock_incidents(transaction, {row.incident_id for row in found})
    asked = {"seqs": [row.seq for row in found], "now": transaction.now}
    superseded, woken = [], set()
    rows = connection.execute(_LOCK_DELIVERIES, asked).all()
    for row in rows:  # one by one, since where every event is told by itself, several may be of one incident
        news = build_fallback_deliveries(transaction, row, others)
        superseded += [old.channel for old in enqueue_deliveries(transaction, news).superseded_rows]
        woken |= {new.channel for new in news}
    if rows:
        connection.execute(_MARK_FALLEN_BACK, {"seqs": [row.seq for row in rows]})
    return FallbackResult(tuple(superseded), tuple(sorted(woken)), has_more=len(found) == FALLBACK_STEP)


def build_fallback_deliveries(
    transaction: Transaction, row: Row[*tuple[Any, ...]], fallback_channels: Sequence[str]
) -> list[NewDelivery]:
    """What other channels tell of a delivery, as far as they do not tell it anyway.

    Args:
        transaction: the one under way, which holds the incident.
        row: the delivery, with channel, incident_id, episode, event_seq, first_event_seq and fallback_up_to.
        fallback_channels: the names of the channels.
    """
    note = f"{row.channel} takes no messages at the moment, so this comes here as well"
    # What was handed on before is not even looked for: an incident that flaps for a day has hundreds of events.
    span = {
        "incident": row.incident_id,
        "first": max(row.first_event_seq, (row.fallback_up_to or 0) + 1),
        "last": row.event_seq,
    }
    news = []
    for channel in fallback_channels:
        untold = transaction.connection.execute(_MISSING_EVENTS, {**span, "channel": channel}).all()
        if channel in transaction.unmerged_channels:
            # One that waits may tell events of several episodes.
            for event, episode in untold:
                news.append(NewDelivery(event, event, row.incident_id, episode or row.episode, channel, note))
        elif untold:
            current = transaction.connection.execute(_CURRENT_STATE, {"incident": row.incident_id}).one()
            # Something newer may have been told there already: so it tells how things stand now.
            news.append(
                NewDelivery(current.latest_event_seq, untold[0].seq, row.incident_id, current.episode, channel, note)
            )
    return news
