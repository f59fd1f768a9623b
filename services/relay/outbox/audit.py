"""The audit: who did what, as long as retention keeps it; and up to when retention has deleted rows of a kind."""

from collections.abc import Mapping, Sequence
from enum import StrEnum
from functools import partial
from typing import Any, Final, NamedTuple

from sqlalchemy import Connection, bindparam, delete, func, insert, or_, select

from services.relay.outbox.database import build_insert
from services.relay.outbox.store import Store, StoreUnavailableError, Transaction
from services.relay.outbox.tables import audit, clean_for_database, deliveries, incidents, pruned
from shared.http.access import AuditEntry, AuditUnavailableError
from shared.sql.rows import RowQuery, select_tuples, select_values


class PrunedKind(StrEnum):
    """What retention deletes, and by which time of a row."""

    DELIVERIES = "deliveries"
    """By when they were delivered, superseded or given up."""
    INCIDENTS = "incidents"
    """By when their last episode started."""
    AUDIT = "audit"
    QUARANTINE = "quarantine"


_MARKS: Final = select_tuples(tuple[str, float], select(pruned.c.kind, pruned.c.up_to))


def record_pruned(transaction: Transaction, kind: PrunedKind, up_to: float | None) -> None:
    """Records that rows of times up to this one were deleted; None: there were none."""
    if up_to is None:
        return
    mark = build_insert(pruned, transaction.connection.dialect.name).values(kind=kind.value, up_to=up_to)
    transaction.connection.execute(
        mark.on_conflict_do_update(
            index_elements=["kind"], set_={"up_to": mark.excluded.up_to}, where=pruned.c.up_to < mark.excluded.up_to
        )
    )


def read_pruned(connection: Connection) -> Mapping[PrunedKind, float]:
    """Up to when each kind was deleted, unix seconds; a kind of which nothing was deleted is missing."""
    return {PrunedKind(kind): up_to for kind, up_to in _MARKS.fetch_all(connection)}


_audit = audit.c


class _AuditRow(NamedTuple):
    seq: int
    entry: AuditEntry

    @classmethod
    def build(cls, seq: int, *values: Any) -> "_AuditRow":
        return cls(seq, AuditEntry(*values))


_ENTRIES: Final = RowQuery(
    _AuditRow.build, select(_audit.seq, _audit.at, _audit.who, _audit.peer, _audit.action, _audit.object.label("on"))
).order_by(_audit.seq.desc())
_LAST_ENTRY: Final = select_values(float, func.max(_audit.at))
_NEWEST_EXCESS: Final = RowQuery(int, select(_audit.seq)).order_by(_audit.seq.desc()).offset(bindparam("most")).limit(1)


class Actor(NamedTuple):
    """Who does something that is committed together with its entry."""

    who: str
    """The name of the credential, or the person."""
    peer: str | None = None
    """The address that called."""


class LinkedEntry(NamedTuple):
    """An entry for a page, and what it is about, if that is still stored."""

    entry: AuditEntry
    delivery_id: str | None = None
    channel: str | None = None
    """The delivery's."""
    incident_id: str | None = None
    title: str | None = None
    """The incident's."""

    @property
    def rest(self) -> str:
        """The object without the id that is linked."""
        return self.entry.on.partition(" ")[2] if self.delivery_id or self.incident_id else self.entry.on


_FIND_DELIVERIES: Final = select_tuples(tuple[str, str], select(deliveries.c.id, deliveries.c.channel)).where(
    deliveries.c.id.in_(bindparam("ids", expanding=True))
)
_FIND_INCIDENTS: Final = select_tuples(tuple[str, str], select(incidents.c.id, incidents.c.title)).where(
    incidents.c.id.in_(bindparam("ids", expanding=True))
)


class OutboxAudit:
    def __init__(self, store: Store) -> None:
        self._store = store

    async def add(self, entry: AuditEntry) -> None:
        """Commits one. Raises AuditUnavailableError."""
        about = entry.who, entry.peer, entry.action, entry.on
        try:
            await self._store.run(lambda transaction: insert_entry(transaction, *about))
        except StoreUnavailableError as error:
            raise AuditUnavailableError(str(error)) from None

    async def list_entries(self, limit: int, before: int | None) -> tuple[Sequence[AuditEntry], int | None]:
        """See shared.http.access.AuditLog."""
        query = _ENTRIES if before is None else _ENTRIES.where(_audit.seq < before)
        try:
            rows = await self._store.read(query.limit(limit + 1).fetch_all)
        except StoreUnavailableError as error:
            raise AuditUnavailableError(str(error)) from None
        next_before = rows[limit - 1].seq if len(rows) > limit else None
        return [row.entry for row in rows[:limit]], next_before


def find_linked(connection: Connection, entries: Sequence[AuditEntry]) -> list[LinkedEntry]:
    """Each entry with the delivery or the incident whose id its object begins with."""
    ids = {entry: entry.on.partition(" ")[0] for entry in entries}
    values = {"ids": list(set(ids.values()))}
    channels = dict(_FIND_DELIVERIES.fetch_all(connection, values))
    titles = dict(_FIND_INCIDENTS.fetch_all(connection, values))

    def link(entry: AuditEntry, found: str) -> LinkedEntry:
        if found in channels:
            return LinkedEntry(entry, delivery_id=found, channel=channels[found])
        if found in titles:
            return LinkedEntry(entry, incident_id=found, title=titles[found])
        return LinkedEntry(entry)

    return [link(entry, ids[entry]) for entry in entries]


def insert_entry(
    transaction: Transaction, who: str, peer: str | None, action: str, on: str, incident_id: str | None = None
) -> None:
    """Adds an entry of now, by the database's clock, which the retention goes by; `incident_id`: if it is about one."""
    row = {"who": clean_for_database(who), "peer": peer, "action": action, "object": clean_for_database(on)}
    row["incident_id"] = incident_id
    transaction.connection.execute(insert(audit), {**row, "at": transaction.now})


async def prune_audit(store: Store, cutoff: float, max_entries: int, step: int) -> int:
    """Removes entries from before `cutoff`, and all but the newest `max_entries`, `step` in one transaction; how many.

    Raises StoreUnavailableError; the steps before it are done.
    """
    newest = await store.read(partial(_find_excess, max_entries=max_entries))
    oldest = select(_audit.seq).where(or_(_audit.at < cutoff, _audit.seq <= newest)).order_by(_audit.seq).limit(step)

    def remove(transaction: Transaction) -> int:
        connection = transaction.connection
        last = _LAST_ENTRY.where(_audit.seq.in_(oldest)).fetch_first(connection)
        record_pruned(transaction, PrunedKind.AUDIT, last)
        return connection.execute(delete(audit).where(_audit.seq.in_(oldest))).rowcount

    removed_count = 0
    while removed := await store.run(remove):
        removed_count += removed
    return removed_count


def _find_excess(connection: Connection, max_entries: int) -> int:
    """The newest entry that is one too many; 0 if there is none."""
    return _NEWEST_EXCESS.fetch_first(connection, {"most": max_entries}) or 0
