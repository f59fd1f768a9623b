"""How fast webhooks are accepted: the relay beside a bare server that reads nothing, and one that only commits.

The three take turns. The relay's one channel hangs, so that delivering costs its intake as little as it can.
"""

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Final

import click

from tests.bench.alerts import webhook
from tests.bench.load import Load, load
from tests.bench.stage import Running, Stage, pagerduty, stage
from tests.bench.table import Row

CLIENTS: Final = 64
UNREAD: Final = "bare, unread"
COMMIT: Final = "bare, committed"
RELAY: Final = "relay"


async def intake(disk: Path, webhooks: int, rounds: int) -> list[Row]:
    """Runs and prints the benchmark. Raises BenchError where a webhook was not accepted."""
    click.echo(f"\nintake: {webhooks} webhooks of different groups from {CLIENTS} clients")
    runs: dict[str, list[Load]] = {UNREAD: [], COMMIT: [], RELAY: []}
    for number in range(1, rounds + 1):
        for name, loads in runs.items():
            async with stage(disk) as bench:
                loads.append(await _run(bench, name, webhooks))
            click.echo(
                f"  round {number}, {name:16}  {loads[-1].per_second:6.0f}/s  "
                f"p50 {loads[-1].percentile(50):6.1f} ms  p99 {loads[-1].percentile(99):6.1f} ms"
            )

    def compare(read: Callable[[Load], float], name: str) -> tuple[float, ...]:
        return tuple(read(ours) / read(theirs) for ours, theirs in zip(runs[RELAY], runs[name], strict=True))

    rows = [
        Row(
            f"{webhooks:,} webhooks: accepted in a second, of an application that only commits",
            compare(lambda load: load.per_second, COMMIT),
            at_least=0.5,
        ),
        Row("the same, of an application that answers unread", compare(lambda load: load.per_second, UNREAD)),
        Row("p99, of the application that only commits", compare(lambda load: load.percentile(99), COMMIT)),
        Row("webhooks that the relay accepted", tuple(load.per_second for load in runs[RELAY]), "a second"),
    ]
    for row in rows:
        click.echo(f"  {row.format()}")
    return rows


async def _run(bench: Stage, name: str, webhooks: int) -> Load:
    bodies = [webhook(number) for number in range(webhooks)]
    if name != RELAY:
        file = [str(bench.folder / "bare.db")] if name == COMMIT else []
        return await load(await bench.module("tests.bench.bare", *file), bodies, CLIENTS)
    hanging = await bench.module("tests.bench.sink")
    relay = await bench.relay({"pagerduty": pagerduty(f"{hanging.url}/hang")}, timeout="60s")
    try:
        return await load(relay, bodies, CLIENTS)
    finally:
        end(hanging)


def end(hanging: Running) -> None:
    """Stops a server that hangs, so that the relay's own stop need not wait for it."""
    os.kill(hanging.pid, signal.SIGTERM)
