"""Each family that others rely on: its type and its labels, as they are exposed and as they are documented."""

import re
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.core import Metric

from services.exporter.backends.settings import Backend
from services.exporter.config import ExporterSettings
from services.exporter.model import (
    BackendState,
    Call,
    CanaryResult,
    Failure,
    Health,
    KeyInspection,
    KeyRead,
    Operation,
    ProbeResult,
)
from services.exporter.path_proof import PathProofCollector
from shared.backend_contract import KEYRING_METRICS, CryptoMode
from shared.credentials import Validity
from shared.http.server import CredentialCollector
from shared.kms.port import KeyDescription, KeyStore, KeyStoreKind, KeyVersion, VersionState
from shared.kms.reason import Cause, Reason
from tests.exporter.collected_metrics import CollectedMetrics

REFERENCE = Path(__file__).parents[2] / "docs/reference.md"
# As the contract lists them: the labels are those beyond `service`.
CONTRACT = """
| `crypto_mode` | gauge | |
| `crypto_ready` | gauge | |
| `crypto_backend_up` | gauge | |
| `crypto_backend_metrics_up` | gauge | |
| `crypto_init_timestamp_seconds` | gauge | |
| `crypto_decryption_errors_total` | counter | |
| `kms_operation_duration_seconds` | histogram | `target`, `operation` |
| `kms_probe_success` | gauge | `target` |
| `kms_probes_total` | counter | `target` |
| `kms_probe_failures_total` | counter | `target`, `operation`, `reason` |
| `kms_probe_failure_info` | gauge | `target`, `operation`, `reason`, `cause` |
| `kms_probe_last_success_timestamp_seconds` | gauge | `target` |
| `kms_operations_total` | counter | `target`, `operation` |
| `kms_key_primary_version` | gauge | `target` |
| `kms_key_versions` | gauge | `target`, `state` |
| `kms_key_next_rotation_timestamp_seconds` | gauge | `target` |
| `kms_key_version_destroy_timestamp_seconds` | gauge | `target`, `version` |
| `kms_key_permission` | gauge | `target`, `permission` |
| `kms_rotation_last_success_timestamp_seconds` | gauge | `type` |
| `kms_rotation_in_progress` | gauge | |
| `kms_rotation_failures_total` | counter | `step` |
| `kms_data_keys` | gauge | `kek_version`, `status` |
| `kms_credential_expiry_timestamp_seconds` | gauge | `credential` |
| `keypulse_path_proof_started_timestamp_seconds` | gauge | |
"""
Rows = dict[str, tuple[str, set[str]]]


def rows(table: str) -> Rows:
    """Type and labels by name."""
    found = re.findall(r"^\| `(\w+)` \| (gauge|counter|histogram) \| ([^|]*)\|", table, re.MULTILINE)
    return {name: (kind, set(re.findall(r"`(\w+)`", labels))) for name, kind, labels in found}


@pytest.fixture
def families() -> dict[str, Metric]:
    """Everything that can be known of one target and one service, by the names that samples have."""
    metrics = CollectedMetrics([("backend", "ledger-kek")], ["backend"])
    keyring = {name: {family.labels: 1.0} for name, family in KEYRING_METRICS.items()}
    state = BackendState("backend", Health(CryptoMode.KMS, ready=True), 1.0, 2.0, keyring=keyring, metrics_up=True)
    metrics.set_backend_states(state)
    metrics.add_probe(ProbeResult("backend", "ledger-kek", 1.0, (Call(Operation.ENCRYPT, 0.1),), None))
    failure = Failure(Reason.QUOTA_EXHAUSTED, "because", cause=Cause.RATE_LIMIT, values={"consumer": "projects/1"})
    metrics.add_probe(ProbeResult("backend", "ledger-kek", 2.0, (Call(Operation.ENCRYPT, 0.1, failure),), None))
    key = KeyDescription("1", 5.0, (KeyVersion("1", VersionState.USABLE, "HSM", 5.0, number=1),), 1)
    canary = CanaryResult("1", Call(Operation.CANARY_DECRYPT, 0.1, Failure(Reason.TIMEOUT, "because")))
    wrong_aad = Call(Operation.DECRYPT, 0.1)
    inspected = (key, {"p": True}, (canary,), wrong_aad, {KeyRead.GET_KEY: 1})
    more: dict[str, Any] = {
        "versions_without_canary": ("1",),
        "key_store": KeyStore(KeyStoreKind.HSM, "hsm", "p", disable_at=5.0),
    }
    metrics.add_inspection(KeyInspection("backend", "ledger-kek", 1.0, *inspected, **more))
    credentials = CredentialCollector("kms", CollectorRegistry(), lambda: {"projected token": Validity(2.0, 1.0)})
    settings = ExporterSettings(backends=(Backend(service="backend", health_url="http://127.0.0.1:8000"),))
    proofs = PathProofCollector(CollectorRegistry(), lambda: settings, lambda: 1.0)
    return {
        f"{family.name}_total" if family.type == "counter" else family.name: family
        for family in (*metrics.collect(), *credentials.collect(), *proofs.collect())
    }


def exposed(families: dict[str, Metric]) -> Rows:
    """Of each family the labels that every sample of it has."""
    found = {}
    for name, family in families.items():
        (labels,) = {frozenset(sample.labels) - {"le"} for sample in family.samples}
        assert "service" in labels or name.startswith("kms_credential_"), "a credential is no service's alone"
        found[name] = (family.type, set(labels) - {"service"})
    return found


@pytest.mark.parametrize("name", rows(CONTRACT))
def test_a_family_of_the_contract_has_its_type_and_its_labels(families: dict[str, Metric], name: str) -> None:
    assert exposed(families)[name] == rows(CONTRACT)[name]


def test_each_family_is_documented_with_its_type_and_its_labels(families: dict[str, Metric]) -> None:
    section = REFERENCE.read_text().partition("## Exporter\n")[2].partition("\n## ")[0]
    assert rows(section) == exposed(families)
