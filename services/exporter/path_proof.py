"""The path proof: a metric takes the time at each multiple of `proof.every`, for a while, and a rule raises an alert.

The relay proves its channels by that alert. The multiples count from the epoch, so that all exporters begin the same
proof, also after a restart.
"""

from collections.abc import Callable, Iterator
from typing import Final, NamedTuple

from prometheus_client import CollectorRegistry
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from services.exporter.config import ExporterSettings

MAX_RAISED: Final = 120.0
"""Seconds: two scrapes a minute apart, and two evaluations, see each proof."""
_RAISED_PART: Final = 0.4
"""Of a shorter interval; the rest is longer, since Alertmanager sends no proof before it has seen the last one end."""


class PathProof(NamedTuple):
    """Where on the grid a moment is; all in Unix seconds."""

    started_at: float
    """When the last proof began."""
    ends_at: float
    """Until when its metric has that time."""
    next_at: float


def find_proof(every: float, now: float) -> PathProof:
    """The proof at a moment; `every` is the interval in seconds, over 0."""
    started_at = now // every * every
    return PathProof(started_at, started_at + min(MAX_RAISED, _RAISED_PART * every), started_at + every)


class PathProofCollector(Collector):
    """The metric of each service, computed at the scrape; none while proofs are off."""

    def __init__(
        self, registry: CollectorRegistry, get_settings: Callable[[], ExporterSettings], clock: Callable[[], float]
    ) -> None:
        """`clock`: Unix seconds."""
        self._get_settings = get_settings
        self._clock = clock
        registry.register(self)

    def collect(self) -> Iterator[Metric]:
        settings, now = self._get_settings(), self._clock()
        if not settings.proof.every:
            return
        proof = find_proof(settings.proof.every, now)
        metric = GaugeMetricFamily(
            "keypulse_path_proof_started_timestamp_seconds",
            "Unix time at which a proof of the path of alerts began, while it is raised; then 0.",
            labels=["service"],
        )
        services = [*(target.service for target in settings.targets), *(each.service for each in settings.backends)]
        for service in dict.fromkeys(services):
            metric.add_metric([service], proof.started_at if now < proof.ends_at else 0.0)
        yield metric
