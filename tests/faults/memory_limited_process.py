"""A real server as a process of its own, under the memory limit that chart and compose give it.

Where a memory cgroup can be made, the kernel ends what goes over it. Elsewhere a thread looks at what the server and
its children hold, and ends them all the same.
"""

import asyncio
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Final

import yaml
from pydantic import ByteSize, TypeAdapter

from tests import processes

_CHART: Final = Path("ops/helm/keypulse/values.yaml")
_COMPOSE: Final = Path("compose.yaml")
_SIZE: Final = TypeAdapter(ByteSize)
_GROUPS: Final = (
    (Path("/sys/fs/cgroup/memory"), "memory.limit_in_bytes"),
    (Path("/sys/fs/cgroup"), "memory.max"),
)


def memory_limit(server: str) -> int:
    """Bytes: the lower of the two."""
    chart = yaml.safe_load(_CHART.read_text())[server]["resources"]["limits"]["memory"]
    compose = yaml.safe_load(_COMPOSE.read_text())["services"][server]["mem_limit"]
    return min(_SIZE.validate_python(f"{chart}B"), _SIZE.validate_python(f"{compose}ib"))


class Limited:
    """A server that runs under a limit; `peak` is the most memory that it was seen with, its children included."""

    def __init__(self, process: subprocess.Popen[bytes], limit: int, log: Path) -> None:
        self.process = process
        self.limit = limit
        self.peak = 0
        self.over = False
        self._log = log
        self._watching = threading.Thread(target=self._watch, daemon=True)
        self._watching.start()

    @property
    def log(self) -> str:
        return self._log.read_text()

    async def address(self) -> str:
        """Where it listens, once it does."""
        async with asyncio.timeout(60):
            while True:
                for line in self.log.splitlines():
                    if '"listening"' in line:
                        return str(json.loads(line)["address"])
                assert self.process.poll() is None, self.log
                await asyncio.sleep(0.05)

    def _watch(self) -> None:
        while self.process.poll() is None:
            used = sum(map(read_private_bytes, list_tree(self.process.pid)))
            self.peak = max(self.peak, used)
            if used > self.limit:
                self.over = True
                self.process.kill()
            time.sleep(0.02)


@asynccontextmanager
async def limited(server: str, arguments: Sequence[str], folder: Path) -> AsyncIterator[Limited]:
    """The server while the body runs.

    Args:
        server: the name of its package and of its place in the chart.
        arguments: of its command.
        folder: for its log.
    """
    limit, log = memory_limit(server), folder / f"{server}.log"
    command = [sys.executable, "-m", f"services.{server}", *arguments]
    group = make_memory_group(limit)
    if group:
        command = ["sh", "-c", f'echo $$ > {group}/cgroup.procs && exec "$@"', "sh", *command]
    with log.open("wb") as output:
        process = await asyncio.to_thread(subprocess.Popen[bytes], command, stderr=output)
    running = Limited(process, limit, log)
    try:
        yield running
    finally:
        try:
            await asyncio.to_thread(processes.end, process)
        finally:
            if group:
                for _ in range(50):
                    with suppress(OSError):
                        group.rmdir()
                        break
                    await asyncio.sleep(0.1)


def make_memory_group(limit: int) -> Path | None:
    """A memory cgroup of our own, where one can be made."""
    for root, file in _GROUPS:
        group = root / f"keypulse-test-{os.getpid()}-{time.monotonic_ns()}"
        try:
            group.mkdir()
            (group / file).write_text(str(limit))
        except OSError:
            with suppress(OSError):
                group.rmdir()
        else:
            return group
    return None


def list_tree(pid: int) -> list[int]:
    """The ids of a process and of its children, whichever of its threads started them."""
    pids = [pid]
    for each in pids:
        with suppress(OSError):  # it has just ended
            for thread in Path(f"/proc/{each}/task").iterdir():
                pids += map(int, (thread / "children").read_text().split())
    return pids


def read_private_bytes(pid: int) -> int:
    """Bytes of memory that are its own; what is mapped from files is shared, and can be dropped."""
    with suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("RssAnon:"):
                return int(line.split()[1]) * 1024
    return 0
