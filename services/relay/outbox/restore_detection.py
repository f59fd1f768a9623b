"""Detects a restored backup: its unfinished deliveries may have been delivered since, and their alerts may be over.

The outbox records which database it is: the file's inode, or PostgreSQL's identifiers of the cluster, the database and
the table. The last-used file beside an SQLite database says when it was last used (see `engine.lost_outbox`). A backup
was restored if the database is another one, or was used later than it says itself. Then every unfinished delivery
counts as perhaps delivered, so that PagerDuty pages nobody for an alert that is over. If Alertmanager is configured,
they wait until they were compared with it, for a few minutes at most; see `monitors.reconcile`.

A snapshot of the whole volume, or a database restored in place, cannot be detected: an operator runs
`keypulse-relay mark-restored`. A relay that was stopped for a long time delivers as usual.
"""

import asyncio
from pathlib import Path
from typing import Final, NamedTuple

import structlog
from sqlalchemy import Connection, bindparam, func, text, update

from services.relay.outbox.engine.batching import Transaction
from services.relay.outbox.engine.dialect import build_insert
from services.relay.outbox.engine.lost_outbox import find_last_used_file, read_last_used, write_last_used
from services.relay.outbox.engine.store import Store
from services.relay.outbox.merge import RetryState, lock_incidents, merge_into_successor
from services.relay.outbox.rows import DATABASE_IDENTITIES, DELIVERIES, select_values
from services.relay.outbox.tables import DeliveryState, database_identity, deliveries, edits, incidents

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
_LOCK_IDENTITY: Final = DATABASE_IDENTITIES.for_update()
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
        due_set_at=bindparam("at"),
        remark=func.coalesce(_delivery.remark, RESTORED_REMARK),
    )
)
_RESTART_ESCALATION: Final = (
    update(incidents).where(incidents.c.escalation_after.is_not(None)).values(escalation_starts_at=bindparam("at"))
)
"""What is open in a backup may be over, or acknowledged since: nobody else is called for it before the comparison."""
_POSTPONE_EDITS: Final = (
    update(edits)
    .where(edits.c.wanted > edits.c.shown)
    .values(due_at=bindparam("due"), due_set_at=bindparam("at"), lease=None)
)
"""A message may show by now how the incident ended; nobody edits it back to what the backup knows."""
_waiting_deliveries = (
    _delivery.finished_at.is_(None),
    _delivery.maybe_delivered_up_to.is_not(None),
    _delivery.state == DeliveryState.QUEUED,
)
_waiting_edits = (edits.c.wanted > edits.c.shown, edits.c.lease.is_(None))
_READ_POSTPONED_AT: Final = [
    select_values(float, func.max(_delivery.due_set_at)).where(*_waiting_deliveries),
    select_values(float, func.max(edits.c.due_set_at)).where(*_waiting_edits),
]
_MAKE_DUE: Final = [
    update(table)
    .where(*conditions, table.c.due_at > bindparam("at"), table.c.due_set_at <= bindparam("postponed_at"))
    .values(due_at=bindparam("at"), due_set_at=bindparam("at"))
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

    Args:
        store: the outbox.
        compare_delay: seconds that the unfinished deliveries of a restored backup wait.

    Raises:
        StoreUnavailableError: it may not be committed.
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


def read_postponed_at(connection: Connection) -> float | None:
    """When the last of what may wait for the comparison was postponed; None if nothing waits.

    Read it before the comparison: a restored backup may be detected while that goes on.
    """
    moments = [query.fetch_first(connection) for query in _READ_POSTPONED_AT]
    return max((moment for moment in moments if moment is not None), default=None)


async def release_compared(store: Store, postponed_at: float) -> None:
    """Makes waiting deliveries and edits due: they were compared with Alertmanager. Raises StoreUnavailableError.

    Args:
        store: the outbox.
        postponed_at: as it was before the comparison; what was postponed later was not compared.
    """

    def release(transaction: Transaction) -> None:
        for statement in _MAKE_DUE:
            transaction.connection.execute(statement, {"at": transaction.now, "postponed_at": postponed_at})

    await store.run(release)


def _detect(transaction: Transaction, compare_delay: float) -> _Detection:
    connection, now, identity = transaction.connection, transaction.now, _read_identity(transaction.connection)
    file = find_last_used_file(connection.engine.url)
    # 0: if the last-used file says otherwise, this is a backup from before the identity was recorded.
    first = build_insert(database_identity, connection.dialect.name).values(id=1, identity=identity, last_used_at=0.0)
    connection.execute(first.on_conflict_do_nothing())  # another replica may start at the same moment
    stored = _LOCK_IDENTITY.fetch_one(connection)
    connection.execute(update(database_identity).values(identity=identity, last_used_at=now))
    used_since = read_last_used(file) > stored.last_used_at
    if _is_same_database(stored.identity, identity) and not used_since:
        return _Detection(now, file, is_restored=False)
    leased = _FIND_LEASED.fetch_all(connection)
    lock_incidents(transaction, {row.incident_id for row in leased})
    for row in leased:
        merge_into_successor(transaction, row, RetryState(row.attempts, now, row.reason))
    marked_count = connection.execute(_MARK_MAYBE_DELIVERED, {"due": now + compare_delay, "at": now}).rowcount
    connection.execute(_RESTART_ESCALATION, {"at": now + compare_delay})
    connection.execute(_POSTPONE_EDITS, {"due": now + compare_delay, "at": now})
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
