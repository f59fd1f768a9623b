"""`python -m tests.bench`: the benchmarks. Each runs what it compares side by side, so that ratios outlive the machine.

Exits 1 where a program is missing or something was not delivered, never for being slow.
"""

import asyncio
import sys
from collections.abc import Awaitable
from pathlib import Path

import click

from shared.http.server import StartError
from tests.bench.causes import causes
from tests.bench.claim import claims
from tests.bench.console import console
from tests.bench.hanging import hanging
from tests.bench.intake import intake
from tests.bench.machine import described
from tests.bench.noise import noise
from tests.bench.rotation import rotation
from tests.bench.stage import BenchError
from tests.bench.storm import storm
from tests.bench.storm_on_slack import run_slack_benchmark
from tests.bench.targets import targets

ROUNDS = click.option("--rounds", default=3, show_default=True, help="Medians are of so many.")


@click.group(invoke_without_command=True)
@click.option(
    "--disk",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    default="/var/tmp",
    show_default=True,
    help="A folder on a real disk, for the databases.",
)
@click.pass_context
def main(context: click.Context, disk: Path) -> None:
    r"""Measure the relay, the exporter and the rotator; without a command, everything.

    \b
    Examples:
      python -m tests.bench
      python -m tests.bench storm --rounds 1 --groups 1000
    """
    context.obj = disk
    try:
        click.echo("\n".join(described(disk)))
    except StartError as error:
        _end(error)
    if context.invoked_subcommand is None:
        for command in main.commands.values():
            context.invoke(command)


@main.command("storm")
@ROUNDS
@click.option("--groups", default=5000, show_default=True, help="How many groups fire at once.")
@click.pass_obj
def _storm(disk: Path, rounds: int, groups: int) -> None:
    """A storm of groups, by Alertmanager's own receivers and by the relay."""
    _run(storm(disk, groups, rounds))


@main.command("hanging")
@ROUNDS
@click.option("--webhooks", default=200, show_default=True, help="How many are posted.")
@click.pass_obj
def _hanging(disk: Path, rounds: int, webhooks: int) -> None:
    """A Slack that never answers, beside healthy mail and PagerDuty."""
    _run(hanging(disk, webhooks, rounds))


@main.command("intake")
@ROUNDS
@click.option("--webhooks", default=5000, show_default=True, help="How many are posted.")
@click.pass_obj
def _intake(disk: Path, rounds: int, webhooks: int) -> None:
    """How fast webhooks are accepted."""
    _run(intake(disk, webhooks, rounds))


@main.command("claim")
@ROUNDS
@click.option("--waiting", default=20_000, show_default=True, help="How many others are in the outbox.")
@click.pass_obj
def _claim(disk: Path, rounds: int, waiting: int) -> None:
    """What a full outbox costs its workers."""
    _run(claims(disk, waiting, rounds))


@main.command("console")
@ROUNDS
@click.option("--deliveries", default=100_000, show_default=True, help="How many are in the outbox.")
@click.pass_obj
def _console(disk: Path, rounds: int, deliveries: int) -> None:
    """How soon each page is painted beside many deliveries, and what open pages cost the intake."""
    _run(console(disk, deliveries, rounds))


@main.command("rotation")
@click.option("--keys", default=20_000, show_default=True, help="Data keys that are wrapped anew.")
@click.option("--latency", default=0.02, show_default=True, help="Seconds after which KMS answers.")
@click.pass_obj
def _rotation(disk: Path, keys: int, latency: float) -> None:
    """A re-wrap of many data keys, and its verification."""
    _run(rotation(disk, keys, latency))


@main.command("targets")
@click.option(
    "--count", "counts", default=(1, 100, 1000), show_default=True, multiple=True, help="Targets; repeatable."
)
@click.option("--interval", default=30.0, show_default=True, help="Seconds from one probe of a target to its next.")
@click.option("--intervals", default=2, show_default=True, help="How many are watched.")
@click.option("--scrapes", default=200, show_default=True, help="How many are timed, plain and compressed each.")
@click.pass_obj
def _targets(disk: Path, counts: tuple[int, ...], interval: float, intervals: int, scrapes: int) -> None:
    """An exporter with few and with many targets: missed intervals, scrapes, memory, and a KMS that stalls."""
    _run(targets(disk, counts, interval, intervals, scrapes))


@main.command("noise")
@click.option(
    "--half-hours", default=100, show_default=True, type=click.IntRange(10), help="Of noise; ten are one run."
)
@click.option("--runs", default=5, show_default=True, help="Of each kind of outage, with one for each key.")
def _noise(half_hours: int, runs: int) -> None:
    """How soon an outage is known, and how many alerts single failures raise; on a clock that jumps."""
    try:
        noise(half_hours, runs)
    except BenchError as error:
        _end(error)


@main.command("causes")
def _causes() -> None:
    """What the exporter says of each injected failure: the table of docs/benchmarks.md."""
    _run(causes())


@main.command("storm-slack")
@click.option("--groups", default=2000, show_default=True, help="How many incidents begin at once.")
@click.option("--window", default=300.0, show_default=True, help="Seconds to watch Alertmanager's own receiver.")
@click.pass_obj
def _run_slack_benchmark(disk: Path, groups: int, window: float) -> None:
    """How soon each of many incidents is named on Slack at its real rate."""
    _run(run_slack_benchmark(disk, groups, window))


def _run(benchmark: Awaitable[None]) -> None:
    async def run() -> None:
        await benchmark

    try:
        asyncio.run(run())
    except (StartError, BenchError) as error:
        _end(error)


def _end(error: Exception) -> None:
    click.echo(str(error), err=True)
    sys.exit(1)


if __name__ == "__main__":
    main(prog_name="python -m tests.bench")
