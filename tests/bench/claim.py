"""What a full outbox costs its workers: a claim, its receipt, and a look that finds nothing due, beside an empty one.

On SQLite on the disk, and on PostgreSQL as the tests run it, with `fsync=off`: there only the ratios tell something.
"""

import asyncio
import statistics
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple, TypeVar
from uuid import uuid4

import click

from services.relay.outbox.breaker import ChannelEffect, PauseLimits
from services.relay.outbox.claim import ClaimRequest, claim_due
from services.relay.outbox.receipt import AttemptOutcome, record_outcomes
from services.relay.outbox.store import Store, StoreUnavailableError, open_store
from services.relay.outbox.tables import DeliveryState
from shared.sql import database_url
from shared.sql.database_url import DatabaseUrl
from tests.bench.filled import CHANNEL, fill, put_off
from tests.bench.stage import BenchError, run_postgres, temporary
from tests.bench.table import Row

TIMES: Final = 100
_HOUR: Final = 3600.0
WANTED: Final = ClaimRequest(CHANNEL, limit=1, lease_owner="bench", lease_seconds=60.0, rate=None)
SENT: Final = AttemptOutcome(
    DeliveryState.DELIVERED,
    0.0,
    0.1,
    "ok",
    "",
    ChannelEffect.REACHED,
    receipt={"ts": "1"},
    maybe_sent=True,
    payload=b"{}",
)
PAUSES: Final = PauseLimits(1.0, 300.0)
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Others:
    """What lies in the outbox beside the deliveries that are claimed."""

    name: str
    number: int
    state: DeliveryState = DeliveryState.QUEUED
    due_in: float = 0.0


class Costs(NamedTuple):
    """Milliseconds."""

    claim_due: float
    receipt: float
    oldest_read: float
    """A claim where nothing is due."""


async def claims(disk: Path, waiting: int, rounds: int) -> list[Row]:
    """Runs and prints the benchmark.

    Raises:
        BenchError: a delivery that was due could not be claimed, or not in time.
        StartError: there is no PostgreSQL.
    """
    click.echo(f"\nclaim: one delivery beside {waiting} others, {TIMES} times in each round; milliseconds")
    with temporary(disk) as folder, run_postgres() as server:
        stores: dict[str, Callable[[], DatabaseUrl]] = {
            "SQLite": lambda: database_url.create_sqlite_url(folder / f"{uuid4().hex}.db"),
            "PostgreSQL": lambda: server.database(f"bench_{uuid4().hex}"),
        }
        return [await _compare(name, new, waiting, rounds) for name, new in stores.items()]


async def _compare(store: str, new: Callable[[], DatabaseUrl], waiting: int, rounds: int) -> Row:
    empty = Others("beside none", 0)
    cases = (empty, Others("due as well", waiting), Others("retrying later", waiting, DeliveryState.RETRYING, _HOUR))
    runs: dict[Others, list[Costs]] = {others: [] for others in cases}
    for _ in range(rounds):
        for others, costs in runs.items():
            async with open_store(await asyncio.to_thread(new), time.time) as outbox:
                try:
                    costs.append(await _costs(outbox, others))
                except StoreUnavailableError as error:
                    raise BenchError(f"{store}, {others.name}: not answered in time: {error}") from None
    medians = {others: Costs(*map(statistics.median, zip(*costs, strict=True))) for others, costs in runs.items()}
    for others, median in medians.items():
        line = (
            f"{name} {mine:6.2f} ({mine / alone:5.2f} times)"
            for name, mine, alone in zip(Costs._fields, median, medians[empty], strict=True)
        )
        click.echo(f"  {store:10}  {others.name:14}  {'  '.join(line)}")
    slowest = tuple(
        max(
            mine / alone
            for others in cases[1:]
            for mine, alone in zip(runs[others][each], runs[empty][each], strict=True)
        )
        for each in range(rounds)
    )
    return Row(
        f"{store}: the slowest of claim, receipt and empty claim beside {waiting:,} others, of beside none", slowest
    )


async def _costs(outbox: Store, others: Others) -> Costs:
    await claim_due(outbox, WANTED)  # a channel's first claim makes its breaker
    await fill(outbox, others.number, others.state, others.due_in)
    await fill(outbox, TIMES)
    claiming, receipts, oldest_reads = [], [], []
    for _ in range(TIMES):
        claimed, seconds = await _timed(claim_due(outbox, WANTED))
        claiming.append(seconds)
        if len(claimed.claims) != 1:
            raise BenchError("a delivery that is due was not claimed")
        _, seconds = await _timed(record_outcomes(outbox, claimed.claims[0], [SENT], PAUSES))
        receipts.append(seconds)
    await put_off(outbox, _HOUR)
    for _ in range(TIMES):
        nothing, seconds = await _timed(claim_due(outbox, WANTED))
        oldest_reads.append(seconds)
        if nothing.claims:
            raise BenchError("a delivery that is not due was claimed")
    return Costs(*(1000 * statistics.median(each) for each in (claiming, receipts, oldest_reads)))


async def _timed(work: Awaitable[T]) -> tuple[T, float]:
    started = time.perf_counter()
    result = await work
    return result, time.perf_counter() - started
