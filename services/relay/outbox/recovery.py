"""Detects a restored backup, a delivery that waits for too long, and a clock that was wrong.

The outbox records which database it is: the file's inode, or PostgreSQL's identifiers of the cluster, the database and
the table. The last-used file beside an SQLite database says when it was last used. A backup was restored if the
database is another one, or was used later than it says itself. Then every unfinished delivery counts as perhaps
delivered, so that PagerDuty pages nobody for an alert that is over. If Alertmanager is configured, they wait until they
were compared with it, for a few minutes at most. A snapshot of the whole volume, or a database restored in place,
cannot be detected: an operator runs `keypulse-relay mark-restored`.

A delivery falls back when its channel is down, or when no channel of its route has taken it for two minutes; see
`fallback`. What has waited behind an open circuit breaker for `give_up_after` is given up.
"""

import asyncio
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Final, NamedTuple

import structlog
from sqlalchemy import Connection, and_, bindparam, exists, func, not_, or_, select, text, true, update

from services.relay.channels.port import SendReason
from services.relay.outbox.breaker import FAILURE_THRESHOLD, read_down_channels
from services.relay.outbox.database import build_insert, find_last_used_file, read_last_used, write_last_used
from services.relay.outbox.dead_letters import requeue_too_early
from services.relay.outbox.fallback import (
    FALLBACK_STEP,
    IS_NOT_COMPARING,
    enqueue_fallback,
    fall_back,
    fall_back_untaken,
)
from services.relay.outbox.merge import DeliveryChanges, RetryState, lock_incidents, merge_into_successor
from services.relay.outbox.store import Store, Transaction
from services.relay.outbox.tables import (
    DELIVERIES,
    WAITING,
    DeliveryRow,
    DeliveryState,
    channels,
    database_identity,
    deliveries,
    edit_limits,
    edits,
    incidents,
)
from shared.sql.rows import select_tuples, select_values

COMPARE_DELAY: Final = 360.0
"""Seconds that unfinished deliveries wait for the comparison: an Alertmanager that just started counts after 300."""
RESTORED_REMARK: Final = "This waited in an outbox that was restored from a backup; it may have been delivered before"

_MARKED_RESTORED: Final = "restored"
"""The identity after `mark-restored`: no database has it."""
_delivery = deliveries.c
_MAY_READ_CLUSTER: Final = text("SELECT has_function_privilege('pg_control_system()', 'EXECUTE')")
_READ_CLUSTER: Final = text("SELECT system_identifier FROM pg_control_system()")
_READ_TABLE: Final = text(
    "SELECT (SELECT oid FROM pg_database WHERE datname = current_database()) || '/' || 'deliveries'::regclass::oid"
)
_LOCK_IDENTITY: Final = select_tuples(
    tuple[str, float], select(database_identity.c.identity, database_identity.c.last_used_at)
).for_update()
_FIND_LEASED: Final = DELIVERIES.where(
    _delivery.state == DeliveryState.SENDING, _delivery.finished_at.is_(None)
).order_by(_delivery.seq)
_MARK_MAYBE_DELIVERED: Final = (
    update(deliveries)
    .where(_delivery.finished_at.is_(None))
    .values(
        state=DeliveryState.QUEUED,
        lease=None,
        maybe_sent=1,
        maybe_delivered_up_to=_delivery.event_seq,
        due_at=bindparam("due"),
        remark=func.coalesce(_delivery.remark, RESTORED_REMARK),
    )
)
_RESTART_ESCALATION: Final = (
    update(incidents).where(incidents.c.escalation_after.is_not(None)).values(escalation_starts_at=bindparam("at"))
)
"""What is open in a backup may be over, or acknowledged since: it is escalated after the comparison."""
_POSTPONE_EDITS: Final = update(edits).where(edits.c.wanted > edits.c.shown).values(due_at=bindparam("due"), lease=None)
"""A message may show by now how the incident ended: it must not be edited back to what the backup knows."""
_waiting_deliveries = (
    _delivery.finished_at.is_(None),
    _delivery.maybe_delivered_up_to.is_not(None),
    _delivery.state == DeliveryState.QUEUED,
)
_waiting_edits = (edits.c.wanted > edits.c.shown, edits.c.lease.is_(None))
_READ_POSTPONED_UNTIL: Final = [
    select_values(float, func.max(_delivery.due_at)).where(*_waiting_deliveries),
    select_values(float, func.max(edits.c.due_at)).where(*_waiting_edits),
]
_MAKE_DUE: Final = [
    update(table)
    .where(*conditions, table.c.due_at.between(bindparam("at"), bindparam("postponed_until")))
    .values(due_at=bindparam("at"))
    for table, conditions in ((deliveries, _waiting_deliveries), (edits, _waiting_edits))
]

log = structlog.get_logger(__name__)


class _Detection(NamedTuple):
    at: float
    """Unix seconds, as committed."""
    last_used_file: Path | None
    """None for PostgreSQL."""
    is_restored: bool


async def detect_restore(store: Store, *, compare_delay: float) -> bool:
    """Records which database the outbox is, and returns whether it is a restored backup.

    What is unfinished in a backup waits for `compare_delay` seconds. Raises StoreUnavailableError.
    """
    found = await store.run(lambda transaction: _detect(transaction, compare_delay))
    if found.last_used_file:
        # After the commit: otherwise a crash would look like a restored backup.
        await asyncio.to_thread(write_last_used, found.last_used_file, found.at)
    if found.is_restored:
        log.warning("outbox was restored from a backup; waiting deliveries may be repeats", compare_delay=compare_delay)
    return found.is_restored


async def mark_restored(store: Store) -> None:
    """Makes the next `detect_restore` return True. Raises StoreUnavailableError."""

    def mark(transaction: Transaction) -> None:
        row = build_insert(database_identity, transaction.connection.dialect.name).values(
            id=1, identity=_MARKED_RESTORED, last_used_at=0.0
        )
        transaction.connection.execute(
            row.on_conflict_do_update(index_elements=["id"], set_={"identity": _MARKED_RESTORED})
        )

    await store.run(mark)


def read_postponed_until(connection: Connection) -> float | None:
    """Until when what waits for the comparison waits at most; None if nothing does.

    Read it before the comparison: a restored backup may be detected while that goes on.
    """
    moments = [query.fetch_first(connection) for query in _READ_POSTPONED_UNTIL]
    return max((moment for moment in moments if moment is not None), default=None)


async def release_compared(store: Store, postponed_until: float) -> None:
    """Makes waiting deliveries and edits due: they were compared with Alertmanager. Raises StoreUnavailableError.

    `postponed_until` is as it was before the comparison: what was postponed later was not compared.
    """

    def release(transaction: Transaction) -> None:
        for statement in _MAKE_DUE:
            transaction.connection.execute(statement, {"at": transaction.now, "postponed_until": postponed_until})

    await store.run(release)


def _detect(transaction: Transaction, compare_delay: float) -> _Detection:
    connection, now, identity = transaction.connection, transaction.now, _read_identity(transaction.connection)
    file = find_last_used_file(connection.engine.url)
    # 0: if the last-used file says otherwise, this is a backup from before the identity was recorded.
    first = build_insert(database_identity, connection.dialect.name).values(id=1, identity=identity, last_used_at=0.0)
    connection.execute(first.on_conflict_do_nothing())  # another replica may start at the same moment
    stored_identity, last_used_at = _LOCK_IDENTITY.fetch_one(connection)
    connection.execute(update(database_identity).values(identity=identity, last_used_at=now))
    used_since = read_last_used(file) > last_used_at
    if _is_same_database(stored_identity, identity) and not used_since:
        return _Detection(now, file, is_restored=False)
    leased = _FIND_LEASED.fetch_all(connection)
    lock_incidents(transaction, {row.incident_id for row in leased})
    for row in leased:
        merge_into_successor(transaction, row, RetryState(row.attempts, now, row.reason))
    marked_count = connection.execute(_MARK_MAYBE_DELIVERED, {"due": now + compare_delay}).rowcount
    connection.execute(_RESTART_ESCALATION, {"at": now + compare_delay})
    connection.execute(_POSTPONE_EDITS, {"due": now + compare_delay})
    return _Detection(now, file, is_restored=bool(marked_count))


def _read_identity(connection: Connection) -> str:
    if connection.dialect.name == "sqlite":
        return str(Path(str(connection.engine.url.database)).stat().st_ino)
    cluster = (
        connection.execute(_READ_CLUSTER).scalar_one() if connection.execute(_MAY_READ_CLUSTER).scalar_one() else ""
    )
    return f"{cluster}/{connection.execute(_READ_TABLE).scalar_one()}"


def _is_same_database(one: str, other: str) -> bool:
    """Whether two identities may be of one database; the cluster is unknown without permission to read it."""
    (one_cluster, _, one_table), (other_cluster, _, other_table) = one.partition("/"), other.partition("/")
    return one_table == other_table and (one_cluster == other_cluster or not (one_cluster and other_cluster))


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
_long_pause_requested = and_(  # its provider, which may ask for a day
    channels.c.is_down > 0,
    channels.c.reason.in_([SendReason.RATE_LIMITED.value, SendReason.SERVER_ERROR.value]),
)
_NEVER_LATER: Final = (
    (_delivery.due_at, _delivery.finished_at.is_(None), "longest"),
    # What was never tried waits for nothing but a comparison.
    (_delivery.due_at, and_(_delivery.state == DeliveryState.QUEUED, _delivery.maybe_delivered_up_to.is_(None)), "now"),
    (edits.c.due_at, edits.c.wanted > edits.c.shown, "longest"),
    (edit_limits.c.retry_after_until, true(), "longest_request"),
    (channels.c.retry_after_until, true(), "longest"),
    (channels.c.paused_until, not_(_long_pause_requested), "longest"),
    (channels.c.paused_until, _long_pause_requested, "longest_request"),
)
_CLAMP: Final = [
    (update(column.table).where(condition, column > bindparam(latest)).values({column.name: bindparam(latest)}), latest)
    for column, condition, latest in _NEVER_LATER
]


async def sweep(
    store: Store, give_up_after: float, fallback_channels: Sequence[str], longest_wait: float
) -> DeliveryChanges:
    """Lets deliveries fall back, gives up what waited too long where nothing is tried, and undoes a wrong clock.

    Every wait is a moment of the wall clock, and would last for as long as the clock was set back: so none ends later
    than the longest wait from now. What was given up in what is now the future is sent again.

    `give_up_after` counts since the event was accepted, and no provider can ask for a longer pause. `longest_wait` is
    that of the longest backoff, lease and comparison. Both are seconds.

    Raises StoreUnavailableError; the steps before it are done.
    """
    changes = DeliveryChanges()
    for name in await store.read(read_down_channels):  # its worker does so, too, but a channel may have none
        fallbacks = [other for other in fallback_channels if other != name]
        changes = changes.add(await fall_back(store, name, fallbacks))
    changes = changes.add(await fall_back_untaken(store, fallback_channels))
    await store.run(partial(_clamp_waits, longest_wait=longest_wait, longest_request=max(longest_wait, give_up_after)))
    changes = changes.add(await requeue_too_early(store, give_up_after))
    while found := await store.read_at(
        lambda connection, now: _FIND_EXPIRED.fetch_all(connection, {"now": now, "before": now - give_up_after})
    ):
        step = partial(_give_up, found=found, give_up_after=give_up_after, fallback_channels=fallback_channels)
        given_up = await store.run(step)
        if not given_up.ended:  # another replica was faster
            break
        changes = changes.add(given_up)
    return changes


def _clamp_waits(transaction: Transaction, longest_wait: float, longest_request: float) -> None:
    waits = {"now": 0.0, "longest": longest_wait, "longest_request": longest_request}
    for statement, name in _CLAMP:
        transaction.connection.execute(statement, {name: transaction.now + waits[name]})


def _give_up(
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
    return changes.add(DeliveryChanges(ended, frozenset(row.channel for row in rows)))
