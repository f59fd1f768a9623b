from collections.abc import Iterable, Iterator
from typing import Final

from prometheus_client.core import Metric
from prometheus_client.registry import Collector

from services.exporter.model import TargetKey
from services.exporter.results import ExporterMetrics

KEY: Final = TargetKey()


def collect_families(metrics: ExporterMetrics) -> Iterator[Metric]:
    """The families of all parts, each once."""
    families: dict[str, Metric] = {}
    for part in metrics.get_sources():
        for family in part.collect():
            if merged := families.get(family.name):
                merged.samples.extend(family.samples)
            else:
                families[family.name] = family
    yield from families.values()


class CollectedMetrics(ExporterMetrics, Collector):
    """The exporter's metrics as one collector."""

    def __init__(self, targets: Iterable[tuple[str, str]], services: Iterable[str], key: TargetKey = KEY) -> None:
        super().__init__()
        self.configure(dict.fromkeys(targets, key), services)

    def collect(self) -> Iterator[Metric]:
        return collect_families(self)
