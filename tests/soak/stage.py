"""The demo's stack for a day: servers under the chart's memory limits, and stand-ins that this process reads.

Prometheus, Alertmanager, exporter, relay, backend and emulator are processes of their own. They run the product's rules
and routing on the demo's clock, a minute in a second.
"""

import asyncio
import json
import os
import resource
import signal
import sys
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any, Final

import aiohttp
import yaml
from aiohttp import web

from ops.demo.configuration import write_configuration
from ops.demo.processes import Ports, Processes, run_processes
from ops.demo.stack import Stack, build_commands, find_program, wait_until_healthy
from ops.demo.stand_ins.app import StandIns, run_stand_ins
from shared.config.settings import Address
from shared.http.server import StartError
from shared.sql.database_url import DatabaseUrl
from tests import processes
from tests.faults.memory_limited_process import make_memory_group, memory_limit
from tests.faults.relay import set_ahead
from tests.sites import serve_site
from tests.soak.alerts import RULE, Day, Gate
from tests.soak.received import Received

SERVERS: Final = ("relay", "exporter", "backend")
_END_SECONDS: Final = 40.0
_POLL_SECONDS: Final = 0.1


@dataclass
class Stage:
    """What runs, and what is done to it."""

    folder: Path
    database: DatabaseUrl
    ports: Ports
    http: aiohttp.ClientSession
    providers: StandIns
    day: Day
    gate: Gate
    received: Received
    processes: Processes
    commands: dict[str, list[str | Path]]
    is_limited_by_kernel: bool
    pids: dict[str, int] = field(default_factory=dict)
    codes: list[int] = field(default_factory=list)
    """The exit code of each command that was typed, such as of a rotation."""
    records: dict[str, bytes] = field(default_factory=dict)
    """What the backend said it has stored."""
    _ending: set[str] = field(default_factory=set)

    @property
    def stack(self) -> Stack:
        return Stack(self.ports, self.http, self.processes, self.folder)

    async def start(self, name: str) -> None:
        self.pids[name] = await self.processes.start(name, self.commands[name])
        self._ending.discard(name)

    async def restart(self, name: str, how: signal.Signals) -> None:
        """Ends a process, and starts it again at once. Raises StartError where a SIGTERM does not end it in order."""
        self._ending.add(name)
        os.kill(self.pids[name], how)
        async with asyncio.timeout(_END_SECONDS):
            while name not in self.processes.list_ended():  # noqa: ASYNC110 - another program's state
                await asyncio.sleep(_POLL_SECONDS)
        sentence = self.processes.list_ended()[name]
        if how is signal.SIGTERM and " exit code 0" not in sentence:
            raise StartError(sentence)
        await self.start(name)

    def kill(self, pid: int) -> None:
        """SIGKILL to a child of a server."""
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)

    def list_ended_alone(self) -> list[str]:
        """A sentence for each process that nobody ended."""
        return [sentence for name, sentence in self.processes.list_ended().items() if name not in self._ending]

    def set_clock(self, seconds: float) -> None:
        """How far the relay's clock is ahead."""
        set_ahead(self.folder, "relay", seconds)

    def fill_disk(self) -> None:
        """From now on the relay can write no file; on a full disk it could still write over what is there."""
        resource.prlimit(self.pids["relay"], resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))

    def free_disk(self) -> None:
        resource.prlimit(self.pids["relay"], resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))

    def reload(self, number: int) -> None:
        """Another contact in the relay's messages; relay and exporter read their settings again."""
        _change(self.folder / "relay.yml", contacts={"security on call": f"+1 555 {number:04d}"})
        for server in ("relay", "exporter"):
            os.kill(self.pids[server], signal.SIGHUP)

    async def rotate(self, kind: str) -> None:
        """A rotation of the backend's keyring; `rewrap-kek` follows a new version of the KMS key."""
        if kind == "rewrap-kek":
            emulator = f"127.0.0.1:{self.ports.emulator}"
            await self._type("ops.kms_emulator", "versions", "create", "--emulator", emulator)
        config = str(self.folder / "rotator.yml")
        await self._type("services.rotator", "run", "--type", kind, "--config", config)

    async def _type(self, module: str, *arguments: str) -> None:
        """A command, whose exit code is kept; what it prints goes to `typed.log`."""
        with (self.folder / "typed.log").open("ab") as log:
            command = (sys.executable, "-m", module, *arguments)
            process = await asyncio.create_subprocess_exec(*command, stdout=log, stderr=log, start_new_session=True)
        await processes.finish(process, 600)
        self.codes.append(process.returncode or 0)

    async def write_records(self, random: Random) -> None:
        """One record a second, until cancelled."""
        while True:
            await asyncio.sleep(1)
            name, content = random.randbytes(8).hex(), random.randbytes(40)
            with suppress(aiohttp.ClientError, TimeoutError):
                async with self.http.put(self._build_record_url(name), data=content) as answer:
                    if answer.status == 204:
                        self.records[name] = content

    async def count_unreadable(self) -> int:
        """How many records are not read as they were written."""
        unreadable = 0
        for name, content in self.records.items():
            async with self.http.get(self._build_record_url(name)) as answer:
                unreadable += answer.status != 200 or await answer.read() != content
        return unreadable

    async def read_proofs(self) -> list[dict[str, Any]] | None:
        """All of them, the newest first; None where this relay proves no path."""
        page = await self.stack.get_json("relay", "/api/proofs")
        if page is None:
            return None
        proofs: list[dict[str, Any]] = page["proofs"]
        while cursor := page["next_cursor"]:
            page = json.loads(await self.stack.get_text("relay", "/api/proofs", cursor=cursor))
            proofs += page["proofs"]
        return proofs

    def _build_record_url(self, name: str) -> str:
        return self.ports.build_url("backend") + f"/v1/records/{name}"


@asynccontextmanager
async def run_stage(folder: Path, database: DatabaseUrl) -> AsyncIterator[Stage]:
    """Everything, healthy. Raises StartError."""
    ports = Ports.pick_free()
    prometheus, alertmanager = find_program("prometheus"), find_program("alertmanager", "prometheus-alertmanager")
    write_configuration(folder, ports)
    (folder / "outbox").mkdir()
    set_ahead(folder, "relay", 0)
    day, gate = Day(), Gate(ports.build_url("relay"))
    async with AsyncExitStack() as stack:
        site = serve_site(web.get("/metrics", day.expose), web.post("/alerts", gate.forward))
        address = (await stack.enter_async_context(site)).removeprefix("http://")
        _change_configuration(folder, database, ports, address)
        providers = await stack.enter_async_context(_run_providers(folder, ports))
        timeout, connector = aiohttp.ClientTimeout(total=5), aiohttp.TCPConnector(force_close=True)
        http = await stack.enter_async_context(aiohttp.ClientSession(timeout=timeout, connector=connector))
        groups = {server: make_memory_group(memory_limit(server)) for server in SERVERS}
        stack.push_async_callback(_remove, groups.values())
        processes = await stack.enter_async_context(run_processes(folder))
        commands = build_commands(folder, ports, prometheus, alertmanager)
        del commands["stand-ins"]
        for server, group in groups.items():
            observed: list[str | Path] = [sys.executable, "-m", "tests.soak.observed", folder, server]
            commands[server] = [*_enter(group), *observed, folder / f"{server}.yml"]
        running = Stage(
            *(folder, database, ports, http, providers, day, gate, Received(), processes, commands),
            is_limited_by_kernel=all(groups.values()),
        )
        for name in commands:
            await running.start(name)
        await wait_until_healthy(running.stack)
        yield running


def _change_configuration(folder: Path, database: DatabaseUrl, ports: Ports, address: str) -> None:
    """What differs from the demo; `address` is of the day's series and of the gate."""
    _change(
        folder / "relay.yml",
        database=database.render_as_string(hide_password=False),
        delivery={"backoff_max": "5s"},  # a minute in a second, as everything else
        retention={"max_deliveries": 10_000_000, "max_bytes": "100GiB"},  # the ledger needs them all
    )
    _change(folder / "rotator.yml", new_dek_min_age="1ms")
    targets = [{"targets": [address], "labels": {"env": "production"}}]
    job = {"job_name": "soak", "scrape_interval": "1s", "static_configs": targets}
    jobs = _change(folder / "prometheus.yml")["scrape_configs"]
    _change(folder / "prometheus.yml", scrape_configs=[*jobs, job])
    rules = {"groups": [{"name": "soak", "interval": "1s", "rules": [RULE]}]}
    (folder / "rules/soak.yml").write_text(yaml.safe_dump(rules), encoding="utf-8")
    file = folder / "alertmanager.yml"
    text = file.read_text(encoding="utf-8")
    file.write_text(text.replace(f"127.0.0.1:{ports.relay}/alerts", f"{address}/alerts"), encoding="utf-8")


def _change(file: Path, **settings: object) -> dict[str, Any]:
    """Writes and returns the settings of a file with these instead of its own."""
    changed: dict[str, Any] = yaml.safe_load(file.read_text(encoding="utf-8")) | settings
    file.write_text(yaml.safe_dump(changed, sort_keys=False), encoding="utf-8")
    return changed


def _run_providers(folder: Path, ports: Ports) -> Any:
    def read(name: str) -> list[str]:
        return [(folder / name).read_text(encoding="utf-8").strip()]

    host = "127.0.0.1"
    return run_stand_ins(
        http=Address(host, ports.stand_ins),
        smtp=Address(host, ports.smtp),
        sockets=Address(host, ports.sockets),
        slack_tokens=read("slack_token"),
        slack_app_tokens=read("slack_app_token"),
        pagerduty_keys=read("pagerduty_key"),
        emulator_faults=ports.build_url("faults"),
    )


def _enter(group: Path | None) -> Sequence[str]:
    """What starts a command in a memory group."""
    return ("sh", "-c", f'echo $$ > {group}/cgroup.procs && exec "$@"', "sh") if group else ()


async def _remove(groups: Iterable[Path | None]) -> None:
    """The memory groups, a moment after their processes ended."""
    for group in filter(None, groups):
        for _ in range(50):
            with suppress(OSError):
                group.rmdir()
                break
            await asyncio.sleep(_POLL_SECONDS)
