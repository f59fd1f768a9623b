"""Prunes finished deliveries and events from before a cutoff, or beyond a number, in small steps: nobody waits for it.

Never pruned: what is still to be delivered, and what says on which channels an open incident was delivered, and what to
reply to there. Dead letters go by age alone, since a person must see them. An event stays while a delivery has it and
while it is its incident's latest, against which a duplicate is compared; a closed incident goes with its last event.

`unsettled` finds the events that a delivery still needs that waits or is dead.

SQLite's file does not shrink: freed pages are used again. (VACUUM would lock everybody out while it copies the file.)
"""

import asyncio
from collections.abc import Awaitable, Callable, Collection, Sequence
from functools import partial
from itertools import accumulate
from typing import Final, NamedTuple

from sqlalchemy import Connection, and_, bindparam, delete, exists, func, or_, select, update

from services.relay.outbox.engine.batching import Transaction
from services.relay.outbox.engine.store import Store
from services.relay.outbox.operators.audit import prune_audit
from services.relay.outbox.operators.quarantine import delete_entries
from services.relay.outbox.prune_marks import PrunedKind, record_pruned
from services.relay.outbox.retention.unsettled import (
    WITHOUT_DELIVERY,
    UnsettledRanges,
    find_redundant_events,
    find_unsettled_ranges,
)
from services.relay.outbox.rows import EVENT_SIZES, EventSizeRow, RowQuery, select_values
from services.relay.outbox.tables import (
    DIGEST_EPISODE,
    IS_UNSETTLED,
    SETTLED,
    DeliveryState,
    attempts,
    deliveries,
    edits,
    events,
    incidents,
    quarantine,
)

PRUNE_STEP: Final = 100
"""Rows that one transaction reads: a few milliseconds of the writer's time."""
FAST_PRUNE_STEP: Final = 1000
"""The same where space is needed."""
_STEP_BYTES: Final = 8 * 1024 * 1024
"""Bytes of events after which a transaction reads no more of them."""
AUDIT_ROWS: Final = 100_000
"""Entries of the audit that are kept."""
_PAUSE: Final = 0.05
"""Seconds between two steps, in which the writer belongs to the others."""


Pruner = Callable[[Store, float], Awaitable[object]]
"""Removes rows of its own that are older than a time, unix seconds. Raises StoreUnavailableError."""


class PruneResult(NamedTuple):
    """How many rows went."""

    deliveries: int
    events: int
    quarantined: int = 0
    """Of webhooks."""


class StepPlan(NamedTuple):
    """How fast pruning goes."""

    rows: int
    """Rows that one transaction reads."""
    pause: float
    """Seconds between two steps."""


NORMAL: Final = StepPlan(PRUNE_STEP, _PAUSE)
FAST: Final = StepPlan(FAST_PRUNE_STEP, _PAUSE / 5)


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
    """A delivery that may be pruned."""

    seq: int
    incident_id: str
    episode: int
    channel: str
    state: str
    accepted_at: float
    finished_at: float | None
    is_active: bool
    is_edited: bool


class _UnusedEventRow(NamedTuple):
    """An event that may be pruned."""

    seq: int
    incident_id: str


_MAX_EDIT_AGE: Final = 7 * 86400.0
"""Seconds beyond the cutoff after which nobody edits any more: its channel is no longer configured."""
_delivery = deliveries.c
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
"""A digest is edited as long as one of the deliveries is there that it names."""
_READ_DELIVERIES: Final = (
    RowQuery(
        _PrunableRow,
        select(
            _delivery.seq,
            _delivery.incident_id,
            _delivery.episode,
            _delivery.channel,
            _delivery.state,
            _delivery.accepted_at,
            _delivery.finished_at,
            _IS_ACTIVE.label("is_active"),
            _IS_EDITED.label("is_edited"),
        ),
    )
    .where(_delivery.seq > bindparam("after"))
    .order_by(_delivery.seq)
    .limit(bindparam("rows"))
)
_READ_EVENTS: Final = (
    EVENT_SIZES.where(events.c.seq > bindparam("after")).order_by(events.c.seq).limit(bindparam("rows"))
)
_FIND_UNUSED_EVENTS: Final = RowQuery(
    _UnusedEventRow,
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
    """One round; then `pruners` remove what others own. Raises StoreUnavailableError: what was pruned stays so."""
    cutoff = await store.run(lambda transaction: transaction.now) - max_age
    pruned = await prune_before(store, cutoff, await store.read(partial(_find_excess, max_deliveries)))
    await prune_audit(store, cutoff, AUDIT_ROWS, PRUNE_STEP)
    for prune in pruners:
        await prune(store, cutoff)
    return pruned


async def prune_before(store: Store, cutoff: float, bounds: Excess = NO_EXCESS, pace: StepPlan = NORMAL) -> PruneResult:
    """Prunes what finished before `cutoff` (unix seconds), and the excess. Raises StoreUnavailableError."""
    unsettled = await find_unsettled_ranges(store, cutoff)
    of_deliveries = _DeliveryPruner(cutoff, bounds.last_delivery_seq, unsettled, pace.rows)
    pruned_deliveries = await _run_steps(store, of_deliveries.step, pace.pause)
    unsettled = await find_unsettled_ranges(store, cutoff)
    redundant = await find_redundant_events(store, unsettled, cutoff)
    of_events = _EventPruner(cutoff, bounds.last_event_seq, unsettled, redundant, pace.rows)
    pruned_events = await _run_steps(store, of_events.step, pace.pause)
    quarantined = await store.run(partial(delete_entries, condition=quarantine.c.received_at < cutoff))
    return PruneResult(pruned_deliveries, pruned_events, quarantined)


async def _run_steps(store: Store, step: Callable[[int, Transaction], _PruneStepResult], pause: float) -> int:
    """Every step from the oldest row on, each in a transaction of its own; gives how many rows went."""
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
    """The steps of one walk over the events."""

    def __init__(
        self, cutoff: float, bound: int, unsettled: UnsettledRanges, redundant: Collection[int], rows: int = PRUNE_STEP
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
        unused = {row.seq: row.incident_id for row in found if not self._must_stay(row.seq, row.incident_id)}
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
