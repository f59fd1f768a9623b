"""The metrics that the exporter and the relay expose, by their own code."""

import asyncio
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families
from starlette.applications import Starlette
from starlette.testclient import TestClient

from services.exporter.backends.settings import Backend
from services.exporter.config import ExporterSettings
from services.exporter.model import (
    BackendState,
    Call,
    CanaryResult,
    Failure,
    Health,
    KeyInspection,
    Operation,
    ProbeResult,
)
from services.exporter.path_proof import PathProofCollector
from services.relay.app import run_relay
from services.relay.config import RelaySettings
from services.relay.delivery.attempt import open_local_sender
from shared.backend_contract import KEYRING_METRICS, KMS_ROTATION_LAST_SUCCESS, CryptoMode
from shared.credentials import Validity
from shared.http.access import Authorizer
from shared.http.server import CredentialCollector
from shared.keyring.administration import RotationType
from shared.kms.gcp.profile import GCP_PROFILE
from shared.kms.reason import Reason
from shared.kms.transit.profile import TRANSIT_PROFILE
from shared.process.server import ReloadMiddleware
from tests.exporter.collected_metrics import CollectedMetrics
from tests.shared.sample import SETTINGS


def by_the_exporter() -> list[Metric]:
    """After round trips, an inspection of a key whose older versions fail in every way, the reading of a backend."""
    metrics = CollectedMetrics([("ledger", "ledger-kek"), ("ledger", "other-kek")], ["ledger"])
    call = Call(Operation.ENCRYPT, 0.1)
    metrics.add_probe(ProbeResult("ledger", "ledger-kek", ended_at=1.0, calls=(call,), key_version=None))
    failed = Call(Operation.ENCRYPT, 0.1, Failure(Reason.TIMEOUT, "as a test has it"))
    metrics.add_probe(ProbeResult("ledger", "other-kek", ended_at=2.0, calls=(failed,), key_version=None))
    canaries = tuple(
        CanaryResult(str(n), Call(Operation.CANARY_DECRYPT, 0.1, Failure(reason, "as a test has it")))
        for n, reason in enumerate(Reason)
    )
    inspection = KeyInspection(
        "ledger",
        "ledger-kek",
        inspected_at=1.0,
        description=None,
        permissions=dict.fromkeys((*GCP_PROFILE.probe_permissions, *TRANSIT_PROFILE.probe_permissions), True),
        canaries=canaries,
        wrong_aad_check=None,
        call_counts={},
    )
    metrics.add_inspection(inspection)
    keyring = {name: {family.labels: 1.0} for name, family in KEYRING_METRICS.items()}
    keyring[KMS_ROTATION_LAST_SUCCESS] = {(type_.value,): 1.0 for type_ in RotationType}
    health = Health(CryptoMode.KMS, ready=True)
    metrics.set_backend_states(
        BackendState("ledger", health, init_timestamp=1.0, decryption_errors=0.0, keyring=keyring)
    )
    credentials = CredentialCollector("kms", CollectorRegistry(), lambda: {"projected token": Validity(2.0, 1.0)})
    settings = ExporterSettings(backends=(Backend(service="ledger", health_url="http://127.0.0.1:8000"),))
    proofs = PathProofCollector(CollectorRegistry(), lambda: settings, lambda: 1.0)
    return [*metrics.collect(), *credentials.collect(), *proofs.collect()]


def by_a_relay(folder: Path) -> list[Metric]:
    """At its first scrape, with nothing accepted so far."""
    (folder / "token").write_text("a-secret-token-of-tests\n")
    (folder / "key").write_text("0" * 32)
    configuration: dict[str, Any] = {
        "database": f"sqlite:///{folder}/relay.db",
        "auth": {"bearer_token_file": str(folder / "token")},
        "channels": {"pagerduty": {"kind": "pagerduty", "routing_key_file": str(folder / "key")}},
        "default_channels": ["pagerduty"],
    }

    async def scrape() -> str:
        async with run_relay(RelaySettings(**configuration), open_sender=open_local_sender) as app:
            answer = await asyncio.to_thread(TestClient(app).get, "/metrics")
        return answer.text

    return list(text_string_to_metric_families(asyncio.run(scrape())))


def by_every_server() -> list[Metric]:
    """What each says of its configuration."""
    exposed = CollectorRegistry()
    ReloadMiddleware(Starlette(), SETTINGS, lambda: SETTINGS, None, (), Authorizer(exposed))
    return list(exposed.collect())


def names(families: Iterable[Metric]) -> set[str]:
    """Of all samples, and of gauges and counters that have none yet."""
    families = list(families)
    suffixes = {"gauge": "", "counter": "_total"}
    without = {family.name + suffixes[family.type] for family in families if family.type in suffixes}
    return without | {sample.name for family in families for sample in family.samples}
