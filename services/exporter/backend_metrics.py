"""What `/metrics` says of one service's backend: the last state of each replica in, Prometheus's families out.

Changed on the event loop, read from the thread that encodes.
"""

from collections.abc import Iterator, Sequence

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from services.exporter.model import BackendState
from shared.contract import CRYPTO_DECRYPTION_ERRORS, CRYPTO_INIT_TIMESTAMP, CRYPTO_MODE, CRYPTO_READY

CRYPTO_BACKEND_UP = "crypto_backend_up"


class BackendMetrics:
    """The families are built anew from the last states, so that none of them can be stale."""

    def __init__(self) -> None:
        self.version = 0
        """Grows after each change."""
        self._states: Sequence[BackendState] = ()

    def show(self, states: Sequence[BackendState]) -> None:
        """Replaces all that was shown; a replica that is not among `states` disappears."""
        self._states = states
        self.version += 1

    def collect(self) -> Iterator[Metric]:
        """One sample of a family for each replica that has it; none before the first read."""
        up = GaugeMetricFamily(CRYPTO_BACKEND_UP, "1 if the health check could be read in time.")
        mode = GaugeMetricFamily(CRYPTO_MODE, "What wraps the data keys: 0 env, 1 kms.")
        ready = GaugeMetricFamily(CRYPTO_READY, "1 if the backend can encrypt and decrypt.")
        init = GaugeMetricFamily(CRYPTO_INIT_TIMESTAMP, "Unix time of the backend's last initialisation.")
        errors = CounterMetricFamily(CRYPTO_DECRYPTION_ERRORS, "Decryption failures, as the backend counts them.")
        for state in self._states:
            labels = {"service": state.service} | ({"replica": state.replica} if state.replica else {})
            up.add_sample(CRYPTO_BACKEND_UP, labels, state.health is not None)
            if state.health is not None:
                mode.add_sample(CRYPTO_MODE, labels, state.health.mode.gauge)
                ready.add_sample(CRYPTO_READY, labels, state.health.ready)
            if state.init_timestamp is not None:
                init.add_sample(CRYPTO_INIT_TIMESTAMP, labels, state.init_timestamp)
            if state.decryption_errors is not None:
                errors.add_sample(CRYPTO_DECRYPTION_ERRORS, labels, state.decryption_errors)
        yield from (up, mode, ready, init, errors)
