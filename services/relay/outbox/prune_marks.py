"""Up to when retention has deleted rows of a kind, so that a report of that time can say what it lacks."""

from collections.abc import Mapping
from enum import StrEnum
from typing import Final, NamedTuple

from sqlalchemy import Connection, select

from services.relay.outbox.engine.batching import Transaction
from services.relay.outbox.engine.dialect import build_insert
from services.relay.outbox.rows import RowQuery
from services.relay.outbox.tables import pruned


class PrunedKind(StrEnum):
    """What retention deletes, and by which time of a row."""

    DELIVERIES = "deliveries"
    """By when they were delivered, superseded or given up."""
    INCIDENTS = "incidents"
    """By when their last episode started."""
    AUDIT = "audit"
    QUARANTINE = "quarantine"


class _MarkRow(NamedTuple):
    """Up to when rows of a kind were deleted."""

    kind: str
    up_to: float


_MARKS: Final = RowQuery(_MarkRow, select(pruned.c.kind, pruned.c.up_to))


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
    return {PrunedKind(row.kind): row.up_to for row in _MARKS.fetch_all(connection)}
