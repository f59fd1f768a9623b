"""What each server holds: memory each second, and tasks, threads, connections and descriptors; and what waits."""

import asyncio
import os
import re
import signal
import statistics
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from itertools import combinations, groupby
from pathlib import Path
from typing import Final, NamedTuple

from ops.demo.processes import Ports
from tests.faults.memory_limited_process import list_tree, read_private_bytes
from tests.soak.stage import SERVERS, Stage

_WAITING: Final = re.compile(r'^relay_outbox_deliveries\{.*"(?:queued|retrying|sending)".*\} (\S+)$', re.MULTILINE)
_PSS: Final = re.compile(r"^Pss:\s+(\d+) kB$", re.MULTILINE)
_SLOPE_POINTS: Final = 200


class Memory(NamedTuple):
    """Of a server and its children."""

    at: float
    """Seconds by the monotonic clock."""
    pid: int
    mb: float
    """Pss."""
    private_mb: float
    """What is its own, without the process that draws charts, which comes and goes as there is something to draw."""


@dataclass
class Samples:
    memory: dict[str, list[Memory]] = field(default_factory=lambda: {server: [] for server in SERVERS})
    waiting: list[tuple[float, float]] = field(default_factory=list)
    """Seconds by the monotonic clock, and how many deliveries are not finished."""

    def find_longest_life(self, server: str, span: tuple[float, float]) -> Sequence[Memory]:
        """The samples between two times of the process that lived longest then."""
        found = [each for each in self.memory[server] if span[0] <= each.at <= span[1]]
        lives = [list(life) for _, life in groupby(found, key=lambda each: each.pid)]
        return max(lives, key=len, default=[])


def measure_slope(life: Sequence[Memory]) -> float:
    """MB an hour: the median of the slopes between any two samples (Theil and Sen), which no peak bends."""
    pairs = combinations(life[:: max(len(life) // _SLOPE_POINTS, 1)], 2)
    slopes = [(later.private_mb - earlier.private_mb) / (later.at - earlier.at) for earlier, later in pairs]
    return statistics.median(slopes) * 3600 if slopes else 0.0


async def sample(stage: Stage, samples: Samples) -> None:
    """Each second, until cancelled; memory also goes into `memory.csv`."""
    while True:
        now = time.monotonic()
        for server in SERVERS:
            with suppress(OSError):  # it is just being killed
                if (found := await asyncio.to_thread(_read_memory, now, stage.pids[server])).mb:
                    samples.memory[server].append(found)
                    _keep(stage.folder / "memory.csv", server, *found)
        if text := await stage.stack.get_text("relay", "/metrics"):
            samples.waiting.append((now, sum(float(number) for number in _WAITING.findall(text))))
        stage.received.read(stage.providers)
        await asyncio.sleep(max(now + 1 - time.monotonic(), 0.0))


def _keep(file: Path, *values: object) -> None:
    with file.open("a", encoding="utf-8") as lines:
        print(*values, sep=",", file=lines)


def _read_memory(now: float, pid: int) -> Memory:
    pids, drawing = list_tree(pid), _find_drawing(pid)
    rollups = [Path(f"/proc/{each}/smaps_rollup").read_text() for each in pids]
    private = [read_private_bytes(each) for each in pids if each not in drawing]
    pss = sum(int(kb) for text in rollups for kb in _PSS.findall(text)) / 1024
    return Memory(now, pid, pss, sum(private) / 1024**2)


def _find_drawing(pid: int) -> list[int]:
    """Also one that has ended: its relay keeps the connection until it draws again."""
    commands = {each: Path(f"/proc/{each}/cmdline").read_bytes() for each in list_tree(pid)}
    return [each for each, command in commands.items() if b"delivery.drawing" in command or not command]


Held = Mapping[str, Counter[str]]
"""Tasks of a server, and threads, connections and descriptors of it and its children, each counted by its name.

Without the threads of asyncio's own pool and of gRPC's (`event_engine`), which start as they are needed, up to a bound.
"""


async def count_held(stage: Stage, server: str) -> Held:
    file = stage.folder / f"{server}.tasks"
    file.unlink(missing_ok=True)
    os.kill(stage.pids[server], signal.SIGUSR2)
    async with asyncio.timeout(10):
        while not file.exists() or "\n\n" not in file.read_text():  # noqa: ASYNC110 - another program's file
            await asyncio.sleep(0.05)
    tasks, _, pool = file.read_text().partition("\n\n")
    held = _read_held(tasks.splitlines(), stage.pids[server], _name_sockets(stage.ports))
    held["threads"].subtract({"of asyncio's own pool": int(pool)})
    return held


async def count_most(stage: Stage, server: str) -> Held:
    """The most of each in ten quiet seconds: some connections come and go."""
    most = await count_held(stage, server)
    for _ in range(10):
        await asyncio.sleep(1)
        now = await count_held(stage, server)
        most = {what: max(most[what], now[what], key=Counter.total) for what in most}
    return most


async def count_least(stage: Stage, server: str, before: Held, seconds: float) -> Held:
    """The least of each, once it is no more than before, or when the time in seconds is over."""
    least, deadline = await count_held(stage, server), time.monotonic() + seconds
    while list_grown(before, least) and time.monotonic() < deadline:
        await asyncio.sleep(2)
        now = await count_held(stage, server)
        least = {what: min(least[what], now[what], key=Counter.total) for what in least}
    return least


def _read_held(tasks: Sequence[str], server: int, sockets: Mapping[str, str]) -> Held:
    drawing = _find_drawing(server)
    held = {what: Counter[str]() for what in ("tasks", "threads", "connections", "descriptors")}
    held["tasks"].update(tasks)
    for pid in set(list_tree(server)).difference(drawing):
        process = Path(f"/proc/{pid}")
        names = [(thread / "comm").read_text().strip() for thread in (process / "task").iterdir()]
        held["threads"].update(name for name in names if name != "event_engine")
        for descriptor in (process / "fd").iterdir():
            with suppress(OSError):  # it was closed meanwhile
                target = str(descriptor.readlink())
                kind = "connections" if target.startswith("socket:") else "descriptors"
                name = sockets.get(target, "a socket pair") if kind == "connections" else target.partition(":[")[0]
                held[kind][name] += 1
    held["connections"]["a socket pair"] -= len(drawing)
    return held


def _name_sockets(ports: Ports) -> dict[str, str]:
    """The part at the other end, or the own one of who was asked, by `socket:[INODE]`."""
    parts = {f"{port:04X}": part for part, port in asdict(ports).items()}
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    ends = {f"socket:[{row[9]}]": (row[2].rpartition(":")[2], row[1].rpartition(":")[2]) for row in rows}
    return {inode: parts.get(far) or f"asked as {parts.get(near, 'of no part')}" for inode, (far, near) in ends.items()}


def list_grown(before: Held, after: Held) -> list[str]:
    """What there is more of, with the names of it."""
    return [
        f"{what}: {dict(after[what] - before[what])}" for what in after if after[what].total() > before[what].total()
    ]
