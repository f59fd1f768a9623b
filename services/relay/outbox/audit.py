"""The audit in the outbox's database: who did what, for as long as the retention keeps it."""

from collections.abc import Sequence

from sqlalchemy import delete, insert, or_, select

from services.relay.outbox.engine.batching import Transaction
from services.relay.outbox.engine.store import Store
from services.relay.outbox.engine.work_queue import StoreUnavailableError
from services.relay.outbox.tables import audit, clean_for_database
from shared.http.audit_log import AuditEntry, AuditUnavailableError

_audit = audit.c


class OutboxAudit:
    """Keeps entries in the outbox."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def add(self, entry: AuditEntry) -> None:
        """Commits one. Raises AuditUnavailableError."""
        row = {
            "who": clean_for_database(entry.who),
            "peer": entry.peer,
            "action": entry.action,
            "object": clean_for_database(entry.on),
        }

        def commit(transaction: Transaction) -> None:  # by the database's clock, which the retention goes by
            transaction.connection.execute(insert(audit), {**row, "at": transaction.now})

        try:
            await self._store.run(commit)
        except StoreUnavailableError as error:
            raise AuditUnavailableError(str(error)) from None

    async def list_entries(self, limit: int, before: int | None) -> tuple[Sequence[AuditEntry], int | None]:
        """See shared.http.audit_log.AuditLog."""
        query = select(_audit.seq, _audit.at, _audit.who, _audit.peer, _audit.action, _audit.object).order_by(
            _audit.seq.desc()
        )
        if before is not None:
            query = query.where(_audit.seq < before)
        try:
            rows = await self._store.read(lambda connection: connection.execute(query.limit(limit + 1)).all())
        except StoreUnavailableError as error:
            raise AuditUnavailableError(str(error)) from None
        following = rows[limit - 1][0] if len(rows) > limit else None
        return [AuditEntry(*row[1:]) for row in rows[:limit]], following


async def prune_audit(store: Store, cutoff: float, max_entries: int, step: int) -> int:
    """Removes entries from before `cutoff`, and all but the newest `max_entries`, `step` in one transaction.

    Returns:
        How many went.

    Raises:
        StoreUnavailableError: what went before stays so.
    """
    too_many = select(_audit.seq).order_by(_audit.seq.desc()).offset(max_entries).limit(1)
    newest = await store.read(lambda connection: connection.execute(too_many).scalar()) or 0
    oldest = select(_audit.seq).where(or_(_audit.at < cutoff, _audit.seq <= newest)).order_by(_audit.seq).limit(step)

    def remove(transaction: Transaction) -> int:
        return transaction.connection.execute(delete(audit).where(_audit.seq.in_(oldest))).rowcount

    gone = 0
    while removed := await store.run(remove):
        gone += removed
    return gone
