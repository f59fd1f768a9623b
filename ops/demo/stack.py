"""The demo's processes on one machine: their order, their configuration, and when all of them are ready.

The emulator stands in for Cloud KMS, unless a real OpenBao has the key; the stand-ins for Slack, PagerDuty and the
mail server. Prometheus and Alertmanager are the real ones, with the product's own rules and routing on a faster clock.
"""

import asyncio
import json
import shutil
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import aiohttp

from ops.demo import openbao
from ops.demo.configuration import DOCS, KEY, Kms, write_configuration
from ops.demo.processes import Ports, Processes, run_processes
from shared.http.server import StartError

READY_TIMEOUT = 120.0
_POLL_SECONDS = 0.1
T = TypeVar("T")


async def poll(check: Callable[[], Awaitable[T | None]], timeout: float) -> T | None:
    """What `check` returns as soon as that is not None; None if it is not in time."""
    ends_at = time.monotonic() + timeout
    while (found := await check()) is None and time.monotonic() < ends_at:  # noqa: ASYNC110  other programs' state
        await asyncio.sleep(_POLL_SECONDS)
    return found


@dataclass(frozen=True, slots=True)
class Stack:
    ports: Ports
    http: aiohttp.ClientSession
    processes: Processes
    folder: Path
    """Configurations and data; deleted with the demo."""

    @property
    def dashboard_url(self) -> str:
        """The beginning of every dashboard link: the exporter's board, because the demo has no Grafana."""
        return f"{self.ports.build_url('exporter')}/?q="

    @property
    def runbook_url(self) -> str:
        """The beginning of every runbook link."""
        return f"{self.ports.build_url('stand_ins')}/docs/KMS_OPERATIONS.md#"

    async def get_json(self, part: str, path: str) -> Any:
        """JSON of one part; None while it does not answer with 200."""
        text = await self.get_text(part, path)
        return json.loads(text) if text else None

    async def get_text(self, part: str, path: str, **parameters: str) -> str:
        """Text of one part; empty while it does not answer with 200."""
        try:
            async with self.http.get(self.ports.build_url(part) + path, params=parameters) as response:
                return await response.text() if response.status == 200 else ""
        except (aiohttp.ClientError, TimeoutError):
            return ""

    async def post_json(self, path: str, body: dict[str, Any], failure: str) -> dict[str, Any]:
        """Post to the stand-ins, and return their answer. Raises StartError, a sentence that begins with `failure`."""
        try:
            async with self.http.post(self.ports.build_url("stand_ins") + path, json=body) as response:
                if response.status >= 300:
                    raise StartError(f"{failure}: the stand-ins answered {response.status}")
                return dict(await response.json()) if response.status != 204 else {}
        except (aiohttp.ClientError, TimeoutError) as error:
            raise StartError(f"{failure}: {error!r}") from None

    async def list_messages(self) -> list[dict[str, Any]]:
        """Every message in Slack, oldest first in each channel, with its channel's ID and name."""
        state = await self.get_json("stand_ins", "/api/state") or {"slack": []}
        return [
            {**message, "channel": each["id"], "channel_name": each["channel"]}
            for each in state["slack"]
            for message in each["messages"]
        ]

    async def query(self, expression: str) -> float | None:
        """Return the single value of a PromQL expression, or None."""
        text = await self.get_text("prometheus", "/api/v1/query", query=expression)
        result = json.loads(text)["data"]["result"] if text else []
        return float(result[0]["value"][1]) if result else None


@asynccontextmanager
async def run_stack(ports: Ports, kms: Kms = "gcp") -> AsyncIterator[Stack]:
    """Start everything and wait until Prometheus reports a healthy key.

    Raises:
        StartError: a program is missing, a port is taken, or a part does not come up; one sentence.
    """
    prometheus = find_program("prometheus")
    alertmanager = find_program("alertmanager", "prometheus-alertmanager")
    ports.check_free()
    with tempfile.TemporaryDirectory(prefix="keypulse-demo-") as folder:
        write_configuration(Path(folder), ports, kms)
        async with (
            # Not kept open: a connection left idle may be closed just as it is used again.
            aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(force_close=True), timeout=aiohttp.ClientTimeout(total=2)
            ) as http,
            run_processes(Path(folder)) as children,
        ):
            stack = Stack(ports, http, children, Path(folder))
            for name, command in build_commands(Path(folder), ports, prometheus, alertmanager, kms).items():
                await children.start(name, command)
                if name == "openbao":
                    await _set_up_openbao(stack)
                elif name == "emulator":
                    await _wait_for_emulator(stack)
            await wait_until_healthy(stack)
            yield stack


def find_program(*names: str) -> str:
    """The path of an installed program, by any of its names. Raises StartError."""
    for name in names:
        if path := shutil.which(name):
            return path
    raise StartError(
        f"{names[0]} is not installed; install it (Debian: apt-get install {names[-1]}) and run this again"
    )


def build_commands(
    folder: Path, ports: Ports, prometheus: str, alertmanager: str, kms: Kms = "gcp"
) -> dict[str, list[str | Path]]:
    """Return the commands in their order: senders start after receivers, and stop before them."""

    def module(name: str, *arguments: str | Path) -> list[str | Path]:
        return [sys.executable, "-m", name, *arguments]

    def local(port: int) -> str:
        return f"127.0.0.1:{port}"

    served: dict[str, list[str | Path]] = {
        "emulator": module(
            "ops.kms_emulator", "--listen", local(ports.emulator), "--faults", local(ports.faults), "--key", KEY
        )
    }
    broken_at: list[str | Path] = ["--emulator-faults", ports.build_url("faults")]
    if kms == "transit":
        served = {"openbao": openbao.build_command(folder)}
        broken_at = ["--openbao", ports.build_url("emulator"), "--openbao-secrets", folder]
    return {
        **served,
        "stand-ins": module(
            "ops.demo.stand_ins",
            *("--http", local(ports.stand_ins), "--smtp", local(ports.smtp), "--sockets", local(ports.sockets)),
            *("--slack-token-file", folder / "slack_token", "--slack-app-token-file", folder / "slack_app_token"),
            *("--pagerduty-key-file", folder / "pagerduty_key"),
            *(*broken_at, "--docs", DOCS),
            *("--prometheus", ports.build_url("prometheus"), "--alertmanager", ports.build_url("alertmanager")),
            *("--board", ports.build_url("exporter"), "--console", ports.build_url("relay")),
        ),
        "relay": module("services.relay", "--config", folder / "relay.yml"),
        "alertmanager": [
            alertmanager,
            f"--config.file={folder / 'alertmanager.yml'}",
            f"--storage.path={folder / 'alertmanager'}",
            f"--web.listen-address={local(ports.alertmanager)}",
            # Links in messages: to a page of the stand-ins, since Debian's Alertmanager has none.
            f"--web.external-url={ports.build_url('stand_ins')}/alertmanager",
            "--web.route-prefix=/",
            "--cluster.listen-address=",  # one Alertmanager; no gossip port
        ],
        "backend": module("services.backend", "--config", folder / "backend.yml"),
        "exporter": module("services.exporter", "--config", folder / "exporter.yml"),
        "prometheus": [
            prometheus,
            f"--config.file={folder / 'prometheus.yml'}",
            f"--storage.tsdb.path={folder / 'prometheus'}",
            f"--web.listen-address={local(ports.prometheus)}",
            f"--web.external-url={ports.build_url('stand_ins')}",  # they lead on to the graph that is there
            # On the demo's clock: the default of 5 minutes, and the minute that ops/prometheus/prometheus.yml asks for.
            "--query.lookback-delta=5s",
            "--rules.alert.for-grace-period=1s",
            # The minute after which an alert is sent again. The first heartbeat gets lost: Prometheus discovers its
            # Alertmanagers some seconds after it evaluates. Not 1 s, since 4 times this ends what is not sent again.
            "--rules.alert.resend-delay=2s",
        ],
    }


async def _wait_for_emulator(stack: Stack) -> None:
    """The exporter inspects the key as it starts, and would report a KMS that is not there yet."""

    async def is_listening() -> bool | None:
        stack.processes.check()
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", stack.ports.emulator)
        except OSError:
            return None
        writer.close()
        return True

    if await poll(is_listening, READY_TIMEOUT) is None:
        raise StartError(f"after {READY_TIMEOUT:.0f} s the emulator does not answer")


async def _set_up_openbao(stack: Stack) -> None:
    async def is_listening() -> bool | None:
        stack.processes.check()
        return True if await stack.get_text("emulator", "/v1/sys/init") else None

    if await poll(is_listening, READY_TIMEOUT) is None:
        raise StartError(f"after {READY_TIMEOUT:.0f} s OpenBao does not answer")
    try:
        await openbao.OpenBao(stack.ports.build_url("emulator"), stack.folder).set_up()
    except openbao.OpenBaoError as error:
        raise StartError(str(error)) from None


async def wait_until_healthy(stack: Stack) -> None:
    """Wait until key, backend and relay are healthy, the heartbeat arrives, and no other alert is pending."""
    missing = ""

    async def is_healthy() -> bool | None:
        nonlocal missing
        stack.processes.check()
        missing = await _find_unhealthy_part(stack)
        return None if missing else True

    if await poll(is_healthy, READY_TIMEOUT) is None:
        answer = await stack.get_json("prometheus", "/api/v1/alerts")
        labels = [alert["labels"] for alert in answer["data"]["alerts"]] if answer else []
        alerts = sorted({each["alertname"] for each in labels if each["severity"] != "none"})
        active = f" ({', '.join(alerts)})" if alerts else ""
        raise StartError(f"after {READY_TIMEOUT:.0f} s still waiting for {missing}{active}")


_HEALTHY_QUERIES = (
    ("min(kms:crypto_health_status) == 1", "the backend to be in kms mode, as Prometheus sees it"),
    ("min(kms_probe_success) == 1", "the first good probe, as Prometheus sees it"),
    ("min(kms:decryption_error_rate_5m)", "the first rate, which needs two scrapes"),
    ("changes(relay_watchdog_last_seen_timestamp_seconds[10s]) > 0", "the heartbeat of the alerts to reach the relay"),
    ('absent(ALERTS{alertname=~"(KMS|Relay).*", severity!="none"})', "the alerts of the start to go away"),
)
"""Expressions that must have a value, in their order, each with what it stands for."""


async def _find_unhealthy_part(stack: Stack) -> str:
    for part in ("relay", "alertmanager", "stand_ins", "prometheus"):
        if not await stack.get_text(part, "/-/ready"):
            return f"{part} to be ready"
    for expression, what in _HEALTHY_QUERIES:
        if await stack.query(expression) is None:
            return what
    return ""
