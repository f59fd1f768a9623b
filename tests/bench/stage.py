"""What every benchmark stands on: a fresh folder on a disk, programs as processes of their own, and a client for them.

The relay runs as a person runs it, with its pace lifted; Alertmanager is the real one. Each comes up on a port that is
free, and all are stopped when the stage is left, however that happens.
"""

import asyncio
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import aiohttp
import yaml

from ops.demo.processes import Processes, pick_free_ports, run_processes
from ops.demo.stack import find_program
from shared.http.server import StartError
from tests.postgres import Postgres, programs

TOKEN: Final = "a-token-of-the-benchmarks"
SLACK_TOKEN: Final = "xoxb-benchmark"
ROUTING_KEY: Final = "0" * 32
_READY_SECONDS: Final = 60.0
_POLL_SECONDS: Final = 0.1
_BATCH: Final = 500


class BenchError(Exception):
    """What was to be measured did not happen; one sentence."""


@dataclass(frozen=True, slots=True)
class Running:
    """A program that answers."""

    address: str
    pid: int

    @property
    def url(self) -> str:
        """`http://127.0.0.1:PORT`."""
        return f"http://{self.address}"


class Stage:
    """A folder of its own and the programs that run in it."""

    def __init__(self, folder: Path, children: Processes, http: aiohttp.ClientSession) -> None:
        self.folder = folder
        self.http = http
        self._children = children

    async def relay(
        self,
        channels: Mapping[str, Mapping[str, object]],
        timeout: str = "10s",
        *,
        name: str = "relay",
        limits_rates: bool = False,
        **changes: object,
    ) -> Running:
        """A relay that delivers everything on all `channels`, each send within `timeout`; with a fresh database.

        `changes` replace keys of its configuration; `name` tells replicas apart.
        """
        self.secret("token", TOKEN)
        self.secret("slack_token", SLACK_TOKEN)
        self.secret("pagerduty_key", ROUTING_KEY)
        address = f"127.0.0.1:{free_port()}"
        configuration = {
            "listen": address,
            "database": f"sqlite:///{self.folder}/relay.db",
            "environment": "staging",
            "auth": {"bearer_token_file": "token"},
            "channels": {name: dict(channel) for name, channel in channels.items()},
            "default_channels": list(channels),
            "delivery": {"timeout": timeout, "lease": "2m"},
            "pacing": {"enabled": limits_rates},
            **changes,
        }
        self.write(f"{name}.yml", configuration)
        return await self.start_relay(name, address)

    async def start_relay(self, name: str, address: str) -> Running:
        """Starts a relay, or starts it again once it was killed, with the configuration that it has."""
        file = self.folder / f"{name}.yml"
        return await self.start(name, (sys.executable, "-m", "services.relay", "--config", file), address)

    async def alertmanager(self, receiver: Mapping[str, object], group_wait: str) -> Running:
        """An Alertmanager that has sent nothing yet; each `instance` is a group of its own and goes to `receiver`."""
        configuration = {
            "route": {
                "receiver": "bench",
                "group_by": ["alertname", "instance"],
                "group_wait": group_wait,
                "group_interval": "5m",
                "repeat_interval": "4h",
            },
            "receivers": [{"name": "bench", **receiver}],
        }
        address = f"127.0.0.1:{free_port()}"
        command = (
            find_program("alertmanager", "prometheus-alertmanager"),
            f"--config.file={self.write('alertmanager.yml', configuration)}",
            f"--storage.path={self.folder / 'alertmanager'}",
            f"--web.listen-address={address}",
            f"--web.external-url=http://{address}",
            "--cluster.listen-address=",  # one Alertmanager; no gossip port
            "--log.level=error",
        )
        return await self.start("alertmanager", command, address)

    async def post_alerts(self, alertmanager: Running, alerts: Sequence[Mapping[str, Any]], group_wait: float) -> float:
        """Post alerts, and return when Alertmanager may first send them, in seconds of `time.monotonic`."""
        may_send = time.monotonic() + group_wait
        now = datetime.now(UTC).isoformat()
        for first in range(0, len(alerts), _BATCH):
            batch = [{**alert, "startsAt": now} for alert in alerts[first : first + _BATCH]]
            async with self.http.post(f"{alertmanager.url}/api/v2/alerts", json=batch) as answer:
                if answer.status != 200:
                    raise BenchError(f"Alertmanager refused the alerts: {await answer.text()}")
        if group_wait and time.monotonic() > may_send:
            raise BenchError(f"posting took longer than {group_wait:g} s; this machine is too busy to measure on")
        return may_send

    async def module(self, name: str, *arguments: str) -> Running:
        """`python -m NAME PORT ARGUMENTS`, once it answers."""
        port = free_port()
        command = (sys.executable, "-m", name, str(port), *arguments)
        return await self.start(name, command, f"127.0.0.1:{port}", ready="/")

    async def stand_ins(self, smtp_port: int, *options: str) -> Running:
        """The demo's Slack, PagerDuty and mail server, which check what they get."""
        address = f"127.0.0.1:{free_port()}"
        listen = ("--http", address, "--smtp", f"127.0.0.1:{smtp_port}", "--sockets", f"127.0.0.1:{free_port()}")
        token = ("--slack-token-file", self.secret("slack_token", SLACK_TOKEN))
        key = ("--pagerduty-key-file", self.secret("pagerduty_key", ROUTING_KEY))
        command: tuple[str | Path, ...] = (sys.executable, "-m", "ops.demo.stand_ins", *listen, *token, *key, *options)
        return await self.start("stand-ins", command, address)

    async def get(self, url: str) -> Any:
        """The JSON of a running program. Raises BenchError where there is none, StartError where it has ended."""
        self._children.check()
        try:
            async with self.http.get(url) as response:
                response.raise_for_status()
                return await response.json()
        except (aiohttp.ClientError, TimeoutError, ValueError) as error:
            raise BenchError(f"{url} did not answer: {error!r}") from None

    async def until(self, what: str, seconds: float, true: Callable[[], Awaitable[bool]]) -> None:
        """Raises BenchError where `what` has not come true within `seconds`, StartError where a program has ended."""
        deadline = time.monotonic() + seconds
        while not await true():
            self._children.check()
            if time.monotonic() > deadline:
                raise BenchError(f"after {seconds:g} s still waiting for {what}")
            await asyncio.sleep(_POLL_SECONDS)

    def write(self, name: str, content: object) -> Path:
        """A YAML file in the folder."""
        file = self.folder / name
        file.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
        return file

    def secret(self, name: str, value: str) -> Path:
        """A file with a secret in the folder."""
        file = self.folder / name
        file.write_text(value, encoding="utf-8")
        return file

    async def start(self, name: str, command: Sequence[str | Path], address: str, ready: str = "/-/ready") -> Running:
        """A program, once it answers 200 to `ready`; what it prints goes to `NAME.log` in the folder."""
        pid = await self._children.start(name, command)

        async def answers() -> bool:
            try:
                async with self.http.get(f"http://{address}{ready}") as response:
                    return response.status == 200
            except (aiohttp.ClientError, TimeoutError):
                return False

        await self.until(f"{name} to answer", _READY_SECONDS, answers)
        return Running(address, pid)


@asynccontextmanager
async def stage(disk: Path) -> AsyncIterator[Stage]:
    """A stage in a new folder on `disk`, which is gone afterwards. Raises StartError."""
    with temporary(disk) as folder:
        async with (
            aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=10)) as http,
            run_processes(folder) as children,
        ):
            yield Stage(folder, children, http)


@contextmanager
def temporary(disk: Path) -> Iterator[Path]:
    """A new folder on `disk`, which is gone afterwards. Raises StartError."""
    try:
        directory = tempfile.TemporaryDirectory(prefix="keypulse-bench-", dir=disk)
    except OSError as error:
        raise StartError(f"cannot write to {disk}: {error.strerror}; name another folder with --disk") from None
    with directory as folder:
        yield Path(folder)


_DURABLE: Final = ("fsync=on", "full_page_writes=on", "shared_buffers=128MB", "max_wal_size=1GB")
"""PostgreSQL's own defaults, where the tests have others."""


@contextmanager
def run_postgres(disk: Path | None = None, *settings: str) -> Iterator[Postgres]:
    """A PostgreSQL as the tests run it; with `disk`, one that keeps its data there and flushes each commit.

    Raises StartError.
    """
    with (
        programs() as from_the_wheel,
        tempfile.TemporaryDirectory(prefix="pg-", dir=disk) as folder,  # a short path, for its socket
    ):
        try:
            server = Postgres(Path(folder), from_the_wheel, (*(_DURABLE if disk else ()), *settings))
        except RuntimeError as error:
            raise StartError(str(error)) from None
        except subprocess.CalledProcessError:
            raise StartError(
                f"PostgreSQL cannot keep its data in {folder}; name a folder with --disk that the user nobody can reach"
            ) from None
        try:
            yield server
        finally:
            server.stop()


def free_port() -> int:
    """A port on which nobody listens now, and that no connection gets."""
    return pick_free_ports(1)[0]


def to_relay(relay: Running) -> dict[str, object]:
    """Alertmanager's receiver that is the relay."""
    authorization = {"authorization": {"type": "Bearer", "credentials": TOKEN}}
    return {"webhook_configs": [{"url": f"{relay.url}/alerts", "http_config": authorization}]}


def slack(base: str) -> dict[str, object]:
    """A relay's channel for the Slack at `base`."""
    channel = "#security-critical"
    return {"kind": "slack", "channel": channel, "token_file": "slack_token", "api_url": f"{base}/slack/api/"}


def pagerduty(base: str) -> dict[str, object]:
    """A relay's channel for the PagerDuty at `base`."""
    return {"kind": "pagerduty", "routing_key_file": "pagerduty_key", "url": f"{base}/pagerduty/v2/enqueue"}
