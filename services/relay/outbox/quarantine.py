"""Webhooks that were not accepted, kept so that a person can see and replay them: the newest 100, 512 KiB of each."""

import re
from dataclasses import dataclass
from typing import Final, NamedTuple

import structlog
from sqlalchemy import ColumnElement, Integer, bindparam, delete, func, insert, select, update

from services.relay.outbox.audit import PrunedKind, insert_entry, record_pruned
from services.relay.outbox.store import Store, Transaction
from services.relay.outbox.tables import clean_for_database, quarantine
from shared.http.json_api import RefusedError
from shared.sql.rows import select_rows, select_values

MAX_ENTRIES: Final = 100
MAX_BODY_BYTES: Final = 512 * 1024
"""Bytes that are kept of one body."""
_HINTS: Final = {
    400: "Find who sends it: POST /alerts takes Alertmanager's webhook, version 4. If an alert is in it, repair it.",
    413: "Raise intake.max_body, or set max_alerts in Alertmanager's webhook_configs. What still fires comes again.",
}
_UNKNOWN: Final = f"no such entry; the quarantine holds the newest {MAX_ENTRIES}"

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class QuarantineEntry:
    """A webhook that was not accepted. Times are unix seconds."""

    id: int
    received_at: float
    source: str
    code: int
    """What was answered: 400 or 413."""
    reason: str
    body_bytes: int
    """Bytes of the body that are kept."""
    replayed_at: float | None
    """When it was accepted after all."""
    replayed_by: str | None
    incident_id: str | None
    """Of what was accepted."""

    @property
    def is_cut(self) -> bool:
        """Whether its end is not kept."""
        return self.body_bytes >= MAX_BODY_BYTES

    @property
    def hint(self) -> str:
        """What a person can do about it."""
        return _HINTS.get(self.code, "See the relay's log.")


class Replay(NamedTuple):
    """A request to accept an entry after all."""

    entry: int
    who: str
    peer: str | None
    """The address that called."""


class UnknownEntryError(RefusedError):
    """There is no such entry, or not any more; the message is a sentence."""

    status = 404


class AlreadyReplayedError(RefusedError):
    """The message is a sentence that says by whom."""

    status = 409


_ENTRIES: Final = select_rows(
    QuarantineEntry,
    quarantine.c,
    id=quarantine.c.seq,
    body_bytes=func.length(quarantine.c.body, type_=Integer),
).order_by(quarantine.c.seq.desc())
_ENTRY: Final = _ENTRIES.where(quarantine.c.seq == bindparam("entry"))
_RECORD_REPLAY: Final = (
    update(quarantine)
    .where(quarantine.c.seq == bindparam("entry"), quarantine.c.replayed_at.is_(None))
    .values(replayed_at=bindparam("at"), replayed_by=bindparam("who"), incident_id=bindparam("incident"))
)
_LAST_RECEIVED: Final = select_values(float, func.max(quarantine.c.received_at))
_BODY: Final = select_values(bytes, quarantine.c.body).where(quarantine.c.seq == bindparam("entry"))


async def quarantine_webhook(store: Store, body: bytes, *, source: str, code: int, reason: str) -> None:
    """Keeps a body that was answered with `code` for `reason`, instead of the oldest. Raises StoreUnavailableError."""
    row = {
        "source": clean_for_database(source),
        "code": code,
        "reason": clean_for_database(reason),
        "body": body[:MAX_BODY_BYTES],
    }
    newest = select(quarantine.c.seq).order_by(quarantine.c.seq.desc()).limit(MAX_ENTRIES)

    def commit(transaction: Transaction) -> None:
        transaction.connection.execute(insert(quarantine), {**row, "received_at": transaction.now})
        delete_entries(transaction, quarantine.c.seq.not_in(newest))

    await store.run(commit)
    log.warning("webhook quarantined", status=code, error=reason, source=source)


def delete_entries(transaction: Transaction, condition: ColumnElement[bool]) -> int:
    """Deletes the entries that meet a condition, and records up to when they go; gives how many they were."""
    connection = transaction.connection
    record_pruned(transaction, PrunedKind.QUARANTINE, _LAST_RECEIVED.where(condition).fetch_first(connection))
    return connection.execute(delete(quarantine).where(condition)).rowcount


async def list_entries(store: Store, limit: int = MAX_ENTRIES, before: int | None = None) -> list[QuarantineEntry]:
    """What is kept, or is older than `before`, the newest first. Raises StoreUnavailableError."""
    query = _ENTRIES if before is None else _ENTRIES.where(quarantine.c.seq < before)
    return await store.read(query.limit(limit).fetch_all)


async def read_entry(store: Store, entry: int) -> QuarantineEntry:
    """One that is kept. Raises UnknownEntryError, StoreUnavailableError."""
    return _check_entry(await store.read(lambda connection: _ENTRY.fetch_first(connection, {"entry": entry})))


async def read_body(store: Store, entry: int) -> bytes | None:
    """The body of one that is kept; None if there is none. Raises StoreUnavailableError."""
    return await store.read(lambda connection: _BODY.fetch_first(connection, {"entry": entry}))


async def read_webhook(store: Store, text: str) -> tuple[QuarantineEntry, bytes]:
    """One that is kept, by its number, with its body. Raises UnknownEntryError, StoreUnavailableError."""
    if not re.fullmatch("[0-9]{1,18}", text):
        raise UnknownEntryError(_UNKNOWN)
    entry = await read_entry(store, int(text))
    body = await read_body(store, entry.id)
    if body is None:  # it was dropped in this moment
        raise UnknownEntryError(_UNKNOWN)
    return entry, body


def record_replay(transaction: Transaction, replay: Replay, incident_id: str) -> None:
    """Records that an entry is accepted in this transaction, once. Raises UnknownEntryError, AlreadyReplayedError."""
    values = {"entry": replay.entry, "at": transaction.now, "who": clean_for_database(replay.who)}
    if not transaction.connection.execute(_RECORD_REPLAY, {**values, "incident": incident_id}).rowcount:
        found = _check_entry(_ENTRY.fetch_first(transaction.connection, {"entry": replay.entry}))
        raise AlreadyReplayedError(f"it was replayed already, by {found.replayed_by}")
    insert_entry(transaction, replay.who, replay.peer, "replay", f"quarantine {replay.entry}")


def _check_entry(found: QuarantineEntry | None) -> QuarantineEntry:
    if found is None:
        raise UnknownEntryError(_UNKNOWN)
    return found
