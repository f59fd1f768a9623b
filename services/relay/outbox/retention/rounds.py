"""Retention: prunes by age every few minutes, and by bytes whenever the outbox comes near its limit."""

import asyncio
from collections.abc import Sequence
from typing import Final

import structlog

from services.relay.outbox.engine.store import Store
from services.relay.outbox.engine.work_queue import StoreUnavailableError
from services.relay.outbox.retention.by_age import Pruner, PruneResult, prune_by_age
from services.relay.outbox.retention.by_bytes import prune_to_size
from services.relay.outbox.retention.byte_limit import ByteLimit

_PRUNE_INTERVAL: Final = 300.0
"""Seconds between two rounds."""
_MEASURE_INTERVAL: Final = 30.0
"""Seconds between two measurements, where little is accepted."""

log = structlog.get_logger(__name__)


async def run_retention(
    store: Store,
    max_age: float,
    max_deliveries: int,
    limit: ByteLimit | None = None,
    *,
    pruners: Sequence[Pruner] = (),
    min_age: float = 0.0,
    interval: float = _PRUNE_INTERVAL,
) -> None:
    """Prunes now and then until it is cancelled; while the store is unavailable it waits for its next round.

    Args:
        store: the outbox.
        max_age: seconds for which what is over is kept.
        max_deliveries: how many settled deliveries are kept.
        limit: of its bytes.
        pruners: remove what others own; called in each round.
        min_age: seconds for which what is over is kept whatever its bytes are.
        interval: seconds between two rounds.
    """
    limit = limit or ByteLimit()
    clock = asyncio.get_running_loop().time
    due = clock()
    while True:
        try:
            if clock() >= due:
                due = clock() + interval
                _log_pruned(await prune_by_age(store, max_age, max_deliveries, pruners))
            _log_pruned(await prune_to_size(store, limit, min_age))
        except StoreUnavailableError as error:
            log.warning("pruning stopped until the next round", error=str(error))
        except Exception:
            log.exception("unexpected error in retention; retention continues")
        await limit.wait_near_limit(min(_MEASURE_INTERVAL, max(0.0, due - clock())))


def _log_pruned(pruned: PruneResult) -> None:
    if pruned != PruneResult(0, 0):
        log.info("old rows pruned", deliveries=pruned.deliveries, events=pruned.events, quarantined=pruned.quarantined)
