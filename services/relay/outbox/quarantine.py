"""Webhooks that were not accepted, kept so that a person can see what was sent: the newest 100, 512 KiB of each."""

from dataclasses import dataclass
from typing import Final

import structlog
from sqlalchemy import ColumnElement, bindparam, delete, func, insert, select

from services.relay.outbox.engine.batching import Transaction
from services.relay.outbox.engine.store import Store
from services.relay.outbox.prune_marks import PrunedKind, record_pruned
from services.relay.outbox.rows import RowQuery, select_values
from services.relay.outbox.tables import clean_for_database, quarantine

MAX_ENTRIES: Final = 100
MAX_BODY_BYTES: Final = 512 * 1024
"""Bytes that are kept of one body."""

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class RefusedWebhook:
    """A webhook that was not accepted."""

    source: str
    code: int
    """What was answered: 400 or 413."""
    reason: str
    body: bytes


@dataclass(frozen=True, slots=True)
class QuarantineEntry:
    """One that is kept; `read_body` gives its body."""

    id: int
    received_at: float
    """Unix seconds."""
    source: str
    code: int
    reason: str
    body_bytes: int
    """Bytes of the body that are kept."""


_ENTRIES: Final = RowQuery(
    QuarantineEntry,
    select(
        quarantine.c.seq.label("id"),
        quarantine.c.received_at,
        quarantine.c.source,
        quarantine.c.code,
        quarantine.c.reason,
        func.length(quarantine.c.body).label("body_bytes"),
    ),
).order_by(quarantine.c.seq.desc())
_BODY: Final = select_values(bytes, quarantine.c.body).where(quarantine.c.seq == bindparam("entry"))


async def quarantine_webhook(store: Store, body: bytes, *, source: str, code: int, reason: str) -> None:
    """Keeps a body that was answered with `code` for `reason`. Raises StoreUnavailableError."""
    await add_entry(store, RefusedWebhook(source, code, reason, body[:MAX_BODY_BYTES]), max_entries=MAX_ENTRIES)
    log.warning("webhook quarantined", code=code, error=reason, source=source)


async def add_entry(store: Store, webhook: RefusedWebhook, *, max_entries: int) -> None:
    """Commits one, and drops the oldest over `max_entries`. Raises StoreUnavailableError."""
    row = {
        "source": clean_for_database(webhook.source),
        "code": webhook.code,
        "reason": clean_for_database(webhook.reason),
        "body": webhook.body,
    }
    newest = select(quarantine.c.seq).order_by(quarantine.c.seq.desc()).limit(max_entries)

    def commit(transaction: Transaction) -> None:
        transaction.connection.execute(insert(quarantine), {**row, "received_at": transaction.now})
        delete_entries(transaction, quarantine.c.seq.not_in(newest))

    await store.run(commit)


def delete_entries(transaction: Transaction, condition: ColumnElement[bool]) -> int:
    """Deletes the entries that meet a condition, and records up to when they go; gives how many they were."""
    connection = transaction.connection
    last = connection.execute(select(func.max(quarantine.c.received_at)).where(condition)).scalar_one()
    record_pruned(transaction, PrunedKind.QUARANTINE, last)
    return connection.execute(delete(quarantine).where(condition)).rowcount


async def list_entries(store: Store) -> list[QuarantineEntry]:
    """What is kept, the newest first. Raises StoreUnavailableError."""
    return await store.read(_ENTRIES.fetch_all)


async def read_body(store: Store, entry: int) -> bytes | None:
    """The body of one that is kept; None if there is none. Raises StoreUnavailableError."""
    return await store.read(lambda connection: _BODY.fetch_first(connection, {"entry": entry}))
