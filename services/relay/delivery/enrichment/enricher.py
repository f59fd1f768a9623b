"""A message → the message with its runbook excerpt, its current values and its chart, in bounded time."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import tzinfo
from pathlib import Path
from typing import Final

from services.relay.delivery.enrichment.charts import Charts
from services.relay.delivery.enrichment.excerpt_variables import fill_excerpt
from services.relay.delivery.enrichment.runbook import Runbook
from services.relay.model import Message, MessagePart, PartOutcome, find_alertname
from services.relay.prometheus_api import PrometheusClient
from services.relay.text.title import is_resolved
from shared.config.secret_file import SecretFile
from shared.net.egress import EgressSettings

_SHARE_OF_ATTEMPT: Final = 1 / 3
"""Of the time of an attempt; the rest is for sending."""


@dataclass(frozen=True, slots=True)
class EnrichmentSettings:
    """What the configuration says about it; None adds nothing."""

    runbook: Path | str | None = None
    """A file, a folder or a URL."""
    prometheus_url: str | None = None
    prometheus_token_file: Path | None = None
    egress: EgressSettings | None = None
    """How the runbook's server and Prometheus are reached."""
    addresses: Mapping[str, str] = field(default_factory=dict)
    """What the variables of the runbook's commands stand for, such as `EXPORTER`."""


NO_ENRICHMENT: Final = EnrichmentSettings()


class Enricher:
    """Adds them.

    Args:
        runbook: None if there is none.
        charts: likewise.
        addresses: of the runbook's variables.
    """

    def __init__(self, runbook: Runbook | None, charts: Charts | None, addresses: Mapping[str, str]) -> None:
        self._runbook = runbook
        self._charts = charts
        self._addresses = addresses

    async def enrich(
        self, message: Message, *, shows_values: bool, shows_chart: bool
    ) -> tuple[Message, Mapping[MessagePart, PartOutcome]]:
        """The message with what there is for it, and how each part ended.

        Args:
            message: as built of its event. A resolved incident gets no excerpt.
            shows_values: whether its channel shows the current values.
            shows_chart: whether it shows these and a chart.
        """
        outcomes: dict[MessagePart, PartOutcome] = {}
        if self._runbook is not None and not is_resolved(message.event):  # what is over needs no steps
            excerpt = await self._runbook.find(find_alertname(message.event))
            excerpt = excerpt and fill_excerpt(excerpt, message, self._addresses)
            message = replace(message, excerpt=excerpt)
            outcomes[MessagePart.RUNBOOK] = PartOutcome.ADDED if excerpt else PartOutcome.ABSENT
        if self._charts is not None and not message.task.is_edit and message.event.alerts:
            seconds = (message.task.attempt_ends - asyncio.get_running_loop().time()) * _SHARE_OF_ATTEMPT
            if shows_chart:
                picture = await self._charts.make(message, seconds)
                message = replace(message, chart=picture.png, current_values=picture.current_values or {})
                outcomes[MessagePart.CHART] = picture.outcome
            elif shows_values:
                message = replace(message, current_values=await self._charts.read_values(message, seconds))
        return message, outcomes


@asynccontextmanager
async def open_enricher(
    settings: EnrichmentSettings, zone: tzinfo, clock: Callable[[], float] = time.time
) -> AsyncIterator[Enricher]:
    """Enriches while the body runs.

    Args:
        settings: of the configuration.
        zone: the readers' time zone.
        clock: unix seconds.
    """
    runbook = None if settings.runbook is None else Runbook(settings.runbook, settings.egress)
    charts = None
    if settings.prometheus_url is not None:
        token = SecretFile(settings.prometheus_token_file) if settings.prometheus_token_file else None
        charts = Charts(PrometheusClient(settings.prometheus_url, token, settings.egress), str(zone), clock)
    reading = asyncio.create_task(runbook.run(), name="runbook") if runbook else None
    try:
        yield Enricher(runbook, charts, settings.addresses)
    finally:
        if reading is not None:
            reading.cancel()
            await asyncio.gather(reading, return_exceptions=True)
        if charts is not None:
            await charts.close()
