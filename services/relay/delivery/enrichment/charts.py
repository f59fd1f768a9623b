"""Current values and charts for messages: in bounded time, shared by the channels of an event, a few in a storm.

What is late, refused or over the limits of `prometheus_limits` is left out of the message.
"""

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

import structlog

from services.relay.delivery.enrichment.chart_worker import ChartWorker, DrawingError, can_draw
from services.relay.delivery.enrichment.measurement import measure
from services.relay.delivery.enrichment.prometheus_limits import PrometheusLimits
from services.relay.model import Event, Message, PartOutcome
from services.relay.prometheus_api import PrometheusClient, PrometheusError
from shared.process.logs import describe_exception

MAX_SECONDS: Final = 3.0
"""For all of it."""
MAX_VALUES_SECONDS: Final = 1.0
"""For the values alone."""
_MARGIN: Final = 0.1
"""Seconds in which the values arrive of a chart that is late."""
_SHARED_SECONDS: Final = 60.0
"""Seconds for which the channels of an event share one chart."""
_MAX_SHARED: Final = 16

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Picture:
    """What Prometheus adds to a message."""

    outcome: PartOutcome
    current_values: Mapping[str, str] | None = None
    png: bytes | None = None


@dataclass(frozen=True, slots=True)
class _Shared:
    """What the channels of an event share."""

    started_at: float
    values: asyncio.Future[Mapping[str, str]]
    drawing: asyncio.Task[Picture]


class Charts:
    """Makes them.

    Args:
        prometheus: what is asked.
        zone: the readers' time zone.
        clock: unix seconds.
    """

    def __init__(self, prometheus: PrometheusClient, zone: str, clock: Callable[[], float]) -> None:
        self._prometheus = prometheus
        self._zone = zone
        self._clock = clock
        self._worker = ChartWorker() if can_draw() else None
        self._shared: OrderedDict[tuple[str, int], _Shared] = OrderedDict()
        self._limits = PrometheusLimits()

    async def make(self, message: Message, max_seconds: float) -> Picture:
        """What there is for a message within some seconds, 3 at most."""
        shared = self._share(message)
        if shared is None:
            return Picture(PartOutcome.SKIPPED)
        try:
            async with asyncio.timeout(min(max_seconds, MAX_SECONDS + _MARGIN)):
                return await asyncio.shield(shared.drawing)
        except TimeoutError:
            return Picture(PartOutcome.LATE)

    async def read_values(self, message: Message, max_seconds: float) -> Mapping[str, str]:
        """The current values alone, within some seconds, 1 at most; empty where they are late, or there are none."""
        shared = self._share(message)
        if shared is None:
            return {}
        try:
            async with asyncio.timeout(min(max_seconds, MAX_VALUES_SECONDS)):
                return await asyncio.shield(shared.values)
        except TimeoutError:
            return {}

    def _share(self, message: Message) -> _Shared | None:
        """What is being made for the event, or was a moment ago; None if nothing may be made now."""
        task, loop = message.task, asyncio.get_running_loop()
        key, now = (task.incident_id, task.last_event_seq), loop.time()
        shared = self._shared.get(key)
        if shared is None or shared.started_at < now - _SHARED_SECONDS:
            waiting = sum(not each.drawing.done() for each in self._shared.values())
            if not self._limits.admit(waiting):
                return None
            values: asyncio.Future[Mapping[str, str]] = loop.create_future()
            drawing = asyncio.create_task(self._make(message.event, values), name="chart")
            shared = self._shared[key] = _Shared(now, values, drawing)
            while len(self._shared) > _MAX_SHARED:
                self._shared.popitem(last=False)
        return shared

    async def close(self) -> None:
        """Ends what is being made, and the process that draws."""
        drawing = [shared.drawing for shared in self._shared.values()]
        for task in drawing:
            task.cancel()
        await asyncio.gather(*drawing, return_exceptions=True)
        if self._worker is not None:
            await self._worker.close()
        await self._prometheus.close()

    async def _make(self, event: Event, shared_values: asyncio.Future[Mapping[str, str]]) -> Picture:
        values: Mapping[str, str] | None = None
        try:
            async with asyncio.timeout(MAX_SECONDS):
                if self._worker is not None:
                    self._worker.start()
                found = await measure(self._prometheus, event, self._clock(), self._zone)
                if found is None:
                    return Picture(PartOutcome.ABSENT)
                values = found.current_values
                shared_values.set_result(values)
                png = await self._worker.draw(found.spec) if self._worker is not None else None
                return Picture(PartOutcome.ADDED, values, png)
        except TimeoutError:
            self._limits.pause(f"not ready within {MAX_SECONDS:g} s")
            return Picture(PartOutcome.LATE, values)
        except (PrometheusError, DrawingError) as error:
            self._limits.pause(str(error))
            return Picture(PartOutcome.FAILED, values)
        except Exception as error:  # noqa: BLE001  # a message goes without its chart, whatever is wrong with it
            log.error("unexpected error in a chart", **describe_exception(error))  # noqa: TRY400  # without its text
            return Picture(PartOutcome.FAILED, values)
        finally:
            if not shared_values.done():
                shared_values.set_result({})
