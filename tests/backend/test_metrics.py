from types import SimpleNamespace
from typing import Any, cast

from prometheus_client import CollectorRegistry, generate_latest

from services.backend.metrics import KeyringPoller, register_metrics
from shared.backend_contract import KEYRING_METRICS, CryptoMode
from shared.keyring.administration import RotationType
from shared.keyring.database import Database
from shared.keyring.model import DataKeyStatus
from shared.keyring.rotation_metrics import KeyringMetrics


def show(snapshot: KeyringMetrics | None) -> KeyringPoller:
    poller = KeyringPoller(cast("Database", None))
    poller.snapshot = snapshot
    return poller


def _collect(snapshot: KeyringMetrics | None) -> list[str]:
    registry = CollectorRegistry()
    keyring: Any = SimpleNamespace(
        mode=CryptoMode.KMS,
        is_ready=True,
        initialised_at=0.0,
        unwrap_errors={},
        broken_rows={"k3": "it opens to another key than before"},
        restored_count=0,
        is_local_key_missing=False,
    )
    register_metrics(registry, keyring, show(snapshot))
    return [line for line in generate_latest(registry).decode().splitlines() if line.startswith("kms_")]


def test_the_keyring_is_shown_as_it_was_seen_last() -> None:
    snapshot = KeyringMetrics(
        data_keys={("3", DataKeyStatus.ACTIVE): 1, ("2", DataKeyStatus.RETIRED): 4},
        last_success={RotationType.NEW_DEK: 7.0},
        last_failure={RotationType.REWRAP_KEK: 8.0},
        is_in_progress=True,
        failures_by_step={"verify": 2},
        unreadable_rows={"k2": "its status cannot be read"},
        missing_data_keys=("k1",),
        encryptions=2**33,
    )
    assert _collect(snapshot) == [
        "kms_data_keys_unusable 0.0",
        'kms_data_key_row_broken{data_key="k3"} 1.0',
        "kms_local_key_missing 0.0",
        "kms_data_keys_restored_total 0.0",
        'kms_data_keys{kek_version="2",status="retired"} 4.0',
        'kms_data_keys{kek_version="3",status="active"} 1.0',
        'kms_rotation_last_success_timestamp_seconds{type="new-dek"} 7.0',
        'kms_rotation_failures_total{step="verify"} 2.0',
        "kms_data_key_encryptions 8.589934592e+09",
        "kms_data_keys_missing 1.0",
        "kms_keyring_rows_unreadable 1.0",
        "kms_rotation_in_progress 1.0",
        'kms_rotation_last_failure_timestamp_seconds{type="rewrap-kek"} 8.0',
    ]
    assert {line.partition("{")[0].partition(" ")[0] for line in _collect(snapshot)} == KEYRING_METRICS.keys()


def test_a_keyring_that_cannot_be_seen_is_not_shown() -> None:
    # What every instance knows by itself.
    assert _collect(None) == [
        "kms_data_keys_unusable 0.0",
        'kms_data_key_row_broken{data_key="k3"} 1.0',
        "kms_local_key_missing 0.0",
        "kms_data_keys_restored_total 0.0",
    ]
