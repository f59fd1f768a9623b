"""Reads reports for the console: one at a time, and one for all who ask for the same period within seconds.

A report of 100,000 deliveries keeps one of the outbox's readers busy for a quarter of a second, and the senders need
these, too.
"""

import asyncio
from collections.abc import Collection, Mapping
from datetime import tzinfo
from functools import partial
from typing import Final

from services.relay.outbox.engine.store import Store
from services.relay.outbox.engine.work_queue import StoreUnavailableError
from services.relay.outbox.queries.report import Report, read_report
from services.relay.report.period import PARAMETERS, parse_period

_FRESH_SECONDS: Final = 10.0
_MAX_RECENT: Final = 8
_MAX_WAIT: Final = 8.0
"""Seconds for which one waits behind other reports, as long as a read itself may take."""


class ReportReader:
    """Reads reports.

    Args:
        store: the outbox.
        channels: the configured names.
        zone: the readers'.
    """

    def __init__(self, store: Store, channels: Collection[str], zone: tzinfo) -> None:
        self._store = store
        self._channels = channels
        self._zone = zone
        self._lock = asyncio.Lock()
        self._recent: dict[tuple[str | None, ...], tuple[float, Report]] = {}

    async def read(self, parameters: Mapping[str, str]) -> Report:
        """The report of the period that the parameters of a query name, at most some seconds old.

        Raises:
            ValueError: they name none; with what was expected.
            StoreUnavailableError: it cannot be read.
        """
        period = parse_period(parameters, self._store.clock(), self._zone)
        key = tuple(parameters.get(name) for name in PARAMETERS)
        clock = asyncio.get_running_loop().time
        try:
            await asyncio.wait_for(self._lock.acquire(), _MAX_WAIT)
        except TimeoutError:
            raise StoreUnavailableError("other reports are being read") from None
        try:
            recent = self._recent.get(key)
            if recent is not None and clock() - recent[0] < _FRESH_SECONDS:
                return recent[1]
            report = await self._store.read(partial(read_report, period=period, channels=self._channels))
            self._recent.pop(key, None)
            self._recent[key] = clock(), report
            if len(self._recent) > _MAX_RECENT:
                del self._recent[next(iter(self._recent))]
            return report
        finally:
            self._lock.release()
