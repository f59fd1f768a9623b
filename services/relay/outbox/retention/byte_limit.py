"""How many bytes the outbox may hold, and when webhooks are refused since it is full.

Where a whole pruning round (see `by_bytes`) leaves so many bytes that cannot be pruned that they alone come
near the limit, webhooks are refused, and Alertmanager sends them again: firing ones first, resolved ones only a quarter
beyond the limit, since they release what their incident holds. Until a round has shown that, webhooks are accepted,
since the round may make space; but only a little beyond the limit, or beyond what was there already.
"""

import asyncio
import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import structlog

from services.relay.outbox.engine.store import Store
from services.relay.outbox.engine.work_queue import StoreUnavailableError
from services.relay.outbox.retention.by_bytes import PRUNE_ABOVE, ROW_OVERHEAD, measure_bytes

_FIRING_CEILING: Final = 0.9
"""Up to which part of the limit a webhook that fires is taken, while nothing more can be dropped."""
_OVERRUN: Final = 0.1
"""What is taken beyond the limit, in parts of it, while more may be dropped."""
_RESOLVED_OVERRUN: Final = 0.25
"""The same of what resolves, at any time: it lets go of what its incident holds."""
_COPIES_OF_EVENT: Final = 2
"""An event is kept as it came, and as it is read."""
_DELIVERIES_OVERHEAD: Final = 4 * ROW_OVERHEAD
_MEASURE_INTERVAL: Final = 1.0
"""From one measurement to the next, at least, whatever is accepted."""
_FULL_MEASURE_INTERVAL: Final = 30.0
"""The same while nothing more can be dropped, because each try searches everything."""
_NOTHING_TO_PRUNE: Final = "outbox is full and nothing can be pruned; webhooks are refused"
_PRUNING_TOO_SLOW: Final = "outbox grows faster than retention prunes it; webhooks are refused"

_EMPTY_DATABASE_BYTES: Final = 1024 * 1024
"""Bytes of an empty outbox, rather too many."""

log = structlog.get_logger(__name__)


class ByteLimit:
    """The limit and what counts against it; for the event loop."""

    def __init__(self) -> None:
        self.max_bytes = 0
        """`retention.max_bytes`; 0 sets no limit."""
        self._measured_bytes = 0
        self._started_bytes = 0
        """Bytes of all webhooks that were reserved."""
        self._finished_bytes = 0
        """Bytes of those whose commit is over, whether it succeeded or not."""
        self._finished_when_measured = 0
        """`_finished_bytes` when the last measurement began, which includes them."""
        self._bytes_after_pruning = 0
        """Bytes before the first pruning round, or after the last one."""
        self._nothing_to_prune = False
        """Whether the last whole pruning round left too much."""
        self._full_reason = ""
        """Why webhooks are refused, while they are."""
        self._near_limit = asyncio.Event()

    @property
    def used_bytes(self) -> int:
        """What was measured last, and what was reserved since; rather too much than too little."""
        return self._measured_bytes + self._started_bytes - self._finished_when_measured

    @property
    def accepted_bytes(self) -> int:
        """Bytes of all webhooks that were reserved since the start."""
        return self._started_bytes

    @contextmanager
    def reserve(self, size: int, *, resolved: bool) -> Iterator[None]:
        """While a webhook of so many bytes is committed. Raises StoreUnavailableError if it is refused."""
        cost = _estimate_stored_size(size)
        if self.max_bytes and self.used_bytes + cost > self._compute_ceiling(resolved=resolved):
            self._near_limit.set()
            raise self._build_full_error()
        self._started_bytes += cost
        if self.used_bytes > self.max_bytes * PRUNE_ABOVE:
            self._near_limit.set()
        try:
            yield
        finally:
            self._finished_bytes += cost

    async def measure(self, store: Store) -> None:
        """Measures the outbox again. Raises StoreUnavailableError."""
        first = not self._measured_bytes
        counted = self._finished_bytes
        self._measured_bytes = await store.read(measure_bytes)
        self._finished_when_measured = counted
        if first:
            self._bytes_after_pruning = self._measured_bytes
        if self._full_reason and self.used_bytes <= self.max_bytes * PRUNE_ABOVE:
            self._full_reason = ""
            log.info("outbox accepts webhooks again", used_bytes=self.used_bytes, max_bytes=self.max_bytes)

    def record_pruning(self, *, nothing_to_prune: bool) -> None:
        """Records the end of a whole pruning round.

        Args:
            nothing_to_prune: whether it freed next to nothing, and more than `PRUNE_ABOVE` is left.
        """
        self._nothing_to_prune = nothing_to_prune
        self._bytes_after_pruning = self._measured_bytes

    def _compute_ceiling(self, *, resolved: bool) -> float:
        if self._nothing_to_prune:
            return self.max_bytes * (1 + _RESOLVED_OVERRUN if resolved else _FIRING_CEILING)
        return max(self.max_bytes, self._bytes_after_pruning) + self.max_bytes * (
            _RESOLVED_OVERRUN if resolved else _OVERRUN
        )

    def _build_full_error(self) -> StoreUnavailableError:
        cause = _NOTHING_TO_PRUNE if self._nothing_to_prune else _PRUNING_TOO_SLOW
        if self._full_reason != cause:
            self._full_reason = cause
            log.error(
                cause,
                used_bytes=self.used_bytes,
                max_bytes=self.max_bytes,
                hint="see which channel fails, or raise retention.max_bytes where the disk has more",
            )
        return StoreUnavailableError(
            f"the outbox is full: it holds {self.used_bytes} bytes, and retention.max_bytes is {self.max_bytes}"
        )

    async def wait_near_limit(self, seconds: float) -> None:
        """Returns after so long, or earlier where what was accepted meanwhile comes near the limit."""
        try:
            async with asyncio.timeout(seconds):
                await asyncio.sleep(
                    min(seconds, _FULL_MEASURE_INTERVAL if self._nothing_to_prune else _MEASURE_INTERVAL)
                )
                await self._near_limit.wait()
        except TimeoutError:
            pass
        self._near_limit.clear()


def compute_minimum(size: int) -> int:
    """The least limit with which an empty outbox takes a webhook of so many bytes."""
    return math.ceil((_EMPTY_DATABASE_BYTES + _estimate_stored_size(size)) / _FIRING_CEILING)


def _estimate_stored_size(size: int) -> int:
    return _COPIES_OF_EVENT * size + _DELIVERIES_OVERHEAD
