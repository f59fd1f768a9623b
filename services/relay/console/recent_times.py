"""The steps of the plot, shared by all viewers: what is over is read once, and the rest every few seconds."""

import math
from collections.abc import Mapping
from functools import partial
from typing import Final

from services.relay.console.delivery_plot import STEP_SECONDS, find_start
from services.relay.outbox.engine.store import Store
from services.relay.outbox.queries.delivery_times import DeliveryTimes, read_recent_times
from services.relay.shared_read import SharedRead

_MAX_AGE: Final = 5.0
_SETTLE_SECONDS: Final = 60.0
"""After which nothing is added to a step: a transaction with an earlier time has ended by then."""


class RecentTimes:
    """The delivery times of the last hours.

    Args:
        store: the outbox.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._steps: Mapping[float, DeliveryTimes] = {}
        self._settled_until = 0.0
        """The start of the first step that is read again."""
        self._shared = SharedRead(self._read, _MAX_AGE)

    async def get(self) -> tuple[Mapping[float, DeliveryTimes], float]:
        """The steps by their start, and the start of the first. Raises StoreUnavailableError."""
        return await self._shared.get()

    async def _read(self) -> tuple[Mapping[float, DeliveryTimes], float]:
        settled_until = self._settled_until
        read = partial(
            read_recent_times,
            clock=self._store.clock,
            find_start=lambda now: max(find_start(now), settled_until),
            step_seconds=STEP_SECONDS,
        )
        now, found = await self._store.read(read)
        start = find_start(now)
        earlier = {at: step for at, step in self._steps.items() if start <= at < settled_until}
        self._steps = {**earlier, **found}
        self._settled_until = math.floor((now - _SETTLE_SECONDS) / STEP_SECONDS) * float(STEP_SECONDS)
        return self._steps, start
