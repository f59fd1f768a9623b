"""Retention: what is over and old, or too much, goes in small steps, so that nobody waits for it.

Never what is still to be delivered, nor what says on which channels an open incident is told, and what to reply to
there. What was given up goes by age alone: a person must see it. An event stays while a delivery tells of it and while
it is its incident's latest, against which a repeat is compared; a closed incident goes with its last event.

Where the outbox comes near its limit in bytes, what is over goes before its age: the oldest first, what was given up
and refused webhooks included. What is younger than the window in which a twin of it may come stays all the same; so
does the audit, since whoever may send webhooks fills the outbox.

SQLite's file does not shrink: freed pages are used again. (VACUUM would lock everybody out while it copies the file.)
"""

import asyncio
from collections.abc import Callable, Collection, Sequence
from functools import partial
from itertools import accumulate
from typing import Any, Final, NamedTuple

import structlog
from sqlalchemy import Connection, Row, and_, bindparam, delete, exists, func, or_, select, union_all

from services.relay.outbox.audit import prune_audit
from services.relay.outbox.byte_limit import GOAL, ROW_BYTES, START, ByteLimit
from services.relay.outbox.needed import NOT_TOLD, TOLD, Needed, needed, said_again
from services.relay.outbox.schema import State, attempts, deliveries, events, incidents, quarantine
from services.relay.outbox.store import Store
from services.relay.outbox.together import Transaction
from services.relay.outbox.waiting import StoreUnavailableError

STEP: Final = 100
"""Rows that one transaction looks at: a few milliseconds of the writer's time."""
_LARGE_STEP: Final = 1000
"""The same where room is needed."""
_STEP_BYTES: Final = 8 * 1024 * 1024
"""Bytes of events after which a transaction looks at no more of them."""
AUDIT_ROWS: Final = 100_000
"""Entries of the audit that are kept."""
_EVERY: Final = 300.0
"""Seconds between two rounds."""
_MEASURED_EVERY: Final = 30.0
"""Seconds between two measurements, where little is accepted."""
_SHARE: Final = 0.05
"""Of the limit in bytes: as much is dropped at a time, at least."""
_PAUSE: Final = 0.05
"""Seconds between two steps, in which the writer belongs to the others."""

_of = deliveries.c
log = structlog.get_logger(__name__)


class Pruned(NamedTuple):
    """How many rows went."""

    deliveries: int
    events: int
    refused: int = 0
    """Of webhooks."""


class _Pace(NamedTuple):
    rows: int
    """That one transaction looks at."""
    pause: float


_CALM: Final = _Pace(STEP, _PAUSE)
_QUICK: Final = _Pace(_LARGE_STEP, _PAUSE / 5)


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
    .limit(bindparam("rows"))
)
_EVENT_BYTES: Final = func.length(events.c.event) + func.length(events.c.body)
_EVENTS: Final = (
    select(events.c.seq, events.c.accepted_at, _EVENT_BYTES.label("size"))
    .where(events.c.seq > bindparam("after"))
    .order_by(events.c.seq)
    .limit(bindparam("rows"))
)
_BYTES_AT: Final = union_all(
    select(events.c.accepted_at.label("at"), (_EVENT_BYTES + ROW_BYTES).label("size")),
    select(_of.finished_at, func.coalesce(func.length(_of.payload), 0) + ROW_BYTES).where(_of.finished_at.is_not(None)),
    select(quarantine.c.received_at, func.length(quarantine.c.body) + ROW_BYTES),
).subquery()
_SUMS: Final = (
    select(_BYTES_AT.c.at, func.sum(_BYTES_AT.c.size).over(order_by=_BYTES_AT.c.at).label("sum"))
    .where(_BYTES_AT.c.at >= bindparam("after"))
    .subquery()
)
_UP_TO: Final = select(func.min(_SUMS.c.at)).where(_SUMS.c.sum >= bindparam("size"))
_A_MOMENT: Final = 1e-3
"""Seconds: what came at a time goes with a cutoff behind it."""
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


async def pruning(
    store: Store,
    max_age: float,
    max_deliveries: int,
    limit: ByteLimit | None = None,
    *,
    young: float = 0.0,
    every: float = _EVERY,
) -> None:
    """Prunes now and then until it is cancelled; while the store is unavailable it waits for its next round.

    Args:
        store: the outbox.
        max_age: seconds for which what is over is kept.
        max_deliveries: how many that were told are kept.
        limit: of its bytes.
        young: seconds for which what is over is kept whatever its bytes are.
        every: seconds between two rounds.
    """
    limit = limit or ByteLimit()
    clock = asyncio.get_running_loop().time
    due = clock()
    while True:
        try:
            if clock() >= due:
                due = clock() + every
                _tell(await prune(store, max_age, max_deliveries))
            _tell(await prune_bytes(store, limit, young))
        except StoreUnavailableError as error:
            log.warning("nothing more is pruned in this round", problem=str(error))
        except Exception:
            log.exception("a defect in the retention; it goes on")
        await limit.wait(min(_MEASURED_EVERY, max(0.0, due - clock())))


async def prune(store: Store, max_age: float, max_deliveries: int) -> Pruned:
    """One round. Raises StoreUnavailableError: what was pruned before it stays so."""
    cutoff = await store.run(lambda transaction: transaction.now) - max_age
    gone = await _prune(store, cutoff, await store.read(partial(_bounds, max_deliveries)))
    await prune_audit(store, cutoff, AUDIT_ROWS, STEP)
    return gone


async def prune_bytes(store: Store, limit: ByteLimit, young: float) -> Pruned:
    """Measures, and drops the oldest of what is over where that is near the limit. Raises StoreUnavailableError."""
    await limit.measure(store)
    if not limit.most or limit.used <= START * limit.most:
        limit.round_ended(stuck=False)
        return Pruned(0, 0)
    gone, cutoff, stuck = Pruned(0, 0), 0.0, False
    while limit.used > GOAL * limit.most and not stuck:
        newest = await store.run(lambda transaction: transaction.now) - young
        wanted = max(limit.used - GOAL * limit.most, _SHARE * limit.most)
        end: float | None = await store.read(partial(_end_of_the_oldest, cutoff, wanted))
        cutoff = newest if end is None else min(newest, end)
        there, taken = limit.used, limit.taken
        more = await _prune(store, cutoff, _Bounds(0, 0), _QUICK)
        gone = Pruned(*map(sum, zip(gone, more, strict=True)))
        await limit.measure(store)
        freed = there + limit.taken - taken - limit.used
        stuck = cutoff >= newest and freed < _SHARE * limit.most
    limit.round_ended(stuck=stuck and limit.used > START * limit.most)
    return gone


async def _prune(store: Store, cutoff: float, bounds: _Bounds, pace: _Pace = _CALM) -> Pruned:
    gone = await _walk(
        store, _Deliveries(cutoff, bounds.delivery, await needed(store, cutoff), pace.rows).step, pace.pause
    )
    not_told = await needed(store, cutoff)
    superfluous = await said_again(store, not_told, cutoff)
    unused = await _walk(store, _Events(cutoff, bounds.event, not_told, superfluous, pace.rows).step, pace.pause)
    old = delete(quarantine).where(quarantine.c.received_at < cutoff)
    refused = await store.run(lambda transaction: transaction.connection.execute(old).rowcount)
    return Pruned(gone, unused, refused)


def _tell(pruned: Pruned) -> None:
    if pruned != Pruned(0, 0):
        log.info("pruned", deliveries=pruned.deliveries, events=pruned.events, refused=pruned.refused)


def _end_of_the_oldest(after: float, size: float, connection: Connection) -> float | None:
    """When so many bytes of what may be over had come, from `after` on; None where there are fewer."""
    found = connection.execute(_UP_TO, {"after": after, "size": size}).scalar()
    return None if found is None else found + _A_MOMENT


async def _walk(store: Store, step: Callable[[int, Transaction], _Step], pause: float) -> int:
    """Every step from the oldest row on, each in a transaction of its own; gives how many rows went."""
    gone, after = 0, 0
    while True:
        done = await store.run(partial(step, after))
        gone += done.pruned
        if not done.more:
            return gone
        after = done.last
        await asyncio.sleep(pause)


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

    def __init__(self, cutoff: float, bound: int, not_told: Collection[str], rows: int = STEP) -> None:
        self._rows = rows
        self._cutoff = cutoff
        self._bound = bound
        self._not_told = not_told
        # Of what goes on: the oldest delivery for each (incident, episode, channel), and the oldest that arrived. They
        # say that the channel is told of the incident, and what it replies to.
        self._first: dict[tuple[str, int, str], int] = {}
        self._arrived: dict[tuple[str, int, str], int] = {}

    def step(self, after: int, transaction: Transaction) -> _Step:
        connection = transaction.connection
        rows = connection.execute(_DELIVERIES, {"after": after, "rows": self._rows}).all()
        if not rows:
            return _Step(0, after, more=False)
        old = [row.seq for row in rows if self._is_over(row) and not self._is_needed(row)]
        if old:
            connection.execute(delete(attempts).where(attempts.c.delivery_seq.in_(old)))
            connection.execute(delete(deliveries).where(_of.seq.in_(old)))
        last = rows[-1]
        return _Step(len(old), last.seq, _goes_further(last, self._bound, self._cutoff, transaction.now))

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

    def __init__(
        self, cutoff: float, bound: int, not_told: Needed, superfluous: Collection[int], rows: int = STEP
    ) -> None:
        self._rows = rows
        self._cutoff = cutoff
        self._bound = bound
        self._first = {incident: min(each.start for each in ranges) for incident, ranges in not_told.items()}
        self._superfluous = superfluous

    def step(self, after: int, transaction: Transaction) -> _Step:
        connection = transaction.connection
        rows = _of_few_bytes(connection.execute(_EVENTS, {"after": after, "rows": self._rows}).all())
        if not rows:
            return _Step(0, after, more=False)
        last = rows[-1]
        found = connection.execute(_UNUSED_EVENTS, {"after": after, "last": last.seq, "cutoff": self._cutoff})
        unused = {seq: incident for seq, incident in found if not self._is_needed(seq, incident)}
        if unused:
            over = incidents.c.id.in_(unused.values()), incidents.c.latest_event.in_(unused), incidents.c.open == 0
            connection.execute(delete(incidents).where(*over))
            connection.execute(delete(events).where(events.c.seq.in_(unused)))
        return _Step(len(unused), last.seq, _goes_further(last, self._bound, self._cutoff, transaction.now))

    def _is_needed(self, seq: int, incident: str) -> bool:
        return incident in self._first and seq >= self._first[incident] and seq not in self._superfluous


def _goes_further(last: Row[Any], bound: int, cutoff: float, now: float) -> bool:
    """Whether rows behind this one may have to go: what came while the clock was ahead says nothing of those."""
    return bool(last.seq < bound or last.accepted_at < cutoff or last.accepted_at > now)


def _of_few_bytes(rows: Sequence[Any]) -> Sequence[Any]:
    """The first ones, as many as one transaction may drop; one at least."""
    sums = accumulate(row.size for row in rows)
    return [row for row, total in zip(rows, sums, strict=True) if total - row.size < _STEP_BYTES]
