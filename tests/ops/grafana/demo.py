"""The demo's stack, watched twice over, after a bad day: what the dashboard is asked about.

Prometheus scrapes it as two environments, and its exporter watches two services, so that a choice of one leaves half.
"""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml
from google.cloud.kms_v1 import (
    CryptoKey,
    DestroyCryptoKeyVersionRequest,
    KeyManagementServiceAsyncClient,
    UpdateCryptoKeyRequest,
)
from google.cloud.kms_v1.services.key_management_service.transports import KeyManagementServiceGrpcAsyncIOTransport
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp
from grpc.aio import insecure_channel

from ops.demo import stack
from ops.demo.configuration import KEY, Kms, write_configuration
from ops.demo.processes import Ports
from ops.demo.stack import Stack
from tests import processes
from tests.key_versions import Versions
from tests.shared.certificates import Authority

ENVS = ["production", "staging"]
SERVICES = ["backend", "other"]
MONTH = 30 * 86400
TIMEOUT = 60.0


@asynccontextmanager
async def after_a_bad_day(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Stack]:
    """KMS was denied for a while, Slack still refuses, and a version that data needs is to be destroyed."""
    monkeypatch.setattr(stack, "write_configuration", _twice)
    async with stack.run_stack(Ports.pick_free()) as running:
        await _wait_for_value(running, "count(kms_key_primary_version) == 4")  # so version 1 has its canaries
        refused = {"provider": "slack", "kind": "error", "error": "token_revoked"}
        await _post(running, "stand_ins", "/api/faults", refused)
        await _post(running, "faults", "/faults", {"kind": "denied", "operation": "Encrypt"})
        await _wait_for_value(running, 'ALERTS{alertname="KMSCryptoModeNotKMS", alertstate="firing"}')
        await _wait_for_value(running, "relay_delivery_duration_seconds_count > 0")
        await _wait_for_value(running, "relay:outbox_oldest_timestamp_seconds")
        async with running.http.delete(running.ports.build_url("faults") + "/faults") as answer:
            assert answer.status < 300
        await _rotate_key(running.ports)
        await _restart_the_exporter(running)  # it inspects the keys at once, and again after a minute
        await _wait_for_value(running, "count(kms_canary_success) == 4")  # of both services in both environments
        scheduled = 'ALERTS{alertname="KMSKeyVersionDestroyScheduled", alertstate="firing"}'
        await _wait_for_value(running, f"count({scheduled}) == 4")
        await _wait_for_value(running, 'ALERTS{alertname="RelayChannelFailing", alertstate="firing"}')
        yield running


async def _wait_for_value(running: Stack, expression: str) -> None:
    """Waits, with a bound, until the expression has a value."""
    deadline = time.monotonic() + TIMEOUT
    while await running.query(f"count({expression})") is None:
        assert time.monotonic() < deadline, f"not seen within {TIMEOUT:.0f} s: {expression}"
        await asyncio.sleep(0.2)


def _twice(folder: Path, ports: Ports, kms: Kms = "gcp") -> None:
    write_configuration(folder, ports, kms)
    exporter = yaml.safe_load((folder / "exporter.yml").read_text())
    exporter["targets"].append({**exporter["targets"][0], "name": "other-kek", "service": "other"})
    certificate, key = Authority(folder).sign("client")
    exporter["backends"][0]["tls_config"] = {"cert_file": str(certificate), "key_file": str(key)}
    exporter["backends"].append({**exporter["backends"][0], "service": "other"})
    (folder / "exporter.yml").write_text(yaml.safe_dump(exporter))
    prometheus = yaml.safe_load((folder / "prometheus.yml").read_text())
    for job in prometheus["scrape_configs"]:
        (production,) = job["static_configs"]
        job["static_configs"].append({**production, "labels": {"env": "staging"}})
    (folder / "prometheus.yml").write_text(yaml.safe_dump(prometheus))


async def _rotate_key(ports: Ports) -> None:
    """A new version encrypts, another one is planned, and the old one is to be destroyed."""
    async with insecure_channel(f"127.0.0.1:{ports.emulator}") as channel:
        transport = KeyManagementServiceGrpcAsyncIOTransport(channel=channel)
        client = KeyManagementServiceAsyncClient(transport=transport)
        await Versions(client, KEY).rotate()
        rotated_key = CryptoKey(
            name=KEY,
            rotation_period=Duration(seconds=MONTH),
            next_rotation_time=Timestamp(seconds=int(time.time()) + MONTH),
        )
        mask = {"paths": ["rotation_period", "next_rotation_time"]}
        await client.update_crypto_key(UpdateCryptoKeyRequest(crypto_key=rotated_key, update_mask=mask))
        await client.destroy_crypto_key_version(DestroyCryptoKeyVersionRequest(name=f"{KEY}/cryptoKeyVersions/1"))


async def _restart_the_exporter(running: Stack) -> None:
    folder = running.processes._logs
    await processes.stop(running.processes._running["exporter"])
    await running.processes.start("exporter", stack.build_commands(folder, running.ports, "", "")["exporter"])


async def _post(running: Stack, part: str, path: str, document: dict[str, Any]) -> None:
    async with running.http.post(running.ports.build_url(part) + path, json=document) as answer:
        assert answer.status == 201, await answer.text()
