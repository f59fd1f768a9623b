"""A restored backup: what waits in it may have been told since, and may be over.

The outbox keeps which database it is: the file's inode, or what PostgreSQL calls the cluster, the database and the
table. When a file was used last is kept beside it, in `relay.db-seen`, which a backup in its place does not bring.
Where the database is another one, or was used since, a backup was restored. Then all that waits counts as perhaps told,
so that PagerDuty calls nobody for what is over. Where Alertmanager can be asked, it is held back until then, for a few
minutes at most; see `watch.reconcile`. A snapshot of the whole volume, or a database set back in its own place, looks
like before: there a person has to say it (`keypulse-relay restored`). That no relay ran for long says nothing: what
waits then was told to nobody.
"""

import asyncio
from pathlib import Path
from typing import Any, Final, NamedTuple

import structlog
from sqlalchemy import Connection, bindparam, func, select, text, update

from services.relay.outbox.dialect import insert_new
from services.relay.outbox.enqueue import Waits, merge_into_successor
from services.relay.outbox.lock import lock
from services.relay.outbox.schema import State, deliveries, origin
from services.relay.outbox.store import Store
from services.relay.outbox.together import Transaction

HELD_FOR: Final = 360.0
"""Seconds for which what waits is held back: an Alertmanager that has just started is believed after 300."""
NOTE: Final = "This waited in an outbox that was restored from a backup; it may have been told before"

_SAID: Final = "restored"
"""The name of no database: a person says that it is a backup."""
_of = deliveries.c
_MAY_ASK: Final = text("SELECT has_function_privilege('pg_control_system()', 'EXECUTE')")
_CLUSTER: Final = text("SELECT system_identifier FROM pg_control_system()")
_TABLE: Final = text(
    "SELECT (SELECT oid FROM pg_database WHERE datname = current_database()) || '/' || 'deliveries'::regclass::oid"
)
_LEASED: Final = select(deliveries).where(_of.state == State.SENDING, _of.finished_at.is_(None)).order_by(_of.seq)
_PERHAPS_TOLD: Final = (
    update(deliveries)
    .where(_of.finished_at.is_(None))
    .values(
        state=State.QUEUED,
        lease=None,
        maybe_sent=1,
        maybe_told=_of.event_seq,
        due_at=bindparam("due"),
        set_at=bindparam("at"),
        note=func.coalesce(_of.note, NOTE),
    )
)
_RELEASE: Final = (
    update(deliveries)
    .where(_of.finished_at.is_(None), _of.maybe_told.is_not(None))
    .where(_of.state == State.QUEUED, _of.due_at > bindparam("at"))
    .values(due_at=bindparam("at"), set_at=bindparam("at"))
)

log = structlog.get_logger(__name__)


class _Found(NamedTuple):
    at: float
    """Unix seconds, as they were committed."""
    beside: Path | None
    restored: bool


async def notice_restore(store: Store, *, held_for: float) -> bool:
    """Keeps which database the outbox is, and finds out whether a backup was restored.

    Args:
        store: the outbox.
        held_for: seconds for which what waits in a backup is held back.

    Raises:
        StoreUnavailableError: it is not known to be committed.
    """
    found = await store.run(lambda transaction: _notice(transaction, held_for))
    if found.beside is not None:
        await asyncio.to_thread(
            _keep, found.beside, found.at
        )  # after the commit: else a crash would look like a backup
    if found.restored:
        log.warning("the outbox was restored from a backup; what waits in it may have been told", held_for=held_for)
    return found.restored


async def say_restored(store: Store) -> None:
    """The next look takes the outbox for a backup, even one that looks like before. Raises StoreUnavailableError."""

    def say(transaction: Transaction) -> None:
        said = insert_new(origin, transaction.connection.dialect.name).values(id=1, name=_SAID, seen_at=0.0)
        transaction.connection.execute(said.on_conflict_do_update(index_elements=["id"], set_={"name": _SAID}))

    await store.run(say)


async def release(store: Store) -> None:
    """What was held back is due now: it was compared with Alertmanager. Raises StoreUnavailableError."""
    await store.run(lambda transaction: transaction.connection.execute(_RELEASE, {"at": transaction.now}))


def _notice(transaction: Transaction, held_for: float) -> _Found:
    connection, now, name = transaction.connection, transaction.now, _name(transaction.connection)
    beside = _beside(connection)
    # Never seen: where the file beside says that it was used, it is a backup from before this was kept.
    first = insert_new(origin, connection.dialect.name).values(id=1, name=name, seen_at=0.0)
    connection.execute(first.on_conflict_do_nothing())  # another replica may start at the same moment
    known = connection.execute(select(origin).with_for_update()).one()
    connection.execute(update(origin).values(name=name, seen_at=now))
    used_since = beside is not None and _kept(beside) > known.seen_at
    if _same(known.name, name) and not used_since:
        return _Found(now, beside, restored=False)
    leased = connection.execute(_LEASED).all()
    lock(transaction, {row.incident_id for row in leased})
    for row in leased:
        merge_into_successor(transaction, row, Waits(row.attempts, now, row.reason))
    marked: Any = connection.execute(_PERHAPS_TOLD, {"due": now + held_for, "at": now})
    return _Found(now, beside, restored=bool(marked.rowcount))


def _name(connection: Connection) -> str:
    if connection.dialect.name == "sqlite":
        return str(Path(str(connection.engine.url.database)).stat().st_ino)
    cluster = connection.execute(_CLUSTER).scalar_one() if connection.execute(_MAY_ASK).scalar_one() else ""
    return f"{cluster}/{connection.execute(_TABLE).scalar_one()}"


def _same(one: str, other: str) -> bool:
    """Whether two names may be of one database: without the right to ask, its cluster is not known."""
    (one_cluster, _, one_table), (other_cluster, _, other_table) = one.partition("/"), other.partition("/")
    return one_table == other_table and (one_cluster == other_cluster or not (one_cluster and other_cluster))


def _beside(connection: Connection) -> Path | None:
    """The file that says when a file of SQLite was used last."""
    return Path(f"{connection.engine.url.database}-seen") if connection.dialect.name == "sqlite" else None


def _kept(beside: Path) -> float:
    """Unix seconds; 0 where it is not known."""
    try:
        return float(beside.read_text())
    except (OSError, ValueError):
        return 0.0


def _keep(beside: Path, at: float) -> None:
    try:
        beside.touch(mode=0o600)
        beside.write_text(repr(at))
    except OSError as error:
        log.warning("a backup in the outbox's place may not be noticed", error=str(error))
