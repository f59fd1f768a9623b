"""Retention: what is over and old, or too much, goes in small steps, so that nobody waits for it.

Never what is still to be delivered, nor what says on which channels an open incident is told, and what to reply to
there. What was given up goes by age alone: a person must see it. An event stays while a delivery tells of it and while
it is its incident's latest, against which a repeat is compared; a closed incident goes with its last event.

SQLite's file does not shrink: freed pages are used again. (VACUUM would lock everybody out while it copies the file.)
"""

import asyncio
from collections.abc import Callable, Collection
from functools import partial
from typing import Any, Final, NamedTuple

import structlog
from sqlalchemy import Connection, Row, and_, bindparam, delete, exists, func, or_, select

from services.relay.outbox.audit import prune_audit
from services.relay.outbox.needed import NOT_TOLD, TOLD, Needed, needed, said_again
from services.relay.outbox.schema import State, attempts, deliveries, events, incidents
from services.relay.outbox.store import Store
from services.relay.outbox.together import Transaction
from services.relay.outbox.waiting import StoreUnavailableError

STEP: Final = 100
"""Rows that one transaction looks at: a few milliseconds of the writer's time."""
_EVERY: Final = 300.0
"""Seconds between two rounds."""
_PAUSE: Final = 0.05
"""Seconds between two steps, in which the writer belongs to the others."""

_of = deliveries.c
log = structlog.get_logger(__name__)


class Pruned(NamedTuple):
    """How many rows went."""

    deliveries: int
    events: int


class _Bounds(NamedTuple):
    """The newest that are too many; 0 where nothing is."""

    delivery: int
    event: int


class _Step(NamedTuple):
    pruned: int
    last: int
    """The last row that it looked at."""
    more: bool
    """Whether younger rows may have to go, too."""


_waiting = deliveries.alias("waiting")
_GOES_ON: Final = or_(
    exists().where(incidents.c.id == _of.incident_id, incidents.c.episode == _of.episode, incidents.c.open == 1),
    exists().where(
        _waiting.c.channel == _of.channel,
        _waiting.c.incident_id == _of.incident_id,
        _waiting.c.finished_at.is_(None),
    ),
)
"""Its incident is open, or something of it is still to be told on its channel."""
_DELIVERIES: Final = (
    select(_of.seq, _of.incident_id, _of.episode, _of.channel, _of.state, _of.accepted_at, _of.finished_at)
    .add_columns(_GOES_ON.label("goes_on"))
    .where(_of.seq > bindparam("after"))
    .order_by(_of.seq)
    .limit(STEP)
)
_EVENTS: Final = (
    select(events.c.seq, events.c.accepted_at)
    .where(events.c.seq > bindparam("after"))
    .order_by(events.c.seq)
    .limit(STEP)
)
_UNUSED_EVENTS: Final = (
    select(events.c.seq, events.c.incident_id)
    .outerjoin(incidents, and_(incidents.c.id == events.c.incident_id, incidents.c.latest_event == events.c.seq))
    .where(
        events.c.seq > bindparam("after"),
        events.c.seq <= bindparam("last"),
        ~exists().where(_of.event_seq == events.c.seq),
        or_(
            incidents.c.id.is_(None),
            and_(
                incidents.c.open == 0,
                events.c.accepted_at < bindparam("cutoff"),
                ~exists().where(_of.incident_id == events.c.incident_id),
            ),
        ),
    )
)
"""Told of by no delivery of their own; the latest ones only with an incident that is over, old, and told no more."""


async def pruning(store: Store, max_age: float, max_deliveries: int, *, every: float = _EVERY) -> None:
    """Prunes now and then until it is cancelled; while the store is unavailable it waits for its next round.

    Args:
        store: the outbox.
        max_age: seconds for which what is over is kept.
        max_deliveries: how many that were told are kept.
        every: seconds between two rounds.
    """
    while True:
        try:
            pruned = await prune(store, max_age, max_deliveries)
            if pruned != Pruned(0, 0):
                log.info("pruned", deliveries=pruned.deliveries, events=pruned.events)
        except StoreUnavailableError as error:
            log.warning("nothing more is pruned in this round", problem=str(error))
        except Exception:
            log.exception("a defect in the retention; it goes on")
        await asyncio.sleep(every)


async def prune(store: Store, max_age: float, max_deliveries: int) -> Pruned:
    """One round. Raises StoreUnavailableError: what was pruned before it stays so."""
    cutoff = await store.run(lambda transaction: transaction.now) - max_age
    bounds = await store.read(partial(_bounds, max_deliveries))
    gone = await _walk(store, _Deliveries(cutoff, bounds.delivery, await needed(store, cutoff)).step)
    not_told = await needed(store, cutoff)
    superfluous = await said_again(store, not_told, cutoff)
    unused = await _walk(store, _Events(cutoff, bounds.event, not_told, superfluous).step)
    await prune_audit(store, cutoff, STEP)
    return Pruned(gone, unused)


async def _walk(store: Store, step: Callable[[int, Transaction], _Step]) -> int:
    """Every step from the oldest row on, each in a transaction of its own; gives how many rows went."""
    gone, after = 0, 0
    while True:
        done = await store.run(partial(step, after))
        gone += done.pruned
        if not done.more:
            return gone
        after = done.last
        await asyncio.sleep(_PAUSE)


def _bounds(max_deliveries: int, connection: Connection) -> _Bounds:
    everything = connection.execute(select(func.count()).select_from(deliveries)).scalar_one()
    others = select(func.count()).select_from(deliveries).where(_of.state.in_(NOT_TOLD))
    too_many = everything - connection.execute(others).scalar_one() - max_deliveries
    if too_many <= 0:
        return _Bounds(0, 0)
    told = select(_of.seq, _of.event_seq).where(_of.state.in_(TOLD)).order_by(_of.seq)
    newest = connection.execute(told.offset(too_many - 1).limit(1)).first()
    return _Bounds(0, 0) if newest is None else _Bounds(*newest)  # PostgreSQL: another replica may be at it, too


class _Deliveries:
    """The steps of one walk over the deliveries. A step may be done again: the store repeats what was in the way."""

    def __init__(self, cutoff: float, bound: int, not_told: Collection[str]) -> None:
        self._cutoff = cutoff
        self._bound = bound
        self._not_told = not_told
        # Of what goes on: the oldest delivery for each (incident, episode, channel), and the oldest that arrived. They
        # say that the channel is told of the incident, and what it replies to.
        self._first: dict[tuple[str, int, str], int] = {}
        self._arrived: dict[tuple[str, int, str], int] = {}

    def step(self, after: int, transaction: Transaction) -> _Step:
        connection = transaction.connection
        rows = connection.execute(_DELIVERIES, {"after": after}).all()
        if not rows:
            return _Step(0, after, more=False)
        old = [row.seq for row in rows if self._is_over(row) and not self._is_needed(row)]
        if old:
            connection.execute(delete(attempts).where(attempts.c.delivery_seq.in_(old)))
            connection.execute(delete(deliveries).where(_of.seq.in_(old)))
        last = rows[-1]
        return _Step(len(old), last.seq, more=last.seq < self._bound or last.accepted_at < self._cutoff)

    def _is_over(self, row: Row[Any]) -> bool:
        if row.finished_at is None:
            return False
        return row.finished_at < self._cutoff or (row.seq <= self._bound and row.state in TOLD)

    def _is_needed(self, row: Row[Any]) -> bool:
        if not row.goes_on and row.incident_id not in self._not_told:
            return False
        about = (row.incident_id, row.episode, row.channel)
        first = self._first.setdefault(about, row.seq)
        arrived = self._arrived.setdefault(about, row.seq) if row.state == State.DELIVERED else None
        return row.seq in (first, arrived)


class _Events:
    """The steps of one walk over the events."""

    def __init__(self, cutoff: float, bound: int, not_told: Needed, superfluous: Collection[int]) -> None:
        self._cutoff = cutoff
        self._bound = bound
        self._first = {incident: min(each.start for each in ranges) for incident, ranges in not_told.items()}
        self._superfluous = superfluous

    def step(self, after: int, transaction: Transaction) -> _Step:
        connection = transaction.connection
        rows = connection.execute(_EVENTS, {"after": after}).all()
        if not rows:
            return _Step(0, after, more=False)
        last = rows[-1]
        found = connection.execute(_UNUSED_EVENTS, {"after": after, "last": last.seq, "cutoff": self._cutoff})
        unused = {seq: incident for seq, incident in found if not self._is_needed(seq, incident)}
        if unused:
            over = incidents.c.id.in_(unused.values()), incidents.c.latest_event.in_(unused), incidents.c.open == 0
            connection.execute(delete(incidents).where(*over))
            connection.execute(delete(events).where(events.c.seq.in_(unused)))
        return _Step(len(unused), last.seq, more=last.seq < self._bound or last.accepted_at < self._cutoff)

    def _is_needed(self, seq: int, incident: str) -> bool:
        return incident in self._first and seq >= self._first[incident] and seq not in self._superfluous
