"""The metrics of a table's rotations, as a file for the textfile collector of node_exporter.

A table of another program has no service that shows them. The file's name is that of the service.
"""

import asyncio
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import write_to_textfile
from prometheus_client.registry import Collector

from shared.backend_contract import (
    KEYRING_METRICS,
    KMS_DATA_KEYS,
    KMS_ROTATION_FAILURES,
    KMS_ROTATION_IN_PROGRESS,
    KMS_ROTATION_LAST_FAILURE,
    KMS_ROTATION_LAST_SUCCESS,
)
from shared.keyring.external.administration import ExternalAdministration
from shared.keyring.rotation_metrics import KeyringMetrics

_MODE: Final = 0o644  # another user's collector reads it


class _TableCollector(Collector):
    def __init__(self, metrics: KeyringMetrics, service: str) -> None:
        self._metrics, self._service = metrics, service

    def collect(self) -> Iterator[Metric]:
        found = self._metrics
        families: Mapping[str, Mapping[tuple[str, ...], float]] = {
            KMS_ROTATION_LAST_SUCCESS: {(type_,): at for type_, at in found.last_success.items()},
            KMS_ROTATION_LAST_FAILURE: {(type_,): at for type_, at in found.last_failure.items()},
            KMS_ROTATION_IN_PROGRESS: {(): found.is_in_progress},
            KMS_ROTATION_FAILURES: {(step,): total for step, total in found.failures_by_step.items()},
            KMS_DATA_KEYS: {(by or "unreadable", status): total for (by, status), total in found.data_keys.items()},
        }
        for name, values in families.items():
            about = KEYRING_METRICS[name]
            create = CounterMetricFamily if name.endswith("_total") else GaugeMetricFamily
            family = create(name, about.meaning, labels=("service", *about.labels))
            for labels, value in values.items():
                family.add_metric((self._service, *labels), value)
            yield family


async def write_metrics(file: Path, administration: ExternalAdministration) -> None:
    """Replaces `file`; without a rotation there is none yet. Raises AdministrationError, OSError."""
    metrics = await administration.read_metrics()
    if metrics is not None:
        await asyncio.to_thread(_write_file, file, metrics)


def _write_file(file: Path, metrics: KeyringMetrics) -> None:
    registry = CollectorRegistry()
    registry.register(_TableCollector(metrics, file.stem))
    write_to_textfile(str(file), registry)
    file.chmod(_MODE)
