"""The relay beside procrastinate, a job queue on PostgreSQL: both on the same server, which flushes each commit.

The relay takes webhooks from many clients and posts each to two providers. procrastinate gets a job for each of these
deliveries, from as many clients and each in a commit of its own, and its jobs do nothing. They take turns, each with a
new database. Time runs from the first webhook or job until all are done.
"""

import asyncio
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Final
from uuid import uuid4

import click

from shared.sql.database_url import DatabaseUrl
from tests.bench.alerts import webhook
from tests.bench.load import load
from tests.bench.stage import BenchError, pagerduty, run_postgres, slack, stage
from tests.bench.table import Row
from tests.tracked_files import ROOT

CLIENTS: Final = 64
PYTHON: Final = ROOT / ".cache/bench/bin/python"
"""It has procrastinate, which nothing else needs; `make bench` installs it."""
_TIMEOUT: Final = 300.0


async def queue(disk: Path, groups: int, rounds: int) -> list[Row]:
    """Runs and prints the benchmark. Raises BenchError where something is missing or was not delivered."""
    if not PYTHON.exists():
        raise BenchError("procrastinate is not installed; run `make .cache/bench/installed`")
    jobs = 2 * groups
    click.echo(f"\nqueue: {jobs} deliveries by the relay, {jobs} jobs by procrastinate, on a PostgreSQL with fsync")
    delivered: list[float] = []
    done: list[Mapping[str, float]] = []
    with run_postgres(disk) as server:
        for number in range(1, rounds + 1):
            databases = [await asyncio.to_thread(server.database, f"bench_{uuid4().hex}") for _ in range(2)]
            delivered.append(await _deliver(disk, databases[0], groups))
            done.append(await asyncio.to_thread(_run_jobs, databases[1], jobs))
            rates = "  ".join(f"procrastinate, {what}, {rate:.0f}" for what, rate in done[-1].items())
            click.echo(f"  round {number}, a second: relay {delivered[-1]:.0f}  {rates}")
            for each in databases:
                await asyncio.to_thread(server.drop, each)
    best = [max(each.values()) for each in done]
    ratios = tuple(ours / theirs for ours, theirs in zip(delivered, best, strict=True))
    return [
        Row(f"{jobs:,} deliveries in a second, of procrastinate's jobs that do nothing", ratios, at_least=4),
        Row("deliveries by the relay", tuple(delivered), "a second"),
        *(Row(f"jobs by procrastinate, {what}", tuple(each[what] for each in done), "a second") for what in done[0]),
    ]


async def _deliver(disk: Path, database: DatabaseUrl, groups: int) -> float:
    """Deliveries in a second."""
    async with stage(disk) as bench:
        sink = await bench.module("tests.bench.sink")
        channels = {"slack": slack(sink.url), "pagerduty": pagerduty(sink.url)}
        relay = await bench.relay(channels, database=database.render_as_string(hide_password=False))
        bodies = [webhook(number) for number in range(groups)]
        began = asyncio.get_running_loop().time()  # `time.monotonic`, which the sink tells, too
        await load(relay, bodies, CLIENTS)

        async def complete() -> bool:
            return all(each["groups"] == groups for each in (await bench.get(f"{sink.url}/")).values())

        await bench.until("every group to be delivered", _TIMEOUT, complete)
        found = await bench.get(f"{sink.url}/")
        seconds: float = max(each["last"] for each in found.values()) - began
        return 2 * groups / seconds


def _run_jobs(database: DatabaseUrl, jobs: int) -> dict[str, float]:
    """Jobs in a second, with one worker process and with two."""
    where = f"host={database.query['host']} user={database.username} dbname={database.database}"
    rates = {}
    for workers in (1, 2):
        command = [str(PYTHON), "tests/bench/procrastinate_jobs.py", where, str(jobs), str(CLIENTS), str(workers)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT, check=False, cwd=ROOT)
        if done.returncode:
            raise BenchError(f"procrastinate failed: {done.stderr[-2000:]}")
        rates[f"{workers} worker process{'es' if workers > 1 else ''}"] = jobs / float(done.stdout)
    return rates
