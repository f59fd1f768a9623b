"""The demo with a part for each scenario: services, keys, a second exporter and relay, so that they do not meet.

What runs is the demo's own stack; only its configuration is larger.
"""

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from google.cloud.kms_v1 import HsmManagementAsyncClient, KeyManagementServiceAsyncClient
from google.cloud.kms_v1.services.hsm_management.transports import HsmManagementGrpcAsyncIOTransport
from google.cloud.kms_v1.services.key_management_service.transports import KeyManagementServiceGrpcAsyncIOTransport
from grpc.aio import insecure_channel

from ops.demo import stack
from ops.demo.configuration import Kms, write_configuration
from ops.demo.processes import Ports
from ops.demo.stack import Stack
from tests.ops.rehearsal import files
from tests.ops.rehearsal.gcloud import EXPORTER_ACCOUNT, INSTANCE, SERVICE_ACCOUNT, Gcloud, name_of
from tests.ops.rehearsal.kubectl import NODE, Kubectl
from tests.ops.rehearsal.shell import Shell, played
from tests.reserved_port import reserve_port

TIMEOUT = 60.0


@dataclass(frozen=True)
class Stage:
    """A running stage."""

    stack: Stack
    gcloud: Gcloud
    kubectl: Kubectl
    shell: Shell
    staging: dict[str, int]
    """Ports of what runs in the environment `staging`."""

    async def firing(self, labels: dict[str, str]) -> bool:
        """Whether an alert with these labels fires."""
        answer = await self.stack.get_json("prometheus", "/api/v1/alerts")
        alerts = answer["data"]["alerts"] if answer else []
        return any(labels.items() <= alert["labels"].items() and alert["state"] == "firing" for alert in alerts)

    async def kms_fault(self, key: str, **fault: Any) -> str:
        """Something goes wrong at a key; its id."""
        url = self.stack.ports.build_url("faults") + "/faults"
        async with self.stack.http.post(url, json={"key": name_of(key), **fault}) as answer:
            assert answer.status == 201, await answer.text()
            return str((await answer.json())["id"])

    async def kms_healed(self, fault: str) -> None:
        """It is over."""
        async with self.stack.http.delete(f"{self.stack.ports.build_url('faults')}/faults/{fault}") as answer:
            assert answer.status == 204

    async def provider_fault(self, **fault: Any) -> None:
        """Something goes wrong at Slack, PagerDuty or the mail server."""
        async with self.stack.http.post(self.stack.ports.build_url("stand_ins") + "/api/faults", json=fault) as answer:
            assert answer.status == 201, await answer.text()

    async def providers_healed(self) -> None:
        """All of them are well."""
        async with self.stack.http.delete(self.stack.ports.build_url("stand_ins") + "/api/faults") as answer:
            assert answer.status == 204

    async def post_alert(self, relay: str, incident: str, source: str = "") -> int:
        """What the relay answers to a webhook; a source of 1,000 characters is refused."""
        labels: Any = {"alertname": "KMSRehearsal", "env": "production", "service": "backend", "severity": "critical"}
        alert: Any = {
            "status": "firing",
            "labels": labels,
            "annotations": {},
            "startsAt": datetime.now(UTC).isoformat(),
        }
        alert |= {"endsAt": "0001-01-01T00:00:00Z", "generatorURL": "", "fingerprint": "8f2db0381d74105e"}
        body: Any = {"version": "4", "status": "firing", "receiver": "kms-critical", "groupKey": f"{{}}:{{{incident}}}"}
        body |= {"alerts": [alert], "groupLabels": labels, "commonLabels": labels, "commonAnnotations": {}}
        body |= {"externalURL": "", "truncatedAlerts": 0}
        token = (self.stack.folder / "relay_token").read_text(encoding="utf-8").strip()
        headers = {"Authorization": f"Bearer {token}"}
        query = {"source": source} if source else {}
        try:
            async with self.stack.http.post(
                f"{self.url(relay)}/alerts", json=body, params=query, headers=headers
            ) as answer:
                return answer.status
        except (aiohttp.ClientError, TimeoutError):
            return 0

    async def dead_letters(self, count: int) -> list[str]:
        """The ids of messages that were given up, once there are as many."""
        async with asyncio.timeout(TIMEOUT):
            while True:
                read = await self.stack.get_json("relay", f"/api/deliveries?state=dead&limit={count}")
                if read and len(read["deliveries"]) == count:
                    return [str(delivery["id"]) for delivery in read["deliveries"]]
                await asyncio.sleep(0.1)

    async def put(self, service: str, record: str) -> None:
        """Writes a record."""
        async with self.stack.http.put(f"{self.url(service)}/v1/records/{record}", data=b"kept") as answer:
            assert answer.status == 204, await answer.text()

    async def read_repeatedly(self, service: str, record: str) -> None:
        """Reads it until it is cancelled, whatever the answer is."""
        while True:
            with suppress(aiohttp.ClientError, TimeoutError):
                async with self.stack.http.get(f"{self.url(service)}/v1/records/{record}") as answer:
                    await answer.read()
            await asyncio.sleep(0.1)

    async def answers(self, name: str) -> None:
        """Waits, with a bound, until a process answers."""
        async with asyncio.timeout(TIMEOUT):
            while not await self.kubectl.answers(name):  # noqa: ASYNC110 - another program's state
                await asyncio.sleep(0.1)

    async def reload(self, name: str) -> None:
        """Asks it to read its configuration again; what it answers is its business."""
        async with self.stack.http.post(f"{self.url(name)}/-/reload") as answer:
            await answer.read()

    async def wait_for_value(self, expression: str) -> None:
        """Waits, with a bound, until Prometheus has a value for it."""
        async with asyncio.timeout(TIMEOUT):
            while await self.stack.query(f"count({expression})") is None:  # noqa: ASYNC110 - another program's state
                await asyncio.sleep(0.2)

    def locked(self, database: str) -> sqlite3.Connection:
        """A database that nobody else can write, until the connection is closed."""
        connection = sqlite3.connect(self.stack.folder / database, isolation_level=None, timeout=10)
        connection.execute("BEGIN IMMEDIATE")
        return connection

    def url(self, name: str) -> str:
        """Where one of the processes listens."""
        return f"http://127.0.0.1:{self.staging[name]}" if name in self.staging else self.stack.ports.build_url(name)

    def shell_for(self, variables: dict[str, str], instead: Mapping[str, str]) -> Shell:
        """A shell whose variables are those of an alert; the parts that they do not name follow from them."""
        follows = {"BACKEND": self.url(service)} if (service := variables.get("SERVICE")) in files.SERVICES else {}
        replacements = {}
        if variables.get("ENV") == "staging":
            relay, exporter = self.stack.folder / "relay-staging.yml", self.stack.folder / "exporter-staging.yml"
            follows |= {"RELAY_CONFIG": str(relay), "RELAY": self.url("relay-staging"), "NAMESPACE": "staging"}
            follows |= {"KEYPULSE_NAMESPACE": "keypulse-staging"}
            follows |= {"EXPORTER": self.url("exporter-staging")}
            replacements = {"/etc/keypulse/exporter.yml": str(exporter)}
        return self.shell.having({**follows, **variables}, {**replacements, **instead})


@asynccontextmanager
async def staged(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Stage]:
    """Everything, running and well."""
    ports = Ports.pick_free()
    own = files.own_ports()

    def larger(folder: Path, of: Ports, kms: Kms) -> None:
        write_configuration(folder, of, kms)
        files.write(folder, of, own)

    original = stack.build_commands

    def more(folder: Path, of: Ports, *programs_and_kms: Any) -> dict[str, list[str | Path]]:
        return files.commands(original(folder, of, *programs_and_kms), folder, own)

    monkeypatch.setattr(stack, "write_configuration", larger)
    monkeypatch.setattr(stack, "build_commands", more)
    async with AsyncExitStack() as opened:
        for port in (*own.values(), ports.backend, ports.exporter, ports.relay, ports.alertmanager):
            opened.enter_context(reserve_port(port))
        running = await opened.enter_async_context(stack.run_stack(ports))
        programs = (stack.find_program("prometheus"), stack.find_program("alertmanager", "prometheus-alertmanager"))
        channel = await opened.enter_async_context(insecure_channel(f"127.0.0.1:{ports.emulator}"))
        transport = KeyManagementServiceGrpcAsyncIOTransport(channel=channel)
        client = KeyManagementServiceAsyncClient(transport=transport)
        hsm = HsmManagementAsyncClient(transport=HsmManagementGrpcAsyncIOTransport(channel=channel))
        gcloud = Gcloud(client, hsm, running.http, f"{ports.build_url('faults')}/faults")
        commands = more(running.folder, ports, *programs)
        kubectl = Kubectl(running.processes, running.folder, commands, files.DEPLOYMENTS, _answers(running, own))
        url = await opened.enter_async_context(played(gcloud, kubectl))
        shell = Shell(variables(ports, running.folder, url), _instead(running.folder, ports))
        yield Stage(running, gcloud, kubectl, shell, own)


def _answers(running: Stack, own: dict[str, int]) -> Callable[[str], Awaitable[bool]]:
    async def answers(name: str) -> bool:
        url = f"http://127.0.0.1:{own[name]}" if name in own else running.ports.build_url(name)
        try:
            async with running.http.get(f"{url}/-/healthy") as answer:
                return answer.status == 200
        except (aiohttp.ClientError, TimeoutError):
            return False

    return answers


def variables(ports: Ports, folder: Path, rehearsal: str) -> dict[str, str]:
    """What the runbook's heads set, for the demo's own parts."""
    return {
        "ENV": "production",
        "SERVICE": "backend",
        "TARGET": "ledger-kek",
        "VERSION": "1",
        "BACKEND": ports.build_url("backend"),
        "EXPORTER": ports.build_url("exporter"),
        "PROMETHEUS": ports.build_url("prometheus"),
        "ALERTMANAGER": ports.build_url("alertmanager"),
        "RELAY": ports.build_url("relay"),
        "RELAY_CONFIG": str(folder / "relay.yml"),
        "CHANNEL": "slack-critical",
        "PROJECT": "demo",
        "LOCATION": "global",
        "KEYRING": "app",
        "KEY": "ledger",
        "INSTANCE": INSTANCE,
        "SERVICE_ACCOUNT": SERVICE_ACCOUNT,
        "EXPORTER_ACCOUNT": EXPORTER_ACCOUNT,
        "NAMESPACE": "production",
        "KEYPULSE_NAMESPACE": "keypulse",
        "REHEARSAL": rehearsal,
    }


def _instead(folder: Path, ports: Ports) -> dict[str, str]:
    """Places and secrets that a document names as production has them."""
    token = (folder / "admin_token").read_text(encoding="utf-8").strip()
    return {
        "/etc/prometheus/": f"{folder}/",
        "/etc/alertmanager/": f"{folder}/",
        "/etc/keypulse/": f"{folder}/",
        "/var/lib/keypulse": str(folder),
        "Bearer …": f"Bearer {token}",
        "cordon NODE": f"cordon {NODE}",
    }
