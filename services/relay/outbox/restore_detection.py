"""Detects a restored backup: what waits in it may have been delivered since, and may be over.

The outbox records which database it is: the file's inode, or PostgreSQL's identifiers of the cluster, the database and
the table. When a file was last used is recorded beside it, in `relay.db-last-used`, which a backup does not contain.
Where the database is another one, or was used after it says, a backup was restored. Then all that waits counts as
perhaps delivered, so that PagerDuty calls nobody for what is over. Where Alertmanager can be asked, it is held back
until then, for a few minutes at most; see `monitors.reconcile`. A snapshot of the whole volume, or a database set back
in its own place, cannot be detected: there a person has to say it (`keypulse-relay mark-restored`). A relay that was
only stopped for long delivers what waits as ever.
"""

import asyncio
from collections.abc import Collection, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, NamedTuple

import structlog
from sqlalchemy import Connection, bindparam, func, text, update

from services.relay.outbox.engine import dialect
from services.relay.outbox.engine.batching import Transaction
from services.relay.outbox.engine.dialect import build_insert
from services.relay.outbox.engine.store import Store
from services.relay.outbox.merge import RetryState, lock_incidents, merge_into_successor
from services.relay.outbox.rows import DATABASE_IDENTITIES, DELIVERIES
from services.relay.outbox.tables import State, database_identity, deliveries

COMPARE_DELAY: Final = 360.0
"""Seconds for which what waits is held back: an Alertmanager that has just started is believed after 300."""
RESTORED_REMARK: Final = "This waited in an outbox that was restored from a backup; it may have been delivered before"

_MARKED_RESTORED: Final = "restored"
"""The identity of no database: a person says that it is a backup."""
_delivery = deliveries.c
_MAY_READ_CLUSTER: Final = text("SELECT has_function_privilege('pg_control_system()', 'EXECUTE')")
_READ_CLUSTER: Final = text("SELECT system_identifier FROM pg_control_system()")
_READ_TABLE: Final = text(
    "SELECT (SELECT oid FROM pg_database WHERE datname = current_database()) || '/' || 'deliveries'::regclass::oid"
)
_LOCK_IDENTITY: Final = DATABASE_IDENTITIES.for_update()
_FIND_LEASED: Final = DELIVERIES.where(_delivery.state == State.SENDING, _delivery.finished_at.is_(None)).order_by(
    _delivery.seq
)
_MARK_MAYBE_DELIVERED: Final = (
    update(deliveries)
    .where(_delivery.finished_at.is_(None))
    .values(
        state=State.QUEUED,
        lease=None,
        maybe_sent=1,
        maybe_delivered_up_to=_delivery.event_seq,
        due_at=bindparam("due"),
        due_set_at=bindparam("at"),
        remark=func.coalesce(_delivery.remark, RESTORED_REMARK),
    )
)
_MAKE_DUE: Final = (
    update(deliveries)
    .where(_delivery.finished_at.is_(None), _delivery.maybe_delivered_up_to.is_not(None))
    .where(_delivery.state == State.QUEUED, _delivery.due_at > bindparam("at"))
    .values(due_at=bindparam("at"), due_set_at=bindparam("at"))
)

log = structlog.get_logger(__name__)


class _Detection(NamedTuple):
    at: float
    """Unix seconds, as they were committed."""
    last_used_files: Sequence[Path]
    """Empty for PostgreSQL."""
    is_restored: bool


async def detect_restore(store: Store, *, compare_delay: float) -> bool:
    """Records which database the outbox is, and finds out whether a backup was restored.

    Args:
        store: the outbox.
        compare_delay: seconds for which what waits in a backup is held back.

    Raises:
        StoreUnavailableError: it is not known to be committed.
    """
    found = await store.run(lambda transaction: _detect(transaction, compare_delay))
    if found.last_used_files:
        # After the commit: else a crash would look like a restored backup.
        await asyncio.to_thread(_write_last_used, found.last_used_files, found.at)
    if found.is_restored:
        log.warning("outbox was restored from a backup; waiting deliveries may be repeats", compare_delay=compare_delay)
    return found.is_restored


async def mark_restored(store: Store) -> None:
    """The next detection takes the outbox for a restored backup. Raises StoreUnavailableError."""

    def mark(transaction: Transaction) -> None:
        row = build_insert(database_identity, transaction.connection.dialect.name).values(
            id=1, identity=_MARKED_RESTORED, last_used_at=0.0
        )
        transaction.connection.execute(
            row.on_conflict_do_update(index_elements=["id"], set_={"identity": _MARKED_RESTORED})
        )

    await store.run(mark)


async def release_compared(store: Store) -> None:
    """What was held back is due now: it was compared with Alertmanager. Raises StoreUnavailableError."""
    await store.run(lambda transaction: transaction.connection.execute(_MAKE_DUE, {"at": transaction.now}))


def _detect(transaction: Transaction, compare_delay: float) -> _Detection:
    connection, now, name = transaction.connection, transaction.now, _read_identity(transaction.connection)
    files = dialect.find_last_used_files(connection.engine.url)
    # Never used: where the file says that it was, it is a backup from before this was recorded.
    first = build_insert(database_identity, connection.dialect.name).values(id=1, identity=name, last_used_at=0.0)
    connection.execute(first.on_conflict_do_nothing())  # another replica may start at the same moment
    known = _LOCK_IDENTITY.fetch_one(connection)
    connection.execute(update(database_identity).values(identity=name, last_used_at=now))
    used_since = _read_last_used(files) > known.last_used_at
    if _is_same_database(known.identity, name) and not used_since:
        return _Detection(now, files, is_restored=False)
    leased = _FIND_LEASED.fetch_all(connection)
    lock_incidents(transaction, {row.incident_id for row in leased})
    for row in leased:
        merge_into_successor(transaction, row, RetryState(row.attempts, now, row.reason))
    marked: Any = connection.execute(_MARK_MAYBE_DELIVERED, {"due": now + compare_delay, "at": now})
    return _Detection(now, files, is_restored=bool(marked.rowcount))


def _read_identity(connection: Connection) -> str:
    if connection.dialect.name == "sqlite":
        return str(Path(str(connection.engine.url.database)).stat().st_ino)
    cluster = (
        connection.execute(_READ_CLUSTER).scalar_one() if connection.execute(_MAY_READ_CLUSTER).scalar_one() else ""
    )
    return f"{cluster}/{connection.execute(_READ_TABLE).scalar_one()}"


def _is_same_database(one: str, other: str) -> bool:
    """Whether two identities may be of one database: without the right to ask, its cluster is not known."""
    (one_cluster, _, one_table), (other_cluster, _, other_table) = one.partition("/"), other.partition("/")
    return one_table == other_table and (one_cluster == other_cluster or not (one_cluster and other_cluster))


def _read_last_used(files: Collection[Path]) -> float:
    """Unix seconds; 0 where it is not known. A relay of an earlier version wrote the second file."""
    last_used = 0.0
    for file in files:
        with suppress(OSError, ValueError):
            last_used = max(last_used, float(file.read_text()))
    return last_used


def _write_last_used(files: Sequence[Path], at: float) -> None:
    """Writes the first file; then the one of an earlier version has been read, and goes."""
    file, *former = files
    try:
        file.touch(mode=0o600)
        file.write_text(repr(at))
        for each in former:
            each.unlink(missing_ok=True)
    except OSError as error:
        log.warning("last-used file cannot be written; a restored backup may not be detected", error=str(error))
