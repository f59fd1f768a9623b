"""`python -m tests.bench`: the benchmarks. Each runs what it compares side by side, so that ratios outlive the machine.

With `--write`, docs/benchmarks.md has the numbers of each command that ran. Exits 1 where a program is missing or
something was not delivered, never for being slow.
"""

import asyncio
import sys
from collections.abc import Awaitable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import NoReturn

import click

from shared.http.server import StartError
from tests.bench.causes import causes
from tests.bench.claim import claims
from tests.bench.console import console
from tests.bench.faults import faults
from tests.bench.finished import finished
from tests.bench.hanging import hanging
from tests.bench.intake import intake
from tests.bench.job_queue import queue
from tests.bench.machine import OtherWork, describe_machine
from tests.bench.noise import noise
from tests.bench.probe import probe
from tests.bench.rotation import rotation
from tests.bench.stage import BenchError
from tests.bench.storm import storm
from tests.bench.storm_on_slack import run_slack_benchmark
from tests.bench.table import Result, Row, write_result
from tests.bench.targets import targets

ROUNDS = click.option("--rounds", default=3, show_default=True, help="Medians are of so many.")


@dataclass(frozen=True, slots=True)
class Bench:
    """How this run was asked for."""

    disk: Path
    machine: str
    writes: bool

    def run(self, command: str, benchmark: Awaitable[Sequence[Row]]) -> None:
        """Runs one command; exits where it fails."""

        async def run() -> Sequence[Row]:
            return await benchmark

        others = OtherWork()
        try:
            rows = asyncio.run(run())
        except (StartError, BenchError) as error:
            _end(error)
        result = Result(tuple(rows), datetime.now(UTC).date().isoformat(), self.machine, others.format())
        click.echo(f"  {result.load}")
        if self.writes:
            write_result(command, result, list(main.commands))


@click.group(chain=True, invoke_without_command=True)
@click.option(
    "--disk",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    default="/var/tmp",
    show_default=True,
    help="A folder on a real disk, for the databases.",
)
@click.option("--write", "writes", is_flag=True, help="Replace the rows of these commands in docs/benchmarks.md.")
@click.pass_context
def main(context: click.Context, disk: Path, *, writes: bool) -> None:
    r"""Measure the relay, the exporter and the rotator; without a command, everything.

    \b
    Examples:
      python -m tests.bench
      python -m tests.bench --write intake storm --rounds 5
    """
    try:
        machine = describe_machine(disk)
    except StartError as error:
        _end(error)
    for name, value in machine.items():
        click.echo(f"{name:13} {value}")
    context.obj = Bench(disk, ", ".join(machine.values()), writes)
    if context.invoked_subcommand is None:
        for command in main.commands.values():
            context.invoke(command)


@main.command("storm")
@ROUNDS
@click.option("--groups", default=5000, show_default=True, help="How many groups fire at once.")
@click.pass_obj
def _storm(bench: Bench, rounds: int, groups: int) -> None:
    """A storm of groups, by Alertmanager's own receivers and by the relay."""
    bench.run("storm", storm(bench.disk, groups, rounds))


@main.command("hanging")
@ROUNDS
@click.option("--webhooks", default=200, show_default=True, help="How many are posted.")
@click.pass_obj
def _hanging(bench: Bench, rounds: int, webhooks: int) -> None:
    """A Slack that never answers, beside healthy mail and PagerDuty."""
    bench.run("hanging", hanging(bench.disk, webhooks, rounds))


@main.command("intake")
@ROUNDS
@click.option("--webhooks", default=5000, show_default=True, help="How many are posted.")
@click.pass_obj
def _intake(bench: Bench, rounds: int, webhooks: int) -> None:
    """How fast webhooks are accepted."""
    bench.run("intake", intake(bench.disk, webhooks, rounds))


@main.command("queue")
@ROUNDS
@click.option("--groups", default=2500, show_default=True, help="How many are posted, each for two channels.")
@click.pass_obj
def _queue(bench: Bench, rounds: int, groups: int) -> None:
    """Deliveries beside the jobs of a job queue that do nothing, on the same PostgreSQL."""
    bench.run("queue", queue(bench.disk, groups, rounds))


@main.command("faults")
@click.option("--rounds", default=1, show_default=True, help="Of all five faults.")
@click.option("--seconds", default=10.0, show_default=True, help="In which a rate is measured.")
@click.option("--after", default=30.0, show_default=True, help="Seconds after a fault by which the rate is back.")
@click.pass_obj
def _faults(bench: Bench, rounds: int, seconds: float, after: float) -> None:
    """What five faults of the durable queue lose, and how fast it delivers after them."""
    bench.run("faults", faults(bench.disk, rounds, seconds, after))


@main.command("claim")
@ROUNDS
@click.option("--waiting", default=20_000, show_default=True, help="How many others are in the outbox.")
@click.pass_obj
def _claim(bench: Bench, rounds: int, waiting: int) -> None:
    """What a full outbox costs its workers."""
    bench.run("claim", claims(bench.disk, waiting, rounds))


@main.command("finished")
@ROUNDS
@click.option(
    "--count", "counts", default=(100_000, 1_000_000), show_default=True, multiple=True, help="Deliveries; repeatable."
)
@click.pass_obj
def _finished(bench: Bench, rounds: int, counts: tuple[int, ...]) -> None:
    """What finished deliveries cost: a claim, the intake, a start and the memory beside many of them."""
    bench.run("finished", finished(bench.disk, counts, rounds))


@main.command("console")
@ROUNDS
@click.option("--deliveries", default=100_000, show_default=True, help="How many are in the outbox.")
@click.pass_obj
def _console(bench: Bench, rounds: int, deliveries: int) -> None:
    """How soon each page is painted beside many deliveries, and what open pages cost the intake."""
    bench.run("console", console(bench.disk, deliveries, rounds))


@main.command("rotation")
@click.option("--keys", default=20_000, show_default=True, help="Data keys that are wrapped anew.")
@click.option("--latency", default=0.02, show_default=True, help="Seconds after which KMS answers.")
@click.pass_obj
def _rotation(bench: Bench, keys: int, latency: float) -> None:
    """A re-wrap of many data keys, and its verification."""
    bench.run("rotation", rotation(bench.disk, keys, latency))


@main.command("targets")
@click.option(
    "--count", "counts", default=(1, 100, 1000), show_default=True, multiple=True, help="Targets; repeatable."
)
@click.option("--interval", default=30.0, show_default=True, help="Seconds from one probe of a target to its next.")
@click.option("--intervals", default=2, show_default=True, help="How many are watched.")
@click.option("--scrapes", default=200, show_default=True, help="How many are timed, plain and compressed each.")
@click.pass_obj
def _targets(bench: Bench, counts: tuple[int, ...], interval: float, intervals: int, scrapes: int) -> None:
    """An exporter with few and with many targets: missed intervals, scrapes, memory, and a KMS that stalls."""
    bench.run("targets", targets(bench.disk, counts, interval, intervals, scrapes))


@main.command("probe")
@ROUNDS
@click.option("--round-trips", default=200, show_default=True, help="Of exporter and stub each, in a round.")
@click.pass_obj
def _probe(bench: Bench, rounds: int, round_trips: int) -> None:
    """A probe's latency beside a bare stub's, with and without hostile backends."""
    bench.run("probe", probe(bench.disk, round_trips, rounds))


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
    asyncio.run(causes())


@main.command("storm-slack")
@click.option("--groups", default=2000, show_default=True, help="How many incidents begin at once.")
@click.option("--window", default=300.0, show_default=True, help="Seconds to watch Alertmanager's own receiver.")
@click.pass_obj
def _run_slack_benchmark(bench: Bench, groups: int, window: float) -> None:
    """How soon each of many incidents is named on Slack at its real rate."""
    bench.run("storm-slack", run_slack_benchmark(bench.disk, groups, window))


def _end(error: Exception) -> NoReturn:
    click.echo(str(error), err=True)
    sys.exit(1)


if __name__ == "__main__":
    main(prog_name="python -m tests.bench")
