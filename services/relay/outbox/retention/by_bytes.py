"""Measures the bytes of the outbox, and prunes the oldest finished rows where they come near `retention.max_bytes`.

Finished rows go before their age, dead letters and quarantined webhooks included. Rows younger than the window in which
a late twin may come stay all the same; so does the audit, since whoever may send webhooks fills the outbox.
"""

from functools import partial
from typing import TYPE_CHECKING, Final

from sqlalchemy import Connection, bindparam, func, select, union_all

from services.relay.outbox.engine.store import Store
from services.relay.outbox.retention.by_age import FAST, PruneResult, prune_before
from services.relay.outbox.rows import RowQuery
from services.relay.outbox.tables import deliveries, events, quarantine

if TYPE_CHECKING:
    from services.relay.outbox.retention.byte_limit import ByteLimit

PRUNE_ABOVE: Final = 0.8
"""The part of `retention.max_bytes` from which on rows are pruned."""
PRUNE_DOWN_TO: Final = 0.7
"""The part of it down to which they are."""
_MINIMUM_SHARE: Final = 0.05
"""Of the limit in bytes: as much is dropped at a time, at least."""
ROW_OVERHEAD: Final = 1024
"""What a row takes beside its large columns: the other columns, its index entries, its attempts."""


def _read_cutoff(at: float | None) -> float | None:
    return at


_EPSILON: Final = 1e-3
"""Seconds: what came at a time goes with a cutoff behind it."""
_bytes_by_time = union_all(
    select(
        events.c.accepted_at.label("at"),
        (func.length(events.c.event) + func.length(events.c.body) + ROW_OVERHEAD).label("size"),
    ),
    select(deliveries.c.finished_at, func.coalesce(func.length(deliveries.c.payload), 0) + ROW_OVERHEAD).where(
        deliveries.c.finished_at.is_not(None)
    ),
    select(quarantine.c.received_at, func.length(quarantine.c.body) + ROW_OVERHEAD),
).subquery()
_running_totals = (
    select(_bytes_by_time.c.at, func.sum(_bytes_by_time.c.size).over(order_by=_bytes_by_time.c.at).label("sum"))
    .where(_bytes_by_time.c.at >= bindparam("after"))
    .subquery()
)
_CUTOFF_FOR_SIZE: Final = RowQuery(_read_cutoff, select(func.min(_running_totals.c.at))).where(
    _running_totals.c.sum >= bindparam("size")
)
_POSTGRESQL_SIZES: Final = (
    select(
        func.coalesce(
            func.sum(func.pg_column_size(events.c.event) + func.pg_column_size(events.c.body) + ROW_OVERHEAD), 0
        )
    ),
    select(
        func.coalesce(func.sum(func.coalesce(func.pg_column_size(deliveries.c.payload), 0) + ROW_OVERHEAD), 0)
    ).select_from(deliveries),
    select(func.coalesce(func.sum(func.pg_column_size(quarantine.c.body) + ROW_OVERHEAD), 0)),
)


async def prune_to_size(store: Store, limit: "ByteLimit", min_age: float) -> PruneResult:
    """Measures, and drops the oldest of what is over where that is near the limit. Raises StoreUnavailableError."""
    await limit.measure(store)
    if not limit.max_bytes or limit.used_bytes <= PRUNE_ABOVE * limit.max_bytes:
        limit.record_pruning(nothing_to_prune=False)
        return PruneResult(0, 0)
    pruned, cutoff, stuck = PruneResult(0, 0), 0.0, False
    while limit.used_bytes > PRUNE_DOWN_TO * limit.max_bytes and not stuck:
        newest = await store.run(lambda transaction: transaction.now) - min_age
        bytes_to_prune = max(limit.used_bytes - PRUNE_DOWN_TO * limit.max_bytes, _MINIMUM_SHARE * limit.max_bytes)
        end = await store.read(partial(_find_cutoff, after=cutoff, size=bytes_to_prune))
        cutoff = newest if end is None else min(newest, end)
        used_before, accepted_before = limit.used_bytes, limit.accepted_bytes
        more = await prune_before(store, cutoff, pace=FAST)
        pruned = PruneResult(*map(sum, zip(pruned, more, strict=True)))
        await limit.measure(store)
        freed = used_before + limit.accepted_bytes - accepted_before - limit.used_bytes
        stuck = cutoff >= newest and freed < _MINIMUM_SHARE * limit.max_bytes
    limit.record_pruning(nothing_to_prune=stuck and limit.used_bytes > PRUNE_ABOVE * limit.max_bytes)
    return pruned


def measure_bytes(connection: Connection) -> int:
    """The bytes that are in use, for `Store.read`. Freed ones are used again, so they do not count."""
    if connection.dialect.name == "sqlite":
        pages, free, size = (
            int(connection.exec_driver_sql(f"PRAGMA {name}").scalar_one())
            for name in ("page_count", "freelist_count", "page_size")
        )
        return (pages - free) * size
    return sum(int(connection.execute(query).scalar_one()) for query in _POSTGRESQL_SIZES)


def _find_cutoff(connection: Connection, after: float, size: float) -> float | None:
    """When so many bytes of rows that may be finished had come, from `after` on; None if there are fewer.

    Args:
        connection: to read with.
        after: unix seconds.
        size: in bytes.
    """
    found = _CUTOFF_FOR_SIZE.fetch_one(connection, {"after": after, "size": size})
    return None if found is None else found + _EPSILON
