"""Child processes of the demo: each has a log file, is monitored, and ends with the demo, however that ends.

`NAME.pid` beside its log has the process id, so that a person can kill one.
"""

import asyncio
import ctypes
import random
import signal
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Final

from shared.config.settings import Address
from shared.http.server import StartError, bind_socket

_NOT_FOR_CONNECTIONS: Final = range(10_000, 32_768)
"""Below what Linux gives to connections by default (ip_local_port_range), so that none takes a port meanwhile."""


@dataclass(frozen=True, slots=True)
class Ports:
    """The port of each part on 127.0.0.1. Prometheus and Alertmanager avoid their usual ports."""

    exporter: int = 9911
    relay: int = 9912
    backend: int = 8000
    emulator: int = 9010
    """Of the KMS: the emulator, or OpenBao."""
    faults: int = 9011
    """Of the emulator; with OpenBao for members of its cluster."""
    stand_ins: int = 9913
    prometheus: int = 9914
    alertmanager: int = 9915
    smtp: int = 1025
    sockets: int = 9916

    @classmethod
    def pick_free(cls) -> "Ports":
        """Return free ports, for a demo beside another."""
        return cls(*pick_free_ports(len(fields(cls))))

    def build_url(self, name: str) -> str:
        return f"http://127.0.0.1:{getattr(self, name)}"

    def check_free(self) -> None:
        """Raises StartError if a port is in use, before anything is started."""
        for field in fields(self):
            port = getattr(self, field.name)
            try:
                bind_socket(Address("127.0.0.1", port)).close()
            except StartError:
                raise StartError(
                    f"port {port} (for {field.name}) is in use; stop what listens there "
                    f"(ss -ltnp 'sport = :{port}' names it) and run this again"
                ) from None


def pick_free_ports(count: int) -> list[int]:
    """Different ports on which nobody listens now."""
    found: list[int] = []
    for port in random.SystemRandom().sample(_NOT_FOR_CONNECTIONS, len(_NOT_FOR_CONNECTIONS)):
        if len(found) == count:
            return found
        try:
            bind_socket(Address("127.0.0.1", port)).close()
        except StartError:
            continue
        found.append(port)
    raise StartError("127.0.0.1 has no free port left; stop what listens there")


STOP_TIMEOUT = 15.0
_PR_SET_PDEATHSIG = 1  # linux/prctl.h


class Processes:
    """The children, by name. Use as `async with processes(folder) as children`."""

    def __init__(self, logs: Path, stack: AsyncExitStack) -> None:
        self._logs = logs
        self._stack = stack
        self._running: dict[str, asyncio.subprocess.Process] = {}
        self._commands: dict[str, Sequence[str | Path]] = {}

    async def start(self, name: str, command: Sequence[str | Path]) -> int:
        """Start a child, and return its process id; its output is appended to `NAME.log`.

        A session of its own keeps Ctrl-C with the demo, which then stops the children in order.
        """
        with (self._logs / f"{name}.log").open("ab") as log:
            process = await asyncio.create_subprocess_exec(
                *command, stdout=log, stderr=log, start_new_session=True, preexec_fn=build_parent_death_hook()
            )
        self._running[name], self._commands[name] = process, command
        (self._logs / f"{name}.pid").write_text(f"{process.pid}\n", encoding="utf-8")
        self._stack.push_async_callback(_stop_process, process)
        return process.pid

    def list_ended(self) -> dict[str, str]:
        """Return the ended children by name, each with its exit code and its last line."""
        return {
            name: f"{name} ended with exit code {process.returncode}: {self._last_line(name)}"
            for name, process in self._running.items()
            if process.returncode is not None
        }

    def check(self) -> None:
        """Raises StartError with the last line of its log when a child has ended."""
        for sentence in self.list_ended().values():
            raise StartError(sentence)

    async def restart_ended(self) -> list[str]:
        """Restart the ended children, and return their names."""
        names = list(self.list_ended())
        for name in names:
            await self.start(name, self._commands[name])
        return names

    def _last_line(self, name: str) -> str:
        lines = (self._logs / f"{name}.log").read_text(encoding="utf-8", errors="replace").strip().splitlines()
        return lines[-1][:600] if lines else "it printed nothing"


@asynccontextmanager
async def run_processes(logs: Path) -> AsyncIterator[Processes]:
    """Children that are stopped at the end, the last started first: SIGTERM, then SIGKILL after `STOP_TIMEOUT`."""
    async with AsyncExitStack() as stack:
        yield Processes(logs, stack)


async def _stop_process(process: asyncio.subprocess.Process) -> None:
    if process.returncode is None:
        process.terminate()
        try:
            await asyncio.wait_for(process.wait(), STOP_TIMEOUT)
        except TimeoutError:
            process.kill()
            await process.wait()


def build_parent_death_hook() -> Callable[[], None] | None:
    """A `preexec_fn` with which Linux ends the child with SIGTERM when its parent is killed and cannot; else None."""
    if sys.platform != "linux":
        return None
    prctl = ctypes.CDLL(None).prctl  # found before the fork: nothing may be loaded between fork and exec

    def before_exec() -> None:
        prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)

    return before_exec
