import pytest
from prometheus_client import generate_latest

from services.exporter.model import BackendState, Call, Failure, Health, Operation, ProbeResult, TargetKey
from shared.backend_contract import CryptoMode
from shared.kms.reason import Reason
from tests.exporter.collected_metrics import CollectedMetrics

TARGET = {"service": "backend", "target": "ledger-kek"}
REASONS = (  # as the contract lists them
    "timeout",
    "unavailable",
    "permission_denied",
    "unauthenticated",
    "quota_exhausted",
    "key_not_found",
    "key_disabled",
    "key_destroyed",
    "crc_mismatch",
    "plaintext_mismatch",
    "invalid_request",
    "internal",
)
VERSION = "1"
RIGHT = ProbeResult(
    "backend", "ledger-kek", 1_700_000_000.5, (Call(Operation.ENCRYPT, 0.02), Call(Operation.DECRYPT, 1.5)), VERSION
)
HEALTHY = BackendState("backend", Health(CryptoMode.KMS, ready=True), 1_700_000_000.25, 17.0)


def failed(operation: Operation, reason: Reason, seconds: float) -> ProbeResult:
    calls = (Call(operation, seconds, Failure(reason, "because")),)
    return ProbeResult("backend", "ledger-kek", 1_700_000_100.0, calls, None)


@pytest.fixture
def metrics() -> CollectedMetrics:
    return CollectedMetrics([("backend", "ledger-kek")], ["backend"])


def text(metrics: CollectedMetrics) -> str:
    return generate_latest(metrics).decode()


def value(metrics: CollectedMetrics, name: str, **labels: str) -> float | None:
    return next((s.value for f in metrics.collect() for s in f.samples if (s.name, s.labels) == (name, labels)), None)


def test_before_the_first_probe_every_counter_is_there_at_0(metrics: CollectedMetrics) -> None:
    assert value(metrics, "kms_probes_total", **TARGET) == 0
    for operation in ("get_key", "list_versions", "test_permissions"):
        assert value(metrics, "kms_operations_total", **TARGET, operation=operation) == 0
    for operation in ("encrypt", "decrypt", "canary_decrypt"):
        assert value(metrics, "kms_operations_total", **TARGET, operation=operation) == 0
        assert value(metrics, "kms_operation_duration_seconds_count", **TARGET, operation=operation) == 0
        for reason in REASONS:
            assert value(metrics, "kms_probe_failures_total", **TARGET, operation=operation, reason=reason) == 0


def test_a_successful_round_trip_counts_two_billable_calls_and_two_durations(metrics: CollectedMetrics) -> None:
    metrics.add_probe(RIGHT)
    assert value(metrics, "kms_probe_success", **TARGET) == 1
    assert value(metrics, "kms_probes_total", **TARGET) == 1
    assert value(metrics, "kms_probe_last_success_timestamp_seconds", **TARGET) == 1_700_000_000.5
    assert value(metrics, "kms_operations_total", **TARGET, operation="encrypt") == 1
    assert value(metrics, "kms_operations_total", **TARGET, operation="decrypt") == 1
    assert value(metrics, "kms_operation_duration_seconds_sum", **TARGET, operation="decrypt") == 1.5


def test_a_reload_starts_the_new_at_0_drops_the_old_and_keeps_the_rest(metrics: CollectedMetrics) -> None:
    metrics.add_probe(RIGHT)
    metrics.set_backend_states(HEALTHY)
    metrics.configure(dict.fromkeys([("backend", "ledger-kek"), ("backend", "new-kek")], TargetKey()), ["other"])
    assert value(metrics, "kms_probes_total", **TARGET) == 1
    assert value(metrics, "kms_probes_total", service="backend", target="new-kek") == 0
    assert value(metrics, "crypto_mode", service="backend") is None
    metrics.configure({("backend", "new-kek"): TargetKey()}, [])
    assert "ledger-kek" not in text(metrics)


def test_what_was_in_progress_when_a_reload_took_its_target_out_brings_nothing_back(metrics: CollectedMetrics) -> None:
    metrics.configure({}, [])
    metrics.changed.clear()
    metrics.add_probe(RIGHT)
    metrics.set_backend_states(HEALTHY)
    assert [s for family in metrics.collect() for s in family.samples] == []
    assert not metrics.changed.is_set()
