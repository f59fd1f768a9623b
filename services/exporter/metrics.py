"""The only room that names metrics: ProbeResult and BackendState in, `/metrics` out.

It only shows what it was handed, so a scrape never waits for KMS or for a backend.
"""

from collections.abc import Iterable, Iterator

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from services.exporter.model import BackendState, Operation, ProbeResult
from shared.contract import CRYPTO_DECRYPTION_ERRORS, CRYPTO_INIT_TIMESTAMP, CRYPTO_MODE, CRYPTO_READY
from shared.kms.reason import Reason

CRYPTO_BACKEND_UP = "crypto_backend_up"
# 1 s is where KMSHighLatency begins; over 10 s an answer counts as an error in Cloud KMS's SLA.
BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)


class ExporterMetrics:
    """Every metric of the exporter, in a registry that holds more for the server."""

    def __init__(self, registry: CollectorRegistry, targets: Iterable[tuple[str, str]]) -> None:
        """Counters start at 0 for each (service, target), so that a first failure is an increase, not a beginning."""
        self.registry = registry
        labels = ["service", "target"]
        self._success = Gauge(
            "kms_probe_success", "1 if the last round trip was right in every respect.", labels, registry=registry
        )
        self._last_success = Gauge(
            "kms_probe_last_success_timestamp_seconds",
            "Unix time of the last right round trip; absent until the first.",
            labels,
            registry=registry,
        )
        self._probes = Counter("kms_probes_total", "Round trips tried.", labels, registry=registry)
        self._failures = Counter(
            "kms_probe_failures_total",
            "Round trips that failed, by the call that ended them and why.",
            [*labels, "operation", "reason"],
            registry=registry,
        )
        self._operations = Counter(
            "kms_operations_total", "Billable calls to KMS.", [*labels, "operation"], registry=registry
        )
        self._durations = Histogram(
            "kms_operation_duration_seconds",
            "Duration of the calls that succeeded, and of those that timed out, at their full length.",
            [*labels, "operation"],
            registry=None,
            buckets=BUCKETS,
        )
        registry.register(_ShortBounds(self._durations))
        self._backends = _Backends()
        registry.register(self._backends)
        for service, target in targets:
            self._probes.labels(service, target)
            for operation in Operation:
                self._operations.labels(service, target, operation)
                self._durations.labels(service, target, operation)
                for reason in Reason:
                    self._failures.labels(service, target, operation, reason)

    def observe(self, result: ProbeResult) -> None:
        """Counts a round trip."""
        labels = (result.service, result.target)
        self._probes.labels(*labels).inc()
        for call in result.calls:
            self._operations.labels(*labels, call.operation).inc()
            if call.failure is None or call.failure.reason is Reason.TIMEOUT:
                self._durations.labels(*labels, call.operation).observe(call.seconds)
            if call.failure is not None:
                self._failures.labels(*labels, call.operation, call.failure.reason).inc()
        self._success.labels(*labels).set(result.failed is None)
        if result.failed is None:
            self._last_success.labels(*labels).set(result.at)

    def show(self, state: BackendState) -> None:
        """Shows a backend as it is now; what is not known of it disappears."""
        self._backends.states[state.service] = state


class _Backends(Collector):
    """The families of the backends, built anew from the last state of each, so that none of them can be stale."""

    def __init__(self) -> None:
        self.states: dict[str, BackendState] = {}

    def collect(self) -> Iterator[Metric]:
        """One sample of a family for each backend that has it; none for a backend that was not read yet."""
        up = GaugeMetricFamily(CRYPTO_BACKEND_UP, "1 if the health check could be read in time.", labels=["service"])
        mode = GaugeMetricFamily(CRYPTO_MODE, "What wraps the data keys: 0 env, 1 kms.", labels=["service"])
        ready = GaugeMetricFamily(CRYPTO_READY, "1 if the backend can encrypt and decrypt.", labels=["service"])
        init = GaugeMetricFamily(
            CRYPTO_INIT_TIMESTAMP, "Unix time of the backend's last initialisation.", labels=["service"]
        )
        errors = CounterMetricFamily(
            CRYPTO_DECRYPTION_ERRORS, "Decryption failures, as the backend counts them.", labels=["service"]
        )
        for state in list(self.states.values()):  # a scrape encodes in a thread, while states change on the loop
            service = [state.service]
            up.add_metric(service, state.health is not None)
            if state.health is not None:
                mode.add_metric(service, state.health.mode.gauge)
                ready.add_metric(service, state.health.ready)
            if state.init_timestamp is not None:
                init.add_metric(service, state.init_timestamp)
            if state.decryption_errors is not None:
                errors.add_metric(service, state.decryption_errors)
        yield from (up, mode, ready, init, errors)


class _ShortBounds(Collector):
    """A histogram whose bounds read `le="1"`, as the contract and Prometheus's own clients write them.

    prometheus_client writes `le="1.0"`, which is another series for Prometheus before version 3.
    """

    def __init__(self, histogram: Histogram) -> None:
        self._histogram = histogram

    def collect(self) -> Iterator[Metric]:
        """The histogram's families with their bounds rewritten."""
        for family in self._histogram.collect():
            for n, sample in enumerate(family.samples):
                if bound := sample.labels.get("le"):
                    family.samples[n] = sample._replace(labels={**sample.labels, "le": bound.removesuffix(".0")})
            yield family
