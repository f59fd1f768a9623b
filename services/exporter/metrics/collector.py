"""The metrics of all configured targets and services.

A scrape exposes the last results, and never waits for KMS or for a backend. A result of a target that is not configured
is dropped: a probe that ends after a reload removed its target brings nothing back.
"""

import asyncio
from collections.abc import Iterable, Iterator, Mapping

from prometheus_client.core import Metric
from prometheus_client.registry import Collector

from services.exporter.metrics.backends import BackendMetrics
from services.exporter.metrics.targets import TargetMetrics
from services.exporter.model import BackendState, KeyInspection, ProbeResult, TargetKey


class ExporterMetrics(Collector):
    """Every metric of the exporter but those that each server has."""

    def __init__(self, targets: Iterable[tuple[str, str]], services: Iterable[str]) -> None:
        """Takes what `configure` takes."""
        self.changed = asyncio.Event()
        """Set after each change, for whoever encodes ahead of the scrape; it clears it."""
        self._targets: dict[tuple[str, str], TargetMetrics] = {}
        self._backends: dict[str, BackendMetrics] = {}
        self.configure(targets, services)

    def configure(self, targets: Iterable[tuple[str, str]], services: Iterable[str]) -> None:
        """From now on these are watched: what is new starts at 0, what is gone disappears, the others go on.

        Args:
            targets: (service, target) of each.
            services: those with a backend.
        """
        self._targets = {both: self._targets.get(both) or TargetMetrics(*both) for both in targets}
        self._backends = {service: self._backends.get(service) or BackendMetrics() for service in services}
        self.changed.set()

    def set_keys(self, keys: Mapping[str, TargetKey]) -> None:
        """The key of each target that is configured, by the target's name."""
        for (_, name), metrics in self._targets.items():
            metrics.set_key(keys[name])
        self.changed.set()

    def add_probe(self, result: ProbeResult) -> None:
        """Counts a round trip."""
        if target := self._targets.get((result.service, result.target)):
            target.add_probe(result)
            self.changed.set()

    def expire_success(self, service: str, target: str) -> bool:
        """The last round trip is too long ago to be a success. Returns whether that is a change."""
        metrics = self._targets.get((service, target))
        if metrics is None or not metrics.expire_success():
            return False
        self.changed.set()
        return True

    def add_inspection(self, inspection: KeyInspection) -> None:
        """Counts the calls of an inspection, and exposes the key as it was read; what is not known disappears."""
        if target := self._targets.get((inspection.service, inspection.target)):
            target.add_inspection(inspection)
            self.changed.set()

    def set_backend_states(self, *states: BackendState) -> None:
        """Shows the backend of one service as it is now, by all its replicas; what is not known of it disappears."""
        if backend := self._backends.get(states[0].service):
            backend.set_states(states)
            self.changed.set()

    def get_sources(self) -> list[TargetMetrics | BackendMetrics]:
        """All that is shown; each has a `version` that grows after each of its changes."""
        return [*self._targets.values(), *self._backends.values()]

    def collect(self) -> Iterator[Metric]:
        """The families of all parts, each once."""
        families: dict[str, Metric] = {}
        for part in self.get_sources():
            for family in part.collect():
                if merged := families.get(family.name):
                    merged.samples.extend(family.samples)
                else:
                    families[family.name] = family
        yield from families.values()
