"""Retention: prunes by age every few minutes, and by bytes whenever the outbox comes near its limit.

Never pruned: unfinished deliveries, and those by which an open incident knows its channels and its first message there.
Dead letters go by age alone, since a person must see them. An event stays while a delivery has it and
while it is its incident's latest, against which a duplicate is compared; a closed incident goes with its last event.

An unsettled delivery waits or is dead. It needs every event from its first to its last. Sent again, it becomes the
current state of its incident, so it needs later events, too: otherwise an alert that ended in them would look as if it
still fired. But an event adds nothing if newer events have all its alerts. So what is kept grows with the alerts of an
incident, not with its events.

By bytes, finished rows go before their age, dead letters and quarantined webhooks included; rows younger than the
window in which a late twin may come stay, and so does the audit, since a sender of webhooks can fill the outbox.
SQLite's file does not shrink: freed pages are used again. (VACUUM would lock everybody out while it copies the file.)

Where a whole round leaves so many bytes that cannot be pruned that they alone come near the limit, webhooks are
refused, and Alertmanager sends them again: firing ones first, resolved ones only a quarter beyond the limit, since they
release what their incident holds. Until a round has shown that, webhooks are accepted, but only a little beyond the
limit, or beyond what was there already.
"""

import asyncio
import math
from collections.abc import Awaitable, Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import accumulate
from typing import Final, NamedTuple

import structlog
from sqlalchemy import Connection, and_, bindparam, delete, exists, func, or_, select, union_all, update

from services.relay.model import collect_hashes, decode_event
from services.relay.outbox.audit import PrunedKind, prune_audit, record_pruned
from services.relay.outbox.quarantine import delete_entries
from services.relay.outbox.store import Store, StoreUnavailableError, Transaction
from services.relay.outbox.tables import (
    DIGEST_EPISODE,
    EVENT_SIZES,
    EVENTS,
    IS_UNSETTLED,
    SETTLED,
    DeliveryState,
    EventSizeRow,
    attempts,
    deliveries,
    edits,
    events,
    incidents,
    quarantine,
)
from shared.sql.rows import RowQuery, select_rows, select_tuples, select_values

UnsettledRanges = Mapping[str, Sequence[range]]
"""By incident: for each unsettled delivery, the events from its first to its last."""


_delivery = deliveries.c
WITHOUT_DELIVERY: Final = ~exists().where(_delivery.event_seq == events.c.seq)
_UNSETTLED_DELIVERIES: Final = (
    IS_UNSETTLED,
    or_(_delivery.finished_at.is_(None), _delivery.finished_at >= bindparam("cutoff")),
)
_READ_RANGES: Final = select_tuples(
    tuple[str, int, int], select(_delivery.incident_id, _delivery.first_event_seq, _delivery.event_seq)
).where(*_UNSETTLED_DELIVERIES)
_first = (
    select(_delivery.incident_id, func.min(_delivery.first_event_seq).label("event"))
    .where(*_UNSETTLED_DELIVERIES)
    .group_by(_delivery.incident_id)
    .subquery()
)
_INCIDENTS_WITH_LATER_EVENTS: Final = RowQuery(
    str,
    select(events.c.incident_id)
    .distinct()
    .join(_first, and_(_first.c.incident_id == events.c.incident_id, _first.c.event < events.c.seq)),
).where(WITHOUT_DELIVERY)
_NEWEST_FIRST: Final = (
    select_tuples(tuple[int, bool], select(events.c.seq, WITHOUT_DELIVERY.label("is_unused")))
    .where(events.c.incident_id == bindparam("incident"), events.c.seq >= bindparam("first"))
    .order_by(events.c.seq.desc())
)
_READ_EVENT: Final = EVENTS.where(events.c.seq == bindparam("event"))


async def _find_unsettled_ranges(store: Store, cutoff: float) -> UnsettledRanges:
    """The ranges of unsettled deliveries, without dead letters from before `cutoff`."""
    found: dict[str, list[range]] = {}
    for incident, first, last in await store.read(partial(_READ_RANGES.fetch_all, values={"cutoff": cutoff})):
        found.setdefault(incident, []).append(range(first, last + 1))
    return found


async def _find_redundant_events(store: Store, unsettled: UnsettledRanges, cutoff: float) -> set[int]:
    """Events of these incidents that add nothing to what would be delivered."""
    redundant: set[int] = set()
    for incident in await store.read(partial(_INCIDENTS_WITH_LATER_EVENTS.fetch_all, values={"cutoff": cutoff})):
        ranges = unsettled.get(incident, ())
        first = min((each.start for each in ranges), default=0)
        newer: set[bytes] = set()
        values = {"incident": incident, "first": first}
        for seq, is_unused in await store.read(partial(_NEWEST_FIRST.fetch_all, values=values)):
            alerts = await store.read(partial(_read_digests, seq))
            if alerts is None:
                continue
            if is_unused and alerts <= newer and not any(seq in each for each in ranges):
                redundant.add(seq)
            newer |= alerts
    return redundant


def _read_digests(seq: int, connection: Connection) -> frozenset[bytes] | None:
    """The digests of an event's alerts, on the thread that reads; None if it is gone, or cannot be read."""
    row = _READ_EVENT.fetch_first(connection, {"event": seq})
    try:
        return None if row is None else collect_hashes(decode_event(row.event))
    except ValueError:
        return None


PRUNE_STEP: Final = 100
"""Rows that one transaction reads: a few milliseconds of the writer's time."""
_FAST_PRUNE_STEP: Final = 1000
"""The same where space is needed."""
_STEP_BYTES: Final = 8 * 1024 * 1024
"""Bytes of events after which a transaction reads no more of them."""
AUDIT_ROWS: Final = 100_000
"""Entries of the audit that are kept."""
_PAUSE: Final = 0.05
"""Seconds between two steps, in which the writer belongs to the others; a fifth of it where space is needed."""


Pruner = Callable[[Store, float], Awaitable[object]]
"""Removes the rows of a capability that are older than a time, unix seconds. Raises StoreUnavailableError."""


class PruneResult(NamedTuple):
    deliveries: int
    events: int
    quarantined: int = 0
    """Of webhooks."""


class Excess(NamedTuple):
    """The newest that are too many; 0 if nothing is."""

    last_delivery_seq: int
    last_event_seq: int


NO_EXCESS: Final = Excess(0, 0)


class _PruneStepResult(NamedTuple):
    pruned: int
    last_seq: int
    """The last row that it read."""
    has_more: bool
    """Whether younger rows may have to go, too."""


class _PrunableRow(NamedTuple):
    seq: int
    incident_id: str
    episode: int
    channel: str
    state: str
    accepted_at: float
    finished_at: float | None
    is_active: bool
    is_edited: bool


_MAX_EDIT_AGE: Final = 7 * 86400.0
"""Seconds beyond the cutoff after which nobody edits any more: its channel is no longer configured."""

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
"""Its incident is open, or something of it is still to be delivered on its channel."""
_waits_for_edit = and_(
    edits.c.channel == _delivery.channel,
    edits.c.wanted > edits.c.shown,
    edits.c.requested_at >= bindparam("cutoff") - _MAX_EDIT_AGE,
)
_IS_EDITED: Final = or_(
    exists().where(edits.c.incident_id == _delivery.incident_id, edits.c.episode == _delivery.episode, _waits_for_edit),
    exists().where(edits.c.incident_id == _delivery.digest_id, edits.c.episode == DIGEST_EPISODE, _waits_for_edit),
    exists().where(edits.c.incident_id == _delivery.named_in, edits.c.episode == DIGEST_EPISODE, _waits_for_edit),
)
"""The message of a digest that names it, or the first one of its episode, is still to be edited."""
_other = deliveries.alias("other")
_other_of_digest = select(func.min(_other.c.seq)).where(
    or_(_other.c.digest_id == edits.c.incident_id, _other.c.named_in == edits.c.incident_id),
    _other.c.seq.not_in(bindparam("old", expanding=True)),
)
_KEEP_DIGESTS: Final = (
    update(edits)
    .where(
        edits.c.delivery_seq.in_(bindparam("old", expanding=True)),
        edits.c.episode == DIGEST_EPISODE,
        _other_of_digest.scalar_subquery().is_not(None),
    )
    .values(delivery_seq=_other_of_digest.scalar_subquery())
)
"""A digest is edited as long as a delivery is there that it names."""
_READ_DELIVERIES: Final = (
    select_rows(_PrunableRow, _delivery, is_active=_IS_ACTIVE, is_edited=_IS_EDITED)
    .where(_delivery.seq > bindparam("after"))
    .order_by(_delivery.seq)
    .limit(bindparam("rows"))
)
_READ_EVENTS: Final = (
    EVENT_SIZES.where(events.c.seq > bindparam("after")).order_by(events.c.seq).limit(bindparam("rows"))
)
_FIND_UNUSED_EVENTS: Final = select_tuples(
    tuple[int, str],
    select(events.c.seq, events.c.incident_id).outerjoin(
        incidents, and_(incidents.c.id == events.c.incident_id, incidents.c.latest_event_seq == events.c.seq)
    ),
).where(
    events.c.seq > bindparam("after"),
    events.c.seq <= bindparam("last"),
    WITHOUT_DELIVERY,
    or_(
        incidents.c.id.is_(None),
        and_(
            incidents.c.is_open == 0,
            events.c.accepted_at < bindparam("cutoff"),
            ~exists().where(_delivery.incident_id == events.c.incident_id),
        ),
    ),
)
"""Without a delivery of their own; an incident's latest event only where the incident is over, old, and delivered."""

_LAST_START: Final = select_values(float, func.max(incidents.c.started_at))
_COUNT_ALL: Final = select_values(int, func.count(_delivery.seq))
_COUNT_UNSETTLED: Final = _COUNT_ALL.where(IS_UNSETTLED)
_LAST_EXCESS: Final = (
    RowQuery(Excess, select(_delivery.seq.label("last_delivery_seq"), _delivery.event_seq.label("last_event_seq")))
    .where(_delivery.state.in_(SETTLED))
    .order_by(_delivery.seq)
    .offset(bindparam("before"))
    .limit(1)
)


async def prune_by_age(
    store: Store, max_age: float, max_deliveries: int, pruners: Sequence[Pruner] = ()
) -> PruneResult:
    """One round, `pruners` last. Raises StoreUnavailableError; the steps before it are done."""
    cutoff = await store.run(lambda transaction: transaction.now) - max_age
    pruned = await prune_before(store, cutoff, await store.read(partial(_find_excess, max_deliveries)))
    await prune_audit(store, cutoff, AUDIT_ROWS, PRUNE_STEP)
    for prune in pruners:
        await prune(store, cutoff)
    return pruned


async def prune_before(store: Store, cutoff: float, bounds: Excess = NO_EXCESS, *, fast: bool = False) -> PruneResult:
    """Prunes what finished before `cutoff` (unix seconds), and the excess. Raises StoreUnavailableError."""
    rows, pause = (_FAST_PRUNE_STEP, _PAUSE / 5) if fast else (PRUNE_STEP, _PAUSE)
    unsettled = await _find_unsettled_ranges(store, cutoff)
    of_deliveries = _DeliveryPruner(cutoff, bounds.last_delivery_seq, unsettled, rows)
    pruned_deliveries = await _run_steps(store, of_deliveries.step, pause)
    unsettled = await _find_unsettled_ranges(store, cutoff)
    redundant = await _find_redundant_events(store, unsettled, cutoff)
    of_events = _EventPruner(cutoff, bounds.last_event_seq, unsettled, redundant, rows)
    pruned_events = await _run_steps(store, of_events.step, pause)
    quarantined = await store.run(partial(delete_entries, condition=quarantine.c.received_at < cutoff))
    return PruneResult(pruned_deliveries, pruned_events, quarantined)


async def _run_steps(store: Store, step: Callable[[int, Transaction], _PruneStepResult], pause: float) -> int:
    """Every step from the oldest row on, each in one transaction; gives how many rows went."""
    pruned_count, after = 0, 0
    while True:
        done = await store.run(partial(step, after))
        pruned_count += done.pruned
        if not done.has_more:
            return pruned_count
        after = done.last_seq
        await asyncio.sleep(pause)


def _find_excess(max_deliveries: int, connection: Connection) -> Excess:
    settled = _COUNT_ALL.fetch_one(connection) - _COUNT_UNSETTLED.fetch_one(connection)
    excess_count = settled - max_deliveries
    if excess_count <= 0:
        return NO_EXCESS
    # On PostgreSQL another replica may prune, too.
    return _LAST_EXCESS.fetch_first(connection, {"before": excess_count - 1}) or NO_EXCESS


class _DeliveryPruner:
    """The steps of one pass over the deliveries. A step may run twice: the store repeats a job after a conflict."""

    def __init__(self, cutoff: float, bound: int, unsettled: Collection[str], rows: int = PRUNE_STEP) -> None:
        self._rows = rows
        self._cutoff = cutoff
        self._bound = bound
        self._unsettled = unsettled
        # Of what goes on: the oldest delivery for each (incident, episode, channel), and the oldest that arrived. They
        # say that the channel has the incident, and what it replies to.
        self._first: dict[tuple[str, int, str], int] = {}
        self._first_delivered: dict[tuple[str, int, str], int] = {}

    def step(self, after: int, transaction: Transaction) -> _PruneStepResult:
        connection = transaction.connection
        values = {"after": after, "rows": self._rows, "cutoff": self._cutoff}
        rows = _READ_DELIVERIES.fetch_all(connection, values)
        if not rows:
            return _PruneStepResult(0, after, has_more=False)
        expired = [row for row in rows if self._is_expired(row) and not self._must_stay(row)]
        old = [row.seq for row in expired]
        if old:
            record_pruned(transaction, PrunedKind.DELIVERIES, max(row.finished_at or 0.0 for row in expired))
            connection.execute(delete(attempts).where(attempts.c.delivery_seq.in_(old)))
            connection.execute(_KEEP_DIGESTS, {"old": old})
            connection.execute(delete(edits).where(edits.c.delivery_seq.in_(old)))
            connection.execute(delete(deliveries).where(_delivery.seq.in_(old)))
        last = rows[-1]
        return _PruneStepResult(len(old), last.seq, _goes_further(last, self._bound, self._cutoff, transaction.now))

    def _is_expired(self, row: _PrunableRow) -> bool:
        if row.finished_at is None:
            return False
        return row.finished_at < self._cutoff or (row.seq <= self._bound and row.state in SETTLED)

    def _must_stay(self, row: _PrunableRow) -> bool:
        if row.is_edited:
            return True
        if not row.is_active and row.incident_id not in self._unsettled:
            return False
        about = (row.incident_id, row.episode, row.channel)
        first = self._first.setdefault(about, row.seq)
        arrived = self._first_delivered.setdefault(about, row.seq) if row.state == DeliveryState.DELIVERED else None
        return row.seq in (first, arrived)


class _EventPruner:
    """The steps of one pass over the events."""

    def __init__(
        self, cutoff: float, bound: int, unsettled: UnsettledRanges, redundant: Collection[int], rows: int
    ) -> None:
        self._rows = rows
        self._cutoff = cutoff
        self._bound = bound
        self._first = {incident: min(each.start for each in ranges) for incident, ranges in unsettled.items()}
        self._redundant = redundant

    def step(self, after: int, transaction: Transaction) -> _PruneStepResult:
        connection = transaction.connection
        rows = _limit_bytes(_READ_EVENTS.fetch_all(connection, {"after": after, "rows": self._rows}))
        if not rows:
            return _PruneStepResult(0, after, has_more=False)
        last = rows[-1]
        values = {"after": after, "last": last.seq, "cutoff": self._cutoff}
        found = _FIND_UNUSED_EVENTS.fetch_all(connection, values)
        unused = {seq: incident for seq, incident in found if not self._must_stay(seq, incident)}
        if unused:
            over = (
                incidents.c.id.in_(unused.values()),
                incidents.c.latest_event_seq.in_(unused),
                incidents.c.is_open == 0,
            )
            record_pruned(transaction, PrunedKind.INCIDENTS, _LAST_START.where(*over).fetch_first(connection))
            connection.execute(delete(incidents).where(*over))
            connection.execute(delete(events).where(events.c.seq.in_(unused)))
        return _PruneStepResult(len(unused), last.seq, _goes_further(last, self._bound, self._cutoff, transaction.now))

    def _must_stay(self, seq: int, incident: str) -> bool:
        return incident in self._first and seq >= self._first[incident] and seq not in self._redundant


def _goes_further(last: _PrunableRow | EventSizeRow, bound: int, cutoff: float, now: float) -> bool:
    """Whether rows behind this one may have to go: what came while the clock was ahead says nothing of those."""
    return last.seq < bound or last.accepted_at < cutoff or last.accepted_at > now


def _limit_bytes(rows: Sequence[EventSizeRow]) -> Sequence[EventSizeRow]:
    """The first ones, as many as one transaction may drop; one at least."""
    sizes = [row.event_size + row.body_size for row in rows]
    return [row for row, size, total in zip(rows, sizes, accumulate(sizes), strict=True) if total - size < _STEP_BYTES]


PRUNE_ABOVE: Final = 0.8
"""The part of `retention.max_bytes` from which on rows are pruned."""
PRUNE_DOWN_TO: Final = 0.7
"""The part of it down to which they are."""
_MINIMUM_SHARE: Final = 0.05
"""Of the limit in bytes: as much is dropped at a time, at least."""
ROW_OVERHEAD: Final = 1024
"""What a row takes beside its large columns: the other columns, its index entries, its attempts."""


_EPSILON: Final = 1e-3
"""Seconds: what came at a time goes with a cutoff behind it."""
_bytes_by_time = union_all(
    select(
        events.c.accepted_at.label("at"),
        (func.length(events.c.event) + func.length(events.c.body) + ROW_OVERHEAD).label("size"),
    ),
    select(deliveries.c.finished_at, func.coalesce(func.length(deliveries.c.payload), 0) + ROW_OVERHEAD).where(
        deliveries.c.finished_at.is_not(None)
    ),
    select(quarantine.c.received_at, func.length(quarantine.c.body) + ROW_OVERHEAD),
).subquery()
_running_totals = (
    select(_bytes_by_time.c.at, func.sum(_bytes_by_time.c.size).over(order_by=_bytes_by_time.c.at).label("sum"))
    .where(_bytes_by_time.c.at >= bindparam("after"))
    .subquery()
)
_CUTOFF_FOR_SIZE: Final = select_values(float, func.min(_running_totals.c.at)).where(
    _running_totals.c.sum >= bindparam("size")
)
_POSTGRESQL_SIZES: Final = (
    select(
        func.coalesce(
            func.sum(func.pg_column_size(events.c.event) + func.pg_column_size(events.c.body) + ROW_OVERHEAD), 0
        )
    ),
    select(
        func.coalesce(func.sum(func.coalesce(func.pg_column_size(deliveries.c.payload), 0) + ROW_OVERHEAD), 0)
    ).select_from(deliveries),
    select(func.coalesce(func.sum(func.pg_column_size(quarantine.c.body) + ROW_OVERHEAD), 0)),
)


async def prune_to_size(store: Store, limit: "ByteLimit", min_age: float) -> PruneResult:
    """Measures, and drops the oldest of what is over where that is near the limit. Raises StoreUnavailableError."""
    await limit.measure(store)
    if not limit.max_bytes or limit.used_bytes <= PRUNE_ABOVE * limit.max_bytes:
        limit.record_pruning(nothing_to_prune=False)
        return PruneResult(0, 0)
    pruned, cutoff, stuck = PruneResult(0, 0), 0.0, False
    while limit.used_bytes > PRUNE_DOWN_TO * limit.max_bytes and not stuck:
        newest = await store.run(lambda transaction: transaction.now) - min_age
        bytes_to_prune = max(limit.used_bytes - PRUNE_DOWN_TO * limit.max_bytes, _MINIMUM_SHARE * limit.max_bytes)
        values = {"after": cutoff, "size": bytes_to_prune}
        end = await store.read(partial(_CUTOFF_FOR_SIZE.fetch_first, values=values))
        cutoff = newest if end is None else min(newest, end + _EPSILON)
        used_before, accepted_before = limit.used_bytes, limit.accepted_bytes
        more = await prune_before(store, cutoff, fast=True)
        pruned = PruneResult(*map(sum, zip(pruned, more, strict=True)))
        await limit.measure(store)
        freed = used_before + limit.accepted_bytes - accepted_before - limit.used_bytes
        stuck = cutoff >= newest and freed < _MINIMUM_SHARE * limit.max_bytes
    limit.record_pruning(nothing_to_prune=stuck and limit.used_bytes > PRUNE_ABOVE * limit.max_bytes)
    return pruned


def measure_bytes(connection: Connection) -> int:
    """The bytes that are in use, for `Store.read`. Freed ones are used again, so they do not count."""
    if connection.dialect.name == "sqlite":
        pages, free, size = (
            int(connection.exec_driver_sql(f"PRAGMA {name}").scalar_one())
            for name in ("page_count", "freelist_count", "page_size")
        )
        return (pages - free) * size
    return sum(int(connection.execute(query).scalar_one()) for query in _POSTGRESQL_SIZES)


_FIRING_CEILING: Final = 0.9
"""Up to which part of the limit a webhook that fires is taken, while nothing more can be dropped."""
_OVERRUN: Final = 0.1
"""What is taken beyond the limit, in parts of it, while more may be dropped."""
_RESOLVED_OVERRUN: Final = 0.25
"""The same for a webhook that resolves, at any time: it releases the rows of its incident."""
_COPIES_OF_EVENT: Final = 2
"""An event is kept as it came, and as it is read."""
_DELIVERIES_OVERHEAD: Final = 4 * ROW_OVERHEAD
_MIN_MEASURE_INTERVAL: Final = 1.0
"""From one measurement to the next, at least, whatever is accepted."""
_FULL_MEASURE_INTERVAL: Final = 30.0
"""The same while nothing more can be dropped, because each try searches everything."""
_NOTHING_TO_PRUNE: Final = "outbox is full and nothing can be pruned; webhooks are refused"
_PRUNING_TOO_SLOW: Final = "outbox grows faster than retention prunes it; webhooks are refused"

_EMPTY_DATABASE_BYTES: Final = 1024 * 1024
"""Bytes of an empty outbox, rather too many."""

log = structlog.get_logger(__name__)


class ByteLimit:
    """The limit and what counts against it; for the event loop."""

    def __init__(self) -> None:
        self.max_bytes = 0
        """`retention.max_bytes`; 0 sets no limit."""
        self._measured_bytes = 0
        self.accepted_bytes = 0
        """Bytes of all webhooks that were reserved since the start."""
        self._finished_bytes = 0
        """Bytes of those whose commit is over, whether it succeeded or not."""
        self._finished_when_measured = 0
        """`_finished_bytes` when the last measurement began, which includes them."""
        self._bytes_after_pruning = 0
        """Bytes before the first pruning round, or after the last one."""
        self._nothing_to_prune = False
        """Whether the last whole pruning round left too much."""
        self._full_reason = ""
        """Why webhooks are refused, while they are."""
        self._near_limit = asyncio.Event()

    @property
    def used_bytes(self) -> int:
        """The last measurement and all that was reserved since; rather too much than too little."""
        return self._measured_bytes + self.accepted_bytes - self._finished_when_measured

    @contextmanager
    def reserve(self, size: int, *, resolved: bool) -> Iterator[None]:
        """While a webhook of so many bytes is committed. Raises StoreUnavailableError if it is refused."""
        cost = _estimate_stored_size(size)
        overrun = _RESOLVED_OVERRUN if resolved else _OVERRUN
        ceiling = max(self.max_bytes, self._bytes_after_pruning) + self.max_bytes * overrun
        if self._nothing_to_prune:
            ceiling = self.max_bytes * (1 + _RESOLVED_OVERRUN if resolved else _FIRING_CEILING)
        if self.max_bytes and self.used_bytes + cost > ceiling:
            self._near_limit.set()
            raise self._build_full_error()
        self.accepted_bytes += cost
        if self.used_bytes > self.max_bytes * PRUNE_ABOVE:
            self._near_limit.set()
        try:
            yield
        finally:
            self._finished_bytes += cost

    async def measure(self, store: Store) -> None:
        """Measures the outbox again. Raises StoreUnavailableError."""
        first = not self._measured_bytes
        counted = self._finished_bytes
        self._measured_bytes = await store.read(measure_bytes)
        self._finished_when_measured = counted
        if first:
            self._bytes_after_pruning = self._measured_bytes
        if self._full_reason and self.used_bytes <= self.max_bytes * PRUNE_ABOVE:
            self._full_reason = ""
            log.info("outbox accepts webhooks again", used_bytes=self.used_bytes, max_bytes=self.max_bytes)

    def record_pruning(self, *, nothing_to_prune: bool) -> None:
        """Records the end of a round, and whether it freed next to nothing while more than `PRUNE_ABOVE` is left."""
        self._nothing_to_prune = nothing_to_prune
        self._bytes_after_pruning = self._measured_bytes

    def _build_full_error(self) -> StoreUnavailableError:
        cause = _NOTHING_TO_PRUNE if self._nothing_to_prune else _PRUNING_TOO_SLOW
        if self._full_reason != cause:
            self._full_reason = cause
            log.error(
                cause,
                used_bytes=self.used_bytes,
                max_bytes=self.max_bytes,
                hint="see which channel fails, or raise retention.max_bytes where the disk has more",
            )
        return StoreUnavailableError(
            f"the outbox is full: it holds {self.used_bytes} bytes, and retention.max_bytes is {self.max_bytes}"
        )

    async def wait_near_limit(self, seconds: float) -> None:
        """Returns after so long, or earlier where what was accepted meanwhile comes near the limit."""
        try:
            async with asyncio.timeout(seconds):
                await asyncio.sleep(
                    min(seconds, _FULL_MEASURE_INTERVAL if self._nothing_to_prune else _MIN_MEASURE_INTERVAL)
                )
                await self._near_limit.wait()
        except TimeoutError:
            pass
        self._near_limit.clear()


def compute_minimum(size: int) -> int:
    """The least limit with which an empty outbox takes a webhook of so many bytes."""
    return math.ceil((_EMPTY_DATABASE_BYTES + _estimate_stored_size(size)) / _FIRING_CEILING)


def _estimate_stored_size(size: int) -> int:
    return _COPIES_OF_EVENT * size + _DELIVERIES_OVERHEAD


_PRUNE_INTERVAL: Final = 300.0
"""Seconds between two rounds."""
_MEASURE_INTERVAL: Final = 30.0
"""Seconds between two measurements, where little is accepted."""


async def run_retention(
    store: Store,
    max_age: float,
    max_deliveries: int,
    limit: ByteLimit | None = None,
    *,
    pruners: Sequence[Pruner] = (),
    min_age: float = 0.0,
    interval: float = _PRUNE_INTERVAL,
) -> None:
    """Prunes every `interval` seconds until it is cancelled; without the store, it waits for the next round.

    What is over is kept for `max_age` seconds, and for `min_age` whatever its bytes are; and so are at most
    `max_deliveries` settled deliveries. `pruners` remove what others own.
    """
    limit = limit or ByteLimit()
    clock = asyncio.get_running_loop().time
    due = clock()
    while True:
        try:
            if clock() >= due:
                due = clock() + interval
                _log_pruned(await prune_by_age(store, max_age, max_deliveries, pruners))
            _log_pruned(await prune_to_size(store, limit, min_age))
        except StoreUnavailableError as error:
            log.warning("pruning stopped until the next round", error=str(error))
        except Exception:
            log.exception("unexpected error in retention; retention continues")
        await limit.wait_near_limit(min(_MEASURE_INTERVAL, max(0.0, due - clock())))


def _log_pruned(pruned: PruneResult) -> None:
    if pruned != PruneResult(0, 0):
        log.info("old rows pruned", deliveries=pruned.deliveries, events=pruned.events, quarantined=pruned.quarantined)
