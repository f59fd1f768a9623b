"""An exporter with 1, 100 and 1,000 targets before an emulator: does it keep its interval, and what does a scrape cost?

When each probe ended is read from `kms_probe_last_success_timestamp_seconds`, often enough to see every one of them.
Then KMS stalls, and the scrapes go on. They take turns with those of a bare server that gives the same bytes.
"""

import asyncio
import re
import sys
import time
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Final

import aiohttp
import click

from services.exporter.scheduler import JITTER_FRACTION
from tests.bench.load import Load
from tests.bench.machine import cpu_seconds, peak_mb
from tests.bench.stage import BenchError, Running, Stage, free_port, stage
from tests.bench.table import Row

TIMEOUT: Final = 5.0
AIM: Final = 50.0
"""Milliseconds of a scrape's p99 while KMS stalls."""
ENCODINGS: Final = ("identity", "gzip")
PAUSE: Final = 0.05
"""Seconds between two scrapes."""
_BEHIND: Final = 15.0
"""Seconds that what `/metrics` says may be behind, on a busy machine."""
_KEY: Final = "projects/bench/locations/global/keyRings/bench/cryptoKeys/key-{:04d}"
_ENDED: Final = re.compile(rb'^kms_probe_last_success_timestamp_seconds{.*?target="([^"]+)"} (\S+)$', re.MULTILINE)
_FAILED: Final = re.compile(rb"^kms_probe_success{.*} 0\.0$", re.MULTILINE)

EXPORTER: Final = "exporter"
BARE: Final = "bare"

Scrapes = Mapping[tuple[str, str], Load]
"""By who answers, and the encoding."""


@dataclass(frozen=True, slots=True)
class Run:
    """One exporter."""

    probes: int
    missed: int
    longest: float
    """Seconds from the end of a probe to the end of the next of the same target, at most."""
    cpu: float
    """Seconds of a core in a minute, while nobody scrapes but three times in an interval."""
    memory_mb: float
    size_mb: float
    """Of what a scrape gets."""
    healthy: Scrapes
    stalled: Scrapes


async def targets(disk: Path, counts: Sequence[int], interval: float, intervals: int, scrapes: int) -> list[Row]:
    """Runs and prints the benchmark. Raises BenchError where a probe is missing."""
    click.echo(f"\ntargets: probed each {interval:g} s, over {intervals} intervals; {scrapes} scrapes of each kind")
    runs = {}
    for count in counts:
        async with stage(disk) as bench:
            runs[count] = await _run(bench, count, interval, intervals, scrapes)
        click.echo(f"  {count:4} targets  {_format_result(runs[count])}")
    if missed := sum(run.missed for run in runs.values()):
        raise BenchError(f"{missed} probes did not come in their interval")
    rows = []
    for count, run in runs.items():
        rows.append(
            Row(f"{count:,} target{'s' if count > 1 else ''}: the exporter's memory at most", (run.memory_mb,), "MB")
        )
        rows.append(Row("CPU in a minute", (run.cpu,), "s"))
        for encoding in ENCODINGS:
            p99 = run.stalled[EXPORTER, encoding].percentile(99)
            rows.append(Row(f"p99 of a scrape, {encoding}, while KMS stalls", (p99,), "ms", at_most=AIM))
    return rows


async def _run(bench: Stage, count: int, interval: float, intervals: int, scrapes: int) -> Run:
    grpc = f"127.0.0.1:{free_port()}"
    emulator = await _emulator(bench, grpc, count)
    exporter = await _exporter(bench, grpc, count, interval)
    # As they come: to unpack what was compressed is the scraper's own cost.
    async with aiohttp.ClientSession(auto_decompress=False) as http:
        ended: dict[str, set[float]] = defaultdict(set)

        async def all_began() -> bool:
            await _read(http, exporter, ended)
            return len(ended) == count

        await bench.until("the first probe of every target", 2 * interval + 60, all_began)
        began, used = time.monotonic(), cpu_seconds(exporter.pid)
        while (seconds := time.monotonic() - began) < (intervals + JITTER_FRACTION) * interval + _BEHIND:
            await asyncio.sleep(interval / 3)
            body = await _read(http, exporter, ended)
        cpu = (cpu_seconds(exporter.pid) - used) / seconds * 60
        (bench.folder / "body").write_bytes(body)
        servers = {EXPORTER: exporter, BARE: await bench.module("tests.bench.same", str(bench.folder / "body"))}
        healthy = await _scrapes(http, servers, scrapes, 0)
        async with http.post(f"{emulator.url}/faults", json={"kind": "stall"}) as answer:
            answer.raise_for_status()

        async def failing() -> bool:
            return bool(_FAILED.search((await _scrape(http, exporter, "identity"))[1]))

        await bench.until("a probe that fails because KMS stalls", interval + 2 * TIMEOUT + _BEHIND, failing)
        stalled = await _scrapes(http, servers, scrapes, interval)
    gaps = [later - earlier for ends in ended.values() for earlier, later in pairwise(sorted(ends))]
    return Run(
        probes=sum(map(len, ended.values())),
        missed=sum(missed(ends, interval, intervals) for ends in ended.values()),
        longest=max(gaps, default=0.0),
        cpu=cpu,
        memory_mb=peak_mb(exporter.pid),
        size_mb=len(body) / 1e6,
        healthy=healthy,
        stalled=stalled,
    )


def missed(ends: Collection[float], interval: float, intervals: int) -> int:
    """How many probes of a target are missing between those that ended then, or after the last of them.

    Args:
        ends: seconds, in any order.
        interval: seconds from one to the next.
        intervals: how many there had time to be, at least.
    """
    gaps = [later - earlier for earlier, later in pairwise(sorted(ends))]
    between = sum(round(gap / interval) - 1 for gap in gaps if gap > 1.5 * interval)
    return max(between, intervals + 1 - len(ends))


async def _emulator(bench: Stage, grpc: str, keys: int) -> Running:
    faults = f"127.0.0.1:{free_port()}"
    names = (argument for n in range(keys) for argument in ("--key", _KEY.format(n)))
    command = (sys.executable, "-m", "ops.kms_emulator", "--listen", grpc, "--faults", faults, *names)
    return await bench.start("emulator", command, faults)


async def _exporter(bench: Stage, grpc: str, count: int, interval: float) -> Running:
    address = f"127.0.0.1:{free_port()}"
    configuration = {
        "listen": address,
        "service": "bench",
        "probe": {"interval": f"{interval:g}s", "timeout": f"{min(TIMEOUT, interval):g}s"},
        "targets": [
            {"name": f"key-{n:04d}", "key": _KEY.format(n), "endpoint": grpc, "insecure": True} for n in range(count)
        ],
    }
    file = bench.write("exporter.yml", configuration)
    return await bench.start("exporter", (sys.executable, "-m", "services.exporter", "--config", file), address)


async def _read(http: aiohttp.ClientSession, exporter: Running, ended: dict[str, set[float]]) -> bytes:
    """Adds when each target's last probe ended; gives the whole."""
    _, body = await _scrape(http, exporter, "identity")
    for target, at in _ENDED.findall(body):
        ended[target.decode()].add(float(at))
    return body


async def _scrapes(http: aiohttp.ClientSession, servers: Mapping[str, Running], number: int, seconds: float) -> Scrapes:
    """So many of each kind, in turns, and for so many `seconds` at least."""
    durations: dict[tuple[str, str], list[float]] = {(who, encoding): [] for who in servers for encoding in ENCODINGS}
    began = time.monotonic()
    while len(durations[EXPORTER, "identity"]) < number or time.monotonic() < began + seconds:
        for (who, encoding), each in durations.items():
            each.append((await _scrape(http, servers[who], encoding))[0])
            await asyncio.sleep(PAUSE)
    return {kind: Load(time.monotonic() - began, sorted(each)) for kind, each in durations.items()}


async def _scrape(http: aiohttp.ClientSession, server: Running, encoding: str) -> tuple[float, bytes]:
    """Seconds, and what came."""
    began = time.perf_counter()
    try:
        async with http.get(f"{server.url}/metrics", headers={"Accept-Encoding": encoding}) as answer:
            answer.raise_for_status()
            body = await answer.read()
    except (aiohttp.ClientError, TimeoutError) as error:
        raise BenchError(f"{server.url}/metrics did not answer: {error!r}") from None
    return time.perf_counter() - began, body


def _format_result(run: Run) -> str:
    return (
        f"{run.missed} of {run.probes} probes missed, at most {run.longest:.1f} s apart  "
        f"CPU {run.cpu:.1f} s a minute  peak {run.memory_mb:.0f} MB  {run.size_mb:.2f} MB a scrape\n"
        f"      scrape, KMS well    {_times(run.healthy)}\n"
        f"      scrape, KMS stalls  {_times(run.stalled)}"
    )


def _times(scrapes: Scrapes) -> str:
    def format_load(encoding: str) -> str:
        load = scrapes[EXPORTER, encoding]
        ratio = load.percentile(99) / scrapes[BARE, encoding].percentile(99)
        times = f"p50 {load.percentile(50):5.1f} ms  p99 {load.percentile(99):5.1f} ms"
        return f"{encoding} {times} ({ratio:.1f} of the bare server's)"

    return "   ".join(map(format_load, ENCODINGS))
