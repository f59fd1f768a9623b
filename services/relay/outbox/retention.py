"""Retention: what is over and old, or too much, goes in small steps, so that nobody waits for it.

Never what is still to be delivered, nor what says on which channels an open incident is told, and what to reply to
there. What was given up goes by age alone: a person must see it. An event stays while a delivery tells of it and while
it is its incident's latest, against which a repeat is compared; a closed incident goes with its last event.

Where the outbox comes near its limit in bytes, what is over goes before its age: the oldest first, what was given up
and refused webhooks included. What is younger than the window in which a twin of it may come stays all the same; so
does the audit, since whoever may send webhooks fills the outbox.

SQLite's file does not shrink: freed pages are used again. (VACUUM would lock everybody out while it copies the file.)

Which events retention must leave for what was not told: what waits, and what was given up and may be sent again.

Such a delivery tells every event from its first to its last. Sent again, it tells how its incident stands by then, so
it needs what came after, too: else an alert that ended there would be told as if it still fired. But where newer events
speak of all alerts of one, that one adds nothing. So what is kept grows with the alerts of an incident, not with its
events.

"""

import asyncio
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from itertools import accumulate
from typing import Any, Final, NamedTuple

import structlog
from sqlalchemy import Connection, Row, Select, and_, bindparam, delete, exists, func, or_, select, union_all

from services.relay.model import collect_digests, decode_event
from services.relay.outbox.audit import prune_audit
from services.relay.outbox.byte_limit import PRUNE_ABOVE, PRUNE_DOWN_TO, ROW_OVERHEAD, ByteLimit
from services.relay.outbox.engine.batching import Transaction
from services.relay.outbox.engine.store import Store
from services.relay.outbox.engine.work_queue import StoreUnavailableError
from services.relay.outbox.tables import (
    IS_UNSETTLED,
    SETTLED,
    State,
    attempts,
    deliveries,
    events,
    incidents,
    quarantine,
)

PRUNE_STEP: Final = 100
"""Rows that one transaction looks at: a few milliseconds of the writer's time."""
_FAST_PRUNE_STEP: Final = 1000
"""The same where room is needed."""
_STEP_BYTES: Final = 8 * 1024 * 1024
"""Bytes of events after which a transaction looks at no more of them."""
AUDIT_ROWS: Final = 100_000
"""Entries of the audit that are kept."""
_PRUNE_INTERVAL: Final = 300.0
"""Seconds between two rounds."""
_MEASURE_INTERVAL: Final = 30.0
"""Seconds between two measurements, where little is accepted."""
_MINIMUM_SHARE: Final = 0.05
"""Of the limit in bytes: as much is dropped at a time, at least."""
_PAUSE: Final = 0.05
"""Seconds between two steps, in which the writer belongs to the others."""

UnsettledRanges = Mapping[str, Sequence[range]]
"""By incident: for each delivery that is not told, the events from its first to its last."""
_delivery = deliveries.c
log = structlog.get_logger(__name__)


class PruneResult(NamedTuple):
    """How many rows went."""

    deliveries: int
    events: int
    quarantined: int = 0
    """Of webhooks."""


class _StepPlan(NamedTuple):
    rows: int
    """That one transaction looks at."""
    pause: float


_NORMAL: Final = _StepPlan(PRUNE_STEP, _PAUSE)
_FAST: Final = _StepPlan(_FAST_PRUNE_STEP, _PAUSE / 5)


class _Excess(NamedTuple):
    """The newest that are too many; 0 where nothing is."""

    last_delivery_seq: int
    last_event_seq: int


class _StepResult(NamedTuple):
    pruned: int
    last_seq: int
    """The last row that it looked at."""
    has_more: bool
    """Whether younger rows may have to go, too."""


_waiting = deliveries.alias("waiting")
_IS_ACTIVE: Final = or_(
    exists().where(
        incidents.c.id == _delivery.incident_id, incidents.c.episode == _delivery.episode, incidents.c.is_open == 1
    ),
    exists().where(
        _waiting.c.channel == _delivery.channel,
        _waiting.c.incident_id == _delivery.incident_id,
        _waiting.c.finished_at.is_(None),
    ),
)
"""Its incident is open, or something of it is still to be told on its channel."""
_READ_DELIVERIES: Final = (
    select(
        _delivery.seq,
        _delivery.incident_id,
        _delivery.episode,
        _delivery.channel,
        _delivery.state,
        _delivery.accepted_at,
        _delivery.finished_at,
    )
    .add_columns(_IS_ACTIVE.label("goes_on"))
    .where(_delivery.seq > bindparam("after"))
    .order_by(_delivery.seq)
    .limit(bindparam("rows"))
)
_EVENT_BYTES: Final = func.length(events.c.event) + func.length(events.c.body)
_READ_EVENTS: Final = (
    select(events.c.seq, events.c.accepted_at, _EVENT_BYTES.label("size"))
    .where(events.c.seq > bindparam("after"))
    .order_by(events.c.seq)
    .limit(bindparam("rows"))
)
_BYTES_BY_TIME: Final = union_all(
    select(events.c.accepted_at.label("at"), (_EVENT_BYTES + ROW_OVERHEAD).label("size")),
    select(_delivery.finished_at, func.coalesce(func.length(_delivery.payload), 0) + ROW_OVERHEAD).where(
        _delivery.finished_at.is_not(None)
    ),
    select(quarantine.c.received_at, func.length(quarantine.c.body) + ROW_OVERHEAD),
).subquery()
_RUNNING_TOTALS: Final = (
    select(_BYTES_BY_TIME.c.at, func.sum(_BYTES_BY_TIME.c.size).over(order_by=_BYTES_BY_TIME.c.at).label("sum"))
    .where(_BYTES_BY_TIME.c.at >= bindparam("after"))
    .subquery()
)
_CUTOFF_FOR_SIZE: Final = select(func.min(_RUNNING_TOTALS.c.at)).where(_RUNNING_TOTALS.c.sum >= bindparam("size"))
_EPSILON: Final = 1e-3
"""Seconds: what came at a time goes with a cutoff behind it."""
_FIND_UNUSED_EVENTS: Final = (
    select(events.c.seq, events.c.incident_id)
    .outerjoin(incidents, and_(incidents.c.id == events.c.incident_id, incidents.c.latest_event_seq == events.c.seq))
    .where(
        events.c.seq > bindparam("after"),
        events.c.seq <= bindparam("last"),
        ~exists().where(_delivery.event_seq == events.c.seq),
        or_(
            incidents.c.id.is_(None),
            and_(
                incidents.c.is_open == 0,
                events.c.accepted_at < bindparam("cutoff"),
                ~exists().where(_delivery.incident_id == events.c.incident_id),
            ),
        ),
    )
)
"""Told of by no delivery of their own; the latest ones only with an incident that is over, old, and told no more."""


async def run_retention(
    store: Store,
    max_age: float,
    max_deliveries: int,
    limit: ByteLimit | None = None,
    *,
    min_age: float = 0.0,
    interval: float = _PRUNE_INTERVAL,
) -> None:
    """Prunes now and then until it is cancelled; while the store is unavailable it waits for its next round.

    Args:
        store: the outbox.
        max_age: seconds for which what is over is kept.
        max_deliveries: how many that were told are kept.
        limit: of its bytes.
        min_age: seconds for which what is over is kept whatever its bytes are.
        interval: seconds between two rounds.
    """
    limit = limit or ByteLimit()
    clock = asyncio.get_running_loop().time
    due = clock()
    while True:
        try:
            if clock() >= due:
                due = clock() + interval
                _log_pruned(await prune_by_age(store, max_age, max_deliveries))
            _log_pruned(await prune_to_size(store, limit, min_age))
        except StoreUnavailableError as error:
            log.warning("pruning stopped until the next round", error=str(error))
        except Exception:
            log.exception("unexpected error in retention; retention continues")
        await limit.wait_near_limit(min(_MEASURE_INTERVAL, max(0.0, due - clock())))


async def prune_by_age(store: Store, max_age: float, max_deliveries: int) -> PruneResult:
    """One round. Raises StoreUnavailableError: what was pruned before it stays so."""
    cutoff = await store.run(lambda transaction: transaction.now) - max_age
    gone = await _prune_before(store, cutoff, await store.read(partial(_find_excess, max_deliveries)))
    await prune_audit(store, cutoff, AUDIT_ROWS, PRUNE_STEP)
    return gone


async def prune_to_size(store: Store, limit: ByteLimit, min_age: float) -> PruneResult:
    """Measures, and drops the oldest of what is over where that is near the limit. Raises StoreUnavailableError."""
    await limit.measure(store)
    if not limit.max_bytes or limit.used_bytes <= PRUNE_ABOVE * limit.max_bytes:
        limit.record_pruning(nothing_to_prune=False)
        return PruneResult(0, 0)
    gone, cutoff, stuck = PruneResult(0, 0), 0.0, False
    while limit.used_bytes > PRUNE_DOWN_TO * limit.max_bytes and not stuck:
        newest = await store.run(lambda transaction: transaction.now) - min_age
        wanted = max(limit.used_bytes - PRUNE_DOWN_TO * limit.max_bytes, _MINIMUM_SHARE * limit.max_bytes)
        end: float | None = await store.read(partial(_find_cutoff, cutoff, wanted))
        cutoff = newest if end is None else min(newest, end)
        there, taken = limit.used_bytes, limit.accepted_bytes
        more = await _prune_before(store, cutoff, _Excess(0, 0), _FAST)
        gone = PruneResult(*map(sum, zip(gone, more, strict=True)))
        await limit.measure(store)
        freed = there + limit.accepted_bytes - taken - limit.used_bytes
        stuck = cutoff >= newest and freed < _MINIMUM_SHARE * limit.max_bytes
    limit.record_pruning(nothing_to_prune=stuck and limit.used_bytes > PRUNE_ABOVE * limit.max_bytes)
    return gone


async def _prune_before(store: Store, cutoff: float, bounds: _Excess, pace: _StepPlan = _NORMAL) -> PruneResult:
    gone = await _run_steps(
        store,
        _DeliveryPruner(cutoff, bounds.last_delivery_seq, await find_unsettled_ranges(store, cutoff), pace.rows).step,
        pace.pause,
    )
    not_told = await find_unsettled_ranges(store, cutoff)
    superfluous = await find_redundant_events(store, not_told, cutoff)
    unused = await _run_steps(
        store, _EventPruner(cutoff, bounds.last_event_seq, not_told, superfluous, pace.rows).step, pace.pause
    )
    old = delete(quarantine).where(quarantine.c.received_at < cutoff)
    refused = await store.run(lambda transaction: transaction.connection.execute(old).rowcount)
    return PruneResult(gone, unused, refused)


def _log_pruned(pruned: PruneResult) -> None:
    if pruned != PruneResult(0, 0):
        log.info("old rows pruned", deliveries=pruned.deliveries, events=pruned.events, quarantined=pruned.quarantined)


def _find_cutoff(after: float, size: float, connection: Connection) -> float | None:
    """When so many bytes of what may be over had come, from `after` on; None where there are fewer."""
    found = connection.execute(_CUTOFF_FOR_SIZE, {"after": after, "size": size}).scalar()
    return None if found is None else found + _EPSILON


async def _run_steps(store: Store, step: Callable[[int, Transaction], _StepResult], pause: float) -> int:
    """Every step from the oldest row on, each in a transaction of its own; gives how many rows went."""
    gone, after = 0, 0
    while True:
        done = await store.run(partial(step, after))
        gone += done.pruned
        if not done.has_more:
            return gone
        after = done.last_seq
        await asyncio.sleep(pause)


def _find_excess(max_deliveries: int, connection: Connection) -> _Excess:
    everything = connection.execute(select(func.count()).select_from(deliveries)).scalar_one()
    others = select(func.count()).select_from(deliveries).where(IS_UNSETTLED)
    too_many = everything - connection.execute(others).scalar_one() - max_deliveries
    if too_many <= 0:
        return _Excess(0, 0)
    told = select(_delivery.seq, _delivery.event_seq).where(_delivery.state.in_(SETTLED)).order_by(_delivery.seq)
    newest = connection.execute(told.offset(too_many - 1).limit(1)).first()
    return _Excess(0, 0) if newest is None else _Excess(*newest)  # PostgreSQL: another replica may be at it, too


class _DeliveryPruner:
    """The steps of one walk over the deliveries. A step may be done again: the store repeats what was in the way."""

    def __init__(self, cutoff: float, bound: int, unsettled: Collection[str], rows: int = PRUNE_STEP) -> None:
        self._rows = rows
        self._cutoff = cutoff
        self._bound = bound
        self._unsettled = unsettled
        # Of what goes on: the oldest delivery for each (incident, episode, channel), and the oldest that arrived. They
        # say that the channel is told of the incident, and what it replies to.
        self._first: dict[tuple[str, int, str], int] = {}
        self._first_delivered: dict[tuple[str, int, str], int] = {}

    def step(self, after: int, transaction: Transaction) -> _StepResult:
        connection = transaction.connection
        rows = connection.execute(_READ_DELIVERIES, {"after": after, "rows": self._rows}).all()
        if not rows:
            return _StepResult(0, after, has_more=False)
        old = [row.seq for row in rows if self._is_expired(row) and not self._must_stay(row)]
        if old:
            connection.execute(delete(attempts).where(attempts.c.delivery_seq.in_(old)))
            connection.execute(delete(deliveries).where(_delivery.seq.in_(old)))
        last = rows[-1]
        return _StepResult(len(old), last.seq, _goes_further(last, self._bound, self._cutoff, transaction.now))

    def _is_expired(self, row: Row[Any]) -> bool:
        if row.finished_at is None:
            return False
        return row.finished_at < self._cutoff or (row.seq <= self._bound and row.state in SETTLED)

    def _must_stay(self, row: Row[Any]) -> bool:
        if not row.goes_on and row.incident_id not in self._unsettled:
            return False
        about = (row.incident_id, row.episode, row.channel)
        first = self._first.setdefault(about, row.seq)
        arrived = self._first_delivered.setdefault(about, row.seq) if row.state == State.DELIVERED else None
        return row.seq in (first, arrived)


class _EventPruner:
    """The steps of one walk over the events."""

    def __init__(
        self, cutoff: float, bound: int, unsettled: UnsettledRanges, redundant: Collection[int], rows: int = PRUNE_STEP
    ) -> None:
        self._rows = rows
        self._cutoff = cutoff
        self._bound = bound
        self._first = {incident: min(each.start for each in ranges) for incident, ranges in unsettled.items()}
        self._redundant = redundant

    def step(self, after: int, transaction: Transaction) -> _StepResult:
        connection = transaction.connection
        rows = _limit_bytes(connection.execute(_READ_EVENTS, {"after": after, "rows": self._rows}).all())
        if not rows:
            return _StepResult(0, after, has_more=False)
        last = rows[-1]
        found = connection.execute(_FIND_UNUSED_EVENTS, {"after": after, "last": last.seq, "cutoff": self._cutoff})
        unused = {seq: incident for seq, incident in found if not self._must_stay(seq, incident)}
        if unused:
            over = (
                incidents.c.id.in_(unused.values()),
                incidents.c.latest_event_seq.in_(unused),
                incidents.c.is_open == 0,
            )
            connection.execute(delete(incidents).where(*over))
            connection.execute(delete(events).where(events.c.seq.in_(unused)))
        return _StepResult(len(unused), last.seq, _goes_further(last, self._bound, self._cutoff, transaction.now))

    def _must_stay(self, seq: int, incident: str) -> bool:
        return incident in self._first and seq >= self._first[incident] and seq not in self._redundant


def _goes_further(last: Row[Any], bound: int, cutoff: float, now: float) -> bool:
    """Whether rows behind this one may have to go: what came while the clock was ahead says nothing of those."""
    return bool(last.seq < bound or last.accepted_at < cutoff or last.accepted_at > now)


def _limit_bytes(rows: Sequence[Any]) -> Sequence[Any]:
    """The first ones, as many as one transaction may drop; one at least."""
    sums = accumulate(row.size for row in rows)
    return [row for row, total in zip(rows, sums, strict=True) if total - row.size < _STEP_BYTES]


_UNSETTLED_DELIVERIES: Final = (
    IS_UNSETTLED,
    or_(_delivery.finished_at.is_(None), _delivery.finished_at >= bindparam("cutoff")),
)
_READ_RANGES: Final = select(_delivery.incident_id, _delivery.first_event_seq, _delivery.event_seq).where(
    *_UNSETTLED_DELIVERIES
)
_first = (
    select(_delivery.incident_id, func.min(_delivery.first_event_seq).label("event"))
    .where(*_UNSETTLED_DELIVERIES)
    .group_by(_delivery.incident_id)
    .subquery()
)
_WITHOUT_DELIVERY: Final = ~exists().where(_delivery.event_seq == events.c.seq)
_INCIDENTS_WITH_LATER_EVENTS: Final = (
    select(events.c.incident_id)
    .distinct()
    .join(_first, and_(_first.c.incident_id == events.c.incident_id, _first.c.event < events.c.seq))
    .where(_WITHOUT_DELIVERY)
)
_NEWEST_FIRST: Final = (
    select(events.c.seq, _WITHOUT_DELIVERY.label("unused"))
    .where(events.c.incident_id == bindparam("incident"), events.c.seq >= bindparam("first"))
    .order_by(events.c.seq.desc())
)


async def find_unsettled_ranges(store: Store, cutoff: float) -> UnsettledRanges:
    """What is not told, but for what was given up before `cutoff` (unix seconds). Raises StoreUnavailableError."""
    found: dict[str, list[range]] = {}
    for incident, first, last in await store.read(partial(_read_rows, _READ_RANGES, {"cutoff": cutoff})):
        found.setdefault(incident, []).append(range(first, last + 1))
    return found


async def find_redundant_events(store: Store, unsettled: UnsettledRanges, cutoff: float) -> set[int]:
    """Events of these incidents that add nothing to what would be told. Raises StoreUnavailableError."""
    superfluous: set[int] = set()
    for (incident,) in await store.read(partial(_read_rows, _INCIDENTS_WITH_LATER_EVENTS, {"cutoff": cutoff})):
        ranges = unsettled.get(incident, ())
        first = min((each.start for each in ranges), default=0)
        spoken: set[bytes] = set()
        for seq, unused in await store.read(partial(_read_rows, _NEWEST_FIRST, {"incident": incident, "first": first})):
            alerts = await store.read(partial(_read_digests, seq))
            if alerts is None:
                continue
            if unused and alerts <= spoken and not any(seq in each for each in ranges):
                superfluous.add(seq)
            spoken |= alerts
    return superfluous


def _read_rows(query: Select[*tuple[Any, ...]], values: Mapping[str, object], connection: Connection) -> Sequence[Any]:
    return connection.execute(query, values).all()


def _read_digests(seq: int, connection: Connection) -> frozenset[bytes] | None:
    """The digests of the alerts that an event speaks of; None where it cannot be read."""
    written = connection.execute(select(events.c.event).where(events.c.seq == seq)).scalar()
    try:
        event = None if written is None else decode_event(written)
    except ValueError:
        return None
    return collect_digests(event) if event else None
