"""The sessions of people who have logged in, for all replicas: the database has the hash of each cookie, never it.

A session ends at its `expires_at`, after `IDLE_SECONDS` without a request, or at its logout, whichever is first.
"""

from collections.abc import Sequence
from typing import Final, NamedTuple

from sqlalchemy import Connection, bindparam, delete, insert, or_, select, update

from services.relay.outbox.engine.batching import Transaction
from services.relay.outbox.engine.store import Store
from services.relay.outbox.operators.audit import insert_entry
from services.relay.outbox.rows import RowQuery, select_columns, select_values
from services.relay.outbox.tables import sessions

MAX_SECONDS: Final = 12 * 3600.0
"""How long a session lasts at most."""
IDLE_SECONDS: Final = 3600.0
"""How long it lasts without a request."""
MAX_SESSIONS_OF_NAME: Final = 100
"""Sessions of one person, or of one shared token; the ones that were not used for longest end first."""
_PRUNE_STEP: Final = 100
"""Rows that one transaction removes."""
_USE_STEP: Final = 60.0
"""Seconds between two updates of `used_at`."""

_session = sessions.c


class SessionRow(NamedTuple):
    """A session."""

    id: str
    name: str
    source: str
    proof: str
    group_names: str
    used_at: float
    expires_at: float


_FIND: Final = RowQuery(SessionRow, select(*select_columns(SessionRow, sessions.c))).where(
    _session.id.in_(bindparam("ids", expanding=True))
)
_OLDEST_OF_NAME: Final = (
    select_values(str, _session.id)
    .where(_session.name == bindparam("holder"))
    .order_by(_session.used_at.desc(), _session.id)
)
_DELETE: Final = delete(sessions).where(_session.id == bindparam("session"))


def find_sessions(connection: Connection, ids: Sequence[str]) -> Sequence[SessionRow | None]:
    """The session of each id, in its place; also one that has ended."""
    rows = {row.id: row for row in _FIND.fetch_all(connection, {"ids": list(ids)})}
    return [rows.get(each) for each in ids]


def is_active(row: SessionRow, now: float) -> bool:
    """Whether a session has not ended at `now`, unix seconds."""
    return now < row.expires_at and now < row.used_at + IDLE_SECONDS


def is_use_due(row: SessionRow, now: float) -> bool:
    """Whether its use has to be recorded: the last record is a minute old."""
    return now >= row.used_at + _USE_STEP


async def start_session(store: Store, row: SessionRow, peer: str | None, replaced_id: str | None) -> None:
    """Commits a session with the entry of its login in the audit.

    Args:
        store: the outbox.
        row: its times are set here.
        peer: the address.
        replaced_id: of a session that the same browser had, and that ends now.

    Raises:
        StoreUnavailableError: it is not known to be committed.
    """

    def commit(transaction: Transaction) -> None:
        connection, now = transaction.connection, transaction.now
        if replaced_id is not None:
            connection.execute(_DELETE, {"session": replaced_id})
        ended = _OLDEST_OF_NAME.offset(MAX_SESSIONS_OF_NAME - 1).fetch_all(connection, {"holder": row.name})
        if ended:
            connection.execute(delete(sessions).where(_session.id.in_(ended)))
        times = {"created_at": now, "used_at": now, "expires_at": now + MAX_SECONDS}
        connection.execute(insert(sessions), {**row._asdict(), **times})
        insert_entry(transaction, row.name, peer, "login", row.source)

    await store.run(commit)


async def record_use(store: Store, session_id: str) -> None:
    """Commits that a session is used now. Raises StoreUnavailableError."""

    def commit(transaction: Transaction) -> None:
        changed = update(sessions).where(_session.id == session_id, _session.used_at < transaction.now)
        transaction.connection.execute(changed.values(used_at=transaction.now))

    await store.run(commit)


async def end_session(store: Store, session_id: str, who: str, peer: str | None) -> None:
    """Commits a logout with its entry in the audit. Raises StoreUnavailableError."""

    def commit(transaction: Transaction) -> None:
        if transaction.connection.execute(_DELETE, {"session": session_id}).rowcount:
            insert_entry(transaction, who, peer, "logout", "")

    await store.run(commit)


async def prune_sessions(store: Store, _cutoff: float) -> int:
    """Removes the sessions that have ended, in small steps; how many went. Raises StoreUnavailableError."""

    def remove(transaction: Transaction) -> int:
        now = transaction.now
        over = or_(_session.expires_at <= now, _session.used_at <= now - IDLE_SECONDS)
        oldest = select(_session.id).where(over).limit(_PRUNE_STEP)
        return transaction.connection.execute(delete(sessions).where(_session.id.in_(oldest))).rowcount

    removed_count = 0
    while removed := await store.run(remove):
        removed_count += removed
    return removed_count
