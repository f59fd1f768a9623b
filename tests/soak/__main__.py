"""`python -m tests.soak`: a mixed day of alerts and faults against everything, compressed, and a ledger at its end.

Exits 1 with the lines of the ledger that do not hold. The folder with logs, settings and outbox stays then.
"""

import asyncio
import logging
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import click

from shared.http.server import StartError
from shared.sql import database_url
from shared.sql.database_url import DatabaseUrl
from tests.bench.machine import OtherWork, describe_machine
from tests.bench.stage import run_postgres
from tests.faults.memory_limited_process import memory_limit
from tests.faults.scenario import meanwhile
from tests.soak import ledger, plot
from tests.soak.day import Driver
from tests.soak.ledger import Line
from tests.soak.plan import Step, build_plan
from tests.soak.samples import Held, Samples, count_least, count_most, list_grown, sample
from tests.soak.stage import SERVERS, run_stage

DISK = Path("/var/tmp")
"""A folder that is not kept in memory, as in production."""
HELD_SECONDS = 90.0
"""After which a server must hold no more than at the start: what is idle may be kept for a minute."""
WARM_SECONDS = 60.0
"""After the first storm, in which caches and pools fill, before memory has to be flat."""


@click.command()
@click.option("--minutes", default=20.0, show_default=True, type=click.FloatRange(0.5), help="How long the day is.")
@click.option("--seed", type=int, help="Of everything random: the one that an earlier run printed repeats it.")
@click.option("--postgres", is_flag=True, help="The outbox on a PostgreSQL, without steps of clock and disk.")
@click.option("--plot", "picture", type=click.Path(path_type=Path), help="An SVG of the day.")
def main(minutes: float, seed: int | None, postgres: bool, picture: Path | None) -> None:
    """Play a day, and print its ledger."""
    seed = random.SystemRandom().randrange(1_000_000) if seed is None else seed
    folder = Path(tempfile.mkdtemp(prefix="keypulse-soak-", dir=DISK))
    try:
        with _database(folder, postgres) as database:
            plan = build_plan(seed, minutes * 60, sqlite=not postgres)
            lines = asyncio.run(_run(folder, database, plan, minutes * 60, seed, picture))
    except* StartError as errors:
        click.echo(str(errors.exceptions[0]), err=True)
        sys.exit(1)
    broken = [line for line in lines if not line.holds]
    if broken:
        click.echo("\n".join(["", "the ledger does not hold:", *map(str, broken)]), err=True)
        sys.exit(1)
    shutil.rmtree(folder)
    click.echo("the ledger holds")


@contextmanager
def _database(folder: Path, postgres: bool) -> Iterator[DatabaseUrl]:
    if not postgres:
        yield database_url.create_sqlite_url(folder / "outbox/relay.db")
        return
    with run_postgres(DISK) as server:
        yield server.database("soak")


async def _run(
    folder: Path, database: DatabaseUrl, plan: Sequence[Step], seconds: float, seed: int, picture: Path | None
) -> list[Line]:
    """Plays the plan, prints the ledger and draws the picture. Raises StartError."""
    click.echo("\n".join([", ".join(describe_machine(folder).values()), f"seed {seed}", *map(str, plan)]))
    click.echo(f"logs, settings and outbox are in {folder} until the ledger holds")
    logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)  # a stand-in that loses an answer is no error
    samples, others = Samples(), OtherWork()
    async with run_stage(folder, database) as stage:
        click.echo(
            f"the chart's memory limits are held by {'the kernel' if stage.is_limited_by_kernel else 'the ledger'}"
        )
        driver = Driver(stage, seed, click.echo)
        async with meanwhile(sample(stage, samples)):
            await driver.warm_up()
            before = {server: await count_most(stage, server) for server in SERVERS}
            click.echo("\nthe day begins")
            began = time.monotonic()
            await driver.play(plan, seconds)
            ended = time.monotonic()
            await driver.settle()
            if dead := stage.list_ended_alone():
                raise StartError("; ".join(dead))
            held = {server: await count_least(stage, server, before[server], HELD_SECONDS) for server in SERVERS}
            lines = await _build_ledger(driver, before, held)
    storms = sorted(each.ended for each in driver.happened if each.what == "storm")
    span = (storms[0] + WARM_SECONDS if storms else ended, ended)
    for server in SERVERS:
        limit, life = memory_limit(server) / 2**20, samples.find_longest_life(server, span)
        lines.append(ledger.check_memory(server, limit, samples.memory[server], life, seconds))
    click.echo("\n".join(["", others.format(), "ledger", *map(str, lines)]))
    if picture:
        plot.draw(f"make soak: {seconds / 60:g} minutes, seed {seed}", picture, (began, ended), driver, samples)
    return lines


async def _build_ledger(driver: Driver, before: dict[str, Held], held: dict[str, Held]) -> list[Line]:
    stage, received = driver.stage, driver.stage.received
    received.read(stage.providers)
    outbox = await asyncio.to_thread(ledger.read_outbox, stage.database)
    critical = {name: all_ for name, all_ in stage.day.episodes.items() if stage.day.severities[name] == "critical"}
    failed, unreadable = sum(code != 0 for code in stage.codes), await stage.count_unreadable()
    traces = [server for server in SERVERS if '"trace"' in (stage.folder / f"{server}.log").read_text()]
    return [
        ledger.check_intake(stage.gate.accepted, outbox, stage.gate.refusals),
        *ledger.check_channels(outbox),
        ledger.check_promises(outbox),
        ledger.check_receipts(outbox, received.keys, received.forgotten),
        *ledger.check_pages(critical, received.pages, outbox, driver.happened),
        ledger.check_refusals(received.pages, driver.happened),
        ledger.check_disk(stage.gate.refusals, driver.happened),
        ledger.check_proofs(await stage.read_proofs(), [*outbox.unproven, *received.direct], time.time()),
        Line(failed == 0, f"rotations: {len(stage.codes)} commands, {failed} of them failed"),
        Line(
            bool(stage.records) and not unreadable,
            f"records: {len(stage.records)} written, {unreadable} of them not readable",
        ),
        Line(not traces, f"logs: {len(traces)} servers met what they did not expect: {', '.join(traces) or 'none'}"),
        *(_check_held(server, before[server], held[server]) for server in SERVERS),
    ]


def _check_held(server: str, before: Held, after: Held) -> Line:
    grown = list_grown(before, after)
    numbers = ", ".join(f"{before[what].total()} → {after[what].total()} {what}" for what in before)
    return Line(not grown, "; ".join([f"{server}: {numbers}", *grown]))


if __name__ == "__main__":
    main(prog_name="python -m tests.soak")
