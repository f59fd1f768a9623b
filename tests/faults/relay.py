"""The relay as a process: a configuration comes in; it is started, killed, stopped and continued like anybody's."""

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import aiohttp
import yaml

from ops.demo.processes import build_parent_death_hook
from ops.demo.stand_ins.app import StandIns
from shared.sql.database_url import DatabaseUrl
from tests import processes
from tests.fork_server import Forked, fork
from tests.relay.delivery.sender_tasks import sending_processes
from tests.relay.delivery_oracle.evidence import Channel
from tests.relay.served_relay import TOKEN, until
from tests.reserved_port import reserve_port

START_SECONDS = 60.0
STOP_SECONDS = 20.0
ANSWER_SECONDS = 60.0
"""Of a relay that goes on, however busy the machine is."""
_TRY = aiohttp.ClientTimeout(total=3)
"""For one of many tries."""
ROUTING_KEY = "0" * 32
SLACK_TOKEN = "xoxb-test"
SENDER = "alerts@example.org"
CHANNELS = {
    "slack": Channel(("#security-critical",), is_edited=True, is_searched=True),
    "email": Channel(("oncall@example.org", "secops@example.org")),
    "pagerduty": Channel(("pagerduty",), opens_pages=True),
}


def configuration(
    folder: Path, database: DatabaseUrl, providers: StandIns, *, slack_api_url: str | None = None, **changes: Any
) -> dict[str, Any]:
    """Every event on every channel, and everything that takes its time in earnest takes seconds at most."""
    for name, secret in (("token", TOKEN), ("key", ROUTING_KEY), ("slack_token", SLACK_TOKEN)):
        (folder / name).write_text(secret)
    return {
        "database": database.render_as_string(hide_password=False),
        "auth": {"bearer_token_file": "token"},
        "delivery": {"timeout": "1s", "lease": "2s", "backoff_initial": "100ms", "backoff_max": "500ms"},
        "pacing": {"enabled": False},
        "channels": {
            "slack": {
                "kind": "slack",
                "channel": CHANNELS["slack"].readers[0],
                "token_file": "slack_token",
                "api_url": slack_api_url or providers.slack_api_url,
            },
            "email": {
                "kind": "email",
                "host": providers.smtp.host,
                "port": providers.smtp.port,
                "tls": "none",
                "from": SENDER,
                "to": list(CHANNELS["email"].readers),
            },
            "pagerduty": {"kind": "pagerduty", "routing_key_file": "key", "url": providers.pagerduty_url},
        },
        "environment": "staging",
        "default_channels": list(CHANNELS),
        **changes,
    }


class Relay:
    """One process of the relay, always at the same address."""

    def __init__(
        self, address: str, module: tuple[str, ...], through: tuple[str, ...], log: Path, http: aiohttp.ClientSession
    ) -> None:
        self.url = f"http://{address}"
        self.http = http
        """A client that holds the token."""
        self._module = module
        self._through = through
        self._log = log
        self._lost_before = 0
        self.process: asyncio.subprocess.Process | Forked | None = None

    @property
    def log(self) -> str:
        """Everything that it ever logged."""
        return self._log.read_text()

    async def start(self) -> None:
        """Starts it; `up` waits until it listens."""
        with self._log.open("ab") as log:
            if not self._through:
                self.process = await asyncio.to_thread(fork, *self._module, output=log)
                return
            command = (*self._through, sys.executable, "-m", *self._module)
            self.process = await asyncio.create_subprocess_exec(
                *command, stdout=log, stderr=log, start_new_session=True, preexec_fn=build_parent_death_hook()
            )

    async def up(self) -> None:
        """Waits until it answers."""
        await self.answers(200, "/-/healthy", START_SECONDS)

    async def answers(self, status: int, path: str, seconds: float = 60.0) -> None:
        """Waits until a GET is answered with this status."""

        async def so() -> bool:
            return await self.answer(path) == status

        await until(so, seconds)

    async def answer(self, path: str) -> int | None:
        """The status of a GET; None where nobody answers. Fails where the process ended by itself."""
        assert self.process is not None
        assert self.process.returncode is None, self.log[-3000:]
        try:
            async with self.http.get(path, timeout=_TRY) as response:
                return response.status
        except (aiohttp.ClientError, TimeoutError):
            return None

    async def leases_lost(self) -> int:
        """How many claims ended before their receipt, by `relay_leases_lost_total`."""
        try:
            async with self.http.get("/metrics") as response:
                lines = (await response.text()).splitlines()
        except (aiohttp.ClientError, TimeoutError):
            return self._lost_before
        now = (float(line.rpartition(" ")[2]) for line in lines if line.startswith("relay_leases_lost_total{"))
        return self._lost_before + int(sum(now))

    async def kill_and_remember(self) -> None:
        """The same as `kill`, a moment after it was asked how many leases it had lost, which a new process forgets."""
        self._lost_before = await self.leases_lost()
        await self.kill()

    async def kill(self) -> None:
        """SIGKILL: no time for anything."""
        await self._end(signal.SIGKILL)

    async def stop(self) -> None:
        """SIGTERM, and a check that it went in good order."""
        await self._end(signal.SIGTERM)
        assert self.process is not None
        assert self.process.returncode == 0, self.log[-3000:]

    def freeze(self) -> None:
        """SIGSTOP: it does nothing and holds everything, until `thaw`."""
        assert self.process is not None
        self.process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """SIGCONT."""
        assert self.process is not None
        self.process.send_signal(signal.SIGCONT)

    async def sender(self) -> int:
        """The id of its sending process, once it has one."""
        assert self.process is not None
        pid = self.process.pid
        await until(lambda: bool(sending_processes(pid)))
        return sending_processes(pid)[0]

    async def _end(self, how: signal.Signals) -> None:
        assert self.process is not None
        assert self.process.returncode is None, self.log[-3000:]
        await processes.stop(self.process, how, STOP_SECONDS)


def go_on(sender: int) -> None:
    """SIGCONT to a sending process, be it that its relay is gone, and it as well."""
    with suppress(ProcessLookupError):
        os.kill(sender, signal.SIGCONT)


def set_ahead(folder: Path, name: str, seconds: float) -> None:
    """Sets the clock of a relay that was started with one of its own: how far ahead it is of the machine's."""
    clock = _clock(folder, name)
    new = clock.with_suffix(".new")
    new.write_text(str(seconds))
    new.replace(clock)  # so that nobody reads half of it


def _clock(folder: Path, name: str) -> Path:
    return folder / f"{name}.clock"


@asynccontextmanager
async def relay(
    folder: Path,
    configuration: Mapping[str, Any],
    *,
    name: str = "relay",
    clock_ahead: float | None = None,
    stops_at: Path | None = None,
    through: tuple[str, ...] = (),
) -> AsyncIterator[Relay]:
    """A running relay, gone at the end.

    Args:
        folder: where its configuration and its log are written.
        configuration: without `listen`.
        name: tells replicas apart.
        clock_ahead: seconds by which its wall clock is wrong; None starts it as a person does.
        stops_at: a file; its sending process stops as `stopping_channel` says.
        through: a command that starts it, such as one that takes privileges away.
    """
    timeout = aiohttp.ClientTimeout(total=ANSWER_SECONDS)
    headers = {"Authorization": f"Bearer {TOKEN}"}
    with reserve_port() as address:  # for every process that comes after a kill
        file = folder / f"{name}.yml"
        file.write_text(yaml.safe_dump({**configuration, "listen": str(address)}))
        module = ("services.relay", "--config", str(file))
        if clock_ahead is not None or stops_at is not None:
            set_ahead(folder, name, clock_ahead or 0.0)
            module = ("tests.faults.faulty_replica", str(file), str(_clock(folder, name)))
        stop = () if stops_at is None else (str(stops_at),)
        async with aiohttp.ClientSession(f"http://{address}", headers=headers, timeout=timeout) as http:
            relay_process = Relay(str(address), (*module, *stop), through, folder / f"{name}.log", http)
            await relay_process.start()
            try:
                await relay_process.up()
                yield relay_process
            finally:
                if relay_process.process is not None:
                    await processes.kill(relay_process.process)
