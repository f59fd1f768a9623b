"""How many bytes the outbox holds, and how many it may: what is measured, and what was accepted since.

From `START` of `retention.max_bytes` on, retention drops the oldest of what is over (see `prune`), down to `GOAL`. What
cannot be dropped is still to be delivered, or is the latest event of an open incident. Where a whole round has left so
much that this alone comes near the limit, webhooks are refused, and Alertmanager sends them again: first those that
fire, and only a quarter beyond the limit those that resolve, since they let go of what their incident holds. Until a
round has shown that, what comes is taken, for the round may well make room; yet only little beyond the limit, or beyond
what was there already.
"""

import asyncio
import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import structlog
from sqlalchemy import Connection, func, select

from services.relay.outbox.schema import deliveries, events, quarantine
from services.relay.outbox.store import Store
from services.relay.outbox.waiting import StoreUnavailableError

START: Final = 0.8
GOAL: Final = 0.7
_FIRING: Final = 0.9
"""Up to which part of the limit a webhook that fires is taken, while nothing more can be dropped."""
_BEYOND: Final = 0.1
"""What is taken beyond the limit, in parts of it, while more may be dropped."""
_BEYOND_RESOLVED: Final = 0.25
"""The same of what resolves, at any time: it lets go of what its incident holds."""
ROW_BYTES: Final = 1024
"""What a row takes beside its large columns: the others, its places in the indexes, its attempts."""
_COPIES: Final = 2
"""An event is kept as it came, and as it is read."""
_DELIVERIES_BYTES: Final = 4 * ROW_BYTES
_AGAIN_SECONDS: Final = 1.0
"""From one measurement to the next, at least, whatever is accepted."""
_STUCK_SECONDS: Final = 30.0
"""The same while nothing more can be dropped, for each try looks through everything."""
_STAYS: Final = "the outbox is full; webhooks are refused until deliveries or incidents end"
_FASTER: Final = "the outbox fills faster than retention makes room; webhooks are refused until it has made some"

_EMPTY: Final = 1024 * 1024
"""Bytes of an outbox that holds nothing, rather too many."""

log = structlog.get_logger(__name__)


class ByteLimit:
    """The limit, for the event loop."""

    def __init__(self) -> None:
        self.most = 0
        """`retention.max_bytes`; 0 sets no limit."""
        self._measured = 0
        self._began = 0
        """Bytes of all webhooks that were taken in hand."""
        self._ended = 0
        """Bytes of those of them that are committed, or never will be."""
        self._counted = 0
        """`_ended` when the last measurement began, which saw all of those."""
        self._before = 0
        """What was there before the first round, or was left by one since."""
        self._stuck = False
        """Whether the last whole round left too much."""
        self._full = ""
        """Why webhooks are refused, while they are."""
        self._near = asyncio.Event()

    @property
    def used(self) -> int:
        """What was measured last, and what was taken in hand since; rather too much than too little."""
        return self._measured + self._began - self._counted

    @property
    def taken(self) -> int:
        """Bytes of all webhooks that were taken in hand since the start."""
        return self._began

    @contextmanager
    def taking(self, size: int, *, resolved: bool) -> Iterator[None]:
        """While a webhook of so many bytes is committed. Raises StoreUnavailableError where it is refused."""
        cost = _cost(size)
        if self.most and self.used + cost > self._ceiling(resolved=resolved):
            self._near.set()
            raise self._refusal()
        self._began += cost
        if self.used > self.most * START:
            self._near.set()
        try:
            yield
        finally:
            self._ended += cost

    async def measure(self, store: Store) -> None:
        """Has `used` say what is there now. Raises StoreUnavailableError."""
        first = not self._measured
        counted = self._ended
        self._measured = await store.read(measure)
        self._counted = counted
        if first:
            self._before = self._measured
        if self._full and self.used <= self.most * START:
            self._full = ""
            log.info("the outbox is not full any more", bytes=self.used, max_bytes=self.most)

    def round_ended(self, *, stuck: bool) -> None:
        """A whole round of retention is over; `stuck` where it freed next to nothing, and more than `START` is left."""
        self._stuck = stuck
        self._before = self._measured

    def _ceiling(self, *, resolved: bool) -> float:
        if self._stuck:
            return self.most * (1 + _BEYOND_RESOLVED if resolved else _FIRING)
        return max(self.most, self._before) + self.most * (_BEYOND_RESOLVED if resolved else _BEYOND)

    def _refusal(self) -> StoreUnavailableError:
        why = _STAYS if self._stuck else _FASTER
        if self._full != why:
            self._full = why
            log.error(
                why,
                bytes=self.used,
                max_bytes=self.most,
                hint="see which channel fails, or raise retention.max_bytes where the disk has more",
            )
        return StoreUnavailableError(
            f"the outbox is full: it holds {self.used} bytes, and retention.max_bytes is {self.most}"
        )

    async def wait(self, seconds: float) -> None:
        """Returns after so long, or earlier where what was accepted meanwhile comes near the limit."""
        try:
            async with asyncio.timeout(seconds):
                await asyncio.sleep(min(seconds, _STUCK_SECONDS if self._stuck else _AGAIN_SECONDS))
                await self._near.wait()
        except TimeoutError:
            pass
        self._near.clear()


def room_for(size: int) -> int:
    """The least limit with which an empty outbox takes a webhook of so many bytes."""
    return math.ceil((_EMPTY + _cost(size)) / _FIRING)


def _cost(size: int) -> int:
    return _COPIES * size + _DELIVERIES_BYTES


def measure(connection: Connection) -> int:
    """The bytes that are in use, for `Store.read`. Freed ones are used again, so they do not count."""
    if connection.dialect.name == "sqlite":
        pages, free, size = (
            int(connection.exec_driver_sql(f"PRAGMA {name}").scalar_one())
            for name in ("page_count", "freelist_count", "page_size")
        )
        return (pages - free) * size
    return sum(int(connection.execute(query).scalar_one()) for query in _TOTALS)


_TOTALS: Final = (
    select(
        func.coalesce(func.sum(func.pg_column_size(events.c.event) + func.pg_column_size(events.c.body) + ROW_BYTES), 0)
    ),
    select(
        func.coalesce(func.sum(func.coalesce(func.pg_column_size(deliveries.c.payload), 0) + ROW_BYTES), 0)
    ).select_from(deliveries),
    select(func.coalesce(func.sum(func.pg_column_size(quarantine.c.body) + ROW_BYTES), 0)),
)
