"""The backend's metrics, by the names of the contract; no other module names them."""

from collections.abc import Callable, Iterator

from prometheus_client import CollectorRegistry, Counter, Gauge
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from shared.backend_contract import (
    CRYPTO_DECRYPTION_ERRORS,
    CRYPTO_INIT_TIMESTAMP,
    CRYPTO_MODE,
    CRYPTO_READY,
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
    CryptoMode,
)
from shared.keyring.rotation_metrics import KeyringMetrics


def register_metrics(  # noqa: PLR0913  all by name
    registry: CollectorRegistry,
    *,
    get_mode: Callable[[], CryptoMode],
    is_ready: Callable[[], bool],
    get_initialised_at: Callable[[], float],
    count_unusable: Callable[[], int],
    count_restored: Callable[[], int],
    is_local_key_missing: Callable[[], bool],
    get_snapshot: Callable[[], KeyringMetrics | None],
) -> Callable[[], None]:
    """Registers every metric; the functions are called at each scrape.

    Returns:
        What to call at each failed decryption of a record.
    """
    gauges: tuple[tuple[str, str, Callable[[], float]], ...] = (
        (CRYPTO_MODE, "What wraps new data keys: 0 the local key, 1 KMS.", lambda: get_mode().metric_value),
        (CRYPTO_READY, "1 while a data key can be used, else 0.", is_ready),
        (
            CRYPTO_INIT_TIMESTAMP,
            "When mode or readiness last changed, the start included; unix time.",
            get_initialised_at,
        ),
        (KMS_DATA_KEYS_UNUSABLE, "Data keys that this instance cannot unwrap.", count_unusable),
        (
            KMS_LOCAL_KEY_MISSING,
            "1 while there is no local key, so that a restart in an outage of KMS can write nothing; else 0.",
            is_local_key_missing,
        ),
    )
    for name, meaning, value in gauges:
        Gauge(name, meaning, registry=registry).set_function(value)
    errors = Counter(
        CRYPTO_DECRYPTION_ERRORS,
        "Reads of a record that failed: its data key cannot be unwrapped, or it is corrupt.",
        registry=registry,
    )
    registry.register(_KeyringCollector(get_snapshot, count_restored))
    return errors.inc


class _KeyringCollector(Collector):
    """What this instance put back, and the keyring's metrics as last read, if it could be read."""

    def __init__(self, get_snapshot: Callable[[], KeyringMetrics | None], count_restored: Callable[[], int]) -> None:
        self._get_snapshot, self._count_restored = get_snapshot, count_restored

    def collect(self) -> Iterator[Metric]:
        yield CounterMetricFamily(
            KMS_DATA_KEYS_RESTORED,
            "Rows of data keys that the database lost and this instance put back from memory.",
            self._count_restored(),
        )
        snapshot = self._get_snapshot()
        if snapshot is None:
            return
        keys = GaugeMetricFamily(
            KMS_DATA_KEYS, "Data keys by version of the KMS key; 0: the local key.", labels=["kek_version", "status"]
        )
        for (version, status), number in sorted(snapshot.data_keys.items()):
            keys.add_metric([version or "unreadable", status], number)
        success = GaugeMetricFamily(
            KMS_ROTATION_LAST_SUCCESS, "When a rotation last succeeded; unix time.", labels=["type"]
        )
        for type_, at in snapshot.last_success.items():
            success.add_metric([type_], at)
        failures = CounterMetricFamily(KMS_ROTATION_FAILURES, "What failed in rotations, by step.", labels=["step"])
        for step, number in snapshot.failures_by_step.items():
            failures.add_metric([step], number)
        yield from (keys, success, failures)
        yield GaugeMetricFamily(
            KMS_DATA_KEYS_MISSING,
            "Data keys that records need and the database lacks.",
            len(snapshot.missing_data_keys),
        )
        yield GaugeMetricFamily(
            KMS_KEYRING_ROWS_UNREADABLE,
            "Rows of the keyring that another program got wrong.",
            len(snapshot.unreadable_rows),
        )
        yield GaugeMetricFamily(
            KMS_ROTATION_IN_PROGRESS, "1 while a rotation runs, or is unfinished.", snapshot.is_in_progress
        )
        if snapshot.last_failure is not None:
            yield GaugeMetricFamily(
                KMS_ROTATION_LAST_FAILURE, "When a step of a rotation last failed; unix time.", snapshot.last_failure
            )
