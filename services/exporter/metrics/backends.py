"""What `/metrics` says of one service's backend: the last state of each replica in, Prometheus's families out.

Changed on the event loop, read from the thread that encodes.
"""

from collections.abc import Iterator, Sequence

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from services.exporter.model import BackendState
from shared.backend_contract import (
    CRYPTO_DECRYPTION_ERRORS,
    CRYPTO_INIT_TIMESTAMP,
    CRYPTO_MODE,
    CRYPTO_READY,
    KEYRING_METRIC_LABELS,
    KMS_DATA_KEYS,
    KMS_DATA_KEYS_MISSING,
    KMS_DATA_KEYS_RESTORED,
    KMS_DATA_KEYS_UNUSABLE,
    KMS_KEYRING_ROWS_UNREADABLE,
    KMS_LOCAL_KEY_MISSING,
    KMS_ROTATION_FAILURES,
    KMS_ROTATION_IN_PROGRESS,
    KMS_ROTATION_LAST_FAILURE,
    KMS_ROTATION_LAST_SUCCESS,
)

CRYPTO_BACKEND_UP = "crypto_backend_up"
CRYPTO_MODE_UNKNOWN = "crypto_mode_unknown"


class BackendMetrics:
    """Builds the families from the last states each time, so that none of them can be stale."""

    def __init__(self) -> None:
        self.version = 0
        """Grows after each change."""
        self._states: Sequence[BackendState] = ()

    def set_states(self, states: Sequence[BackendState]) -> None:
        """Replaces all that was shown; a replica that is not among `states` disappears."""
        self._states = states
        self.version += 1

    def collect(self) -> Iterator[Metric]:
        """One sample of a family for each replica that has it; none before the first read."""
        up = GaugeMetricFamily(CRYPTO_BACKEND_UP, "1 if the health check could be read in time.")
        mode = GaugeMetricFamily(CRYPTO_MODE, "What wraps the data keys: 0 env, 1 kms.")
        unknown = GaugeMetricFamily(CRYPTO_MODE_UNKNOWN, "1 while the health document names a mode that is unknown.")
        ready = GaugeMetricFamily(CRYPTO_READY, "1 if the backend can encrypt and decrypt.")
        init = GaugeMetricFamily(CRYPTO_INIT_TIMESTAMP, "Unix time of the backend's last initialisation.")
        errors = CounterMetricFamily(CRYPTO_DECRYPTION_ERRORS, "Decryption failures, as the backend counts them.")
        keyring = {
            KMS_ROTATION_LAST_SUCCESS: GaugeMetricFamily(
                KMS_ROTATION_LAST_SUCCESS, "Unix time of the last rotation that succeeded, as the backend says."
            ),
            KMS_ROTATION_LAST_FAILURE: GaugeMetricFamily(
                KMS_ROTATION_LAST_FAILURE, "Unix time of the last failure of a rotation, as the backend says."
            ),
            KMS_ROTATION_IN_PROGRESS: GaugeMetricFamily(
                KMS_ROTATION_IN_PROGRESS, "1 while a rotation runs, as the backend reports."
            ),
            KMS_ROTATION_FAILURES: CounterMetricFamily(
                KMS_ROTATION_FAILURES, "Failures of rotations, as the backend counts them."
            ),
            KMS_DATA_KEYS: GaugeMetricFamily(KMS_DATA_KEYS, "Data keys, as the backend says."),
            KMS_DATA_KEYS_UNUSABLE: GaugeMetricFamily(
                KMS_DATA_KEYS_UNUSABLE, "Data keys that the backend cannot unwrap, as it says."
            ),
            KMS_DATA_KEYS_MISSING: GaugeMetricFamily(
                KMS_DATA_KEYS_MISSING, "Data keys that records need and the database lacks, as the backend says."
            ),
            KMS_DATA_KEYS_RESTORED: CounterMetricFamily(
                KMS_DATA_KEYS_RESTORED, "Rows of data keys that the backend put back from memory, as it counts them."
            ),
            KMS_KEYRING_ROWS_UNREADABLE: GaugeMetricFamily(
                KMS_KEYRING_ROWS_UNREADABLE, "Rows of the keyring that cannot be read, as the backend says."
            ),
            KMS_LOCAL_KEY_MISSING: GaugeMetricFamily(
                KMS_LOCAL_KEY_MISSING, "1 while the backend has no local key, as it says."
            ),
        }
        for state in self._states:
            labels = {"service": state.service} | ({"replica": state.replica} if state.replica else {})
            up.add_sample(CRYPTO_BACKEND_UP, labels, state.health is not None)
            if state.health is not None:
                if state.health.mode is not None:
                    mode.add_sample(CRYPTO_MODE, labels, state.health.mode.metric_value)
                if state.health.mode is not None or state.health.mode_problem:
                    unknown.add_sample(CRYPTO_MODE_UNKNOWN, labels, state.health.mode is None)
                ready.add_sample(CRYPTO_READY, labels, state.health.ready)
            if state.init_timestamp is not None:
                init.add_sample(CRYPTO_INIT_TIMESTAMP, labels, state.init_timestamp)
            if state.decryption_errors is not None:
                errors.add_sample(CRYPTO_DECRYPTION_ERRORS, labels, state.decryption_errors)
            for name, series in state.keyring.items():
                for values, value in series.items():
                    own = dict(zip(KEYRING_METRIC_LABELS[name], values, strict=True))
                    keyring[name].add_sample(name, labels | own, value)
        yield from (up, mode, unknown, ready, init, errors, *keyring.values())
