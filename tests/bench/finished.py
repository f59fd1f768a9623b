"""What finished deliveries cost: a claim, the intake, a start and the memory beside many of them, and beside none.

Each store is filled by statements of SQL, for accepting so many would take an hour. An incident that has ended has an
event, a delivery with its receipt, and an attempt.
"""

import asyncio
import os
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from hashlib import md5
from pathlib import Path
from typing import Any, Final
from uuid import uuid4

import click
from sqlalchemy import Index, create_engine, text

from services.relay.outbox.claim import claim_due
from services.relay.outbox.receipt import record_outcomes
from services.relay.outbox.store import open_store
from services.relay.outbox.tables import metadata
from shared.sql import database_url
from shared.sql.database_url import DatabaseUrl
from tests.bench.alerts import webhook
from tests.bench.claim import PAUSES, SENT, TIMES, WANTED
from tests.bench.filled import CHANNEL, fill
from tests.bench.intake import end
from tests.bench.load import load
from tests.bench.machine import resident_mb
from tests.bench.stage import BenchError, Running, pagerduty, run_postgres, stage, temporary
from tests.bench.table import Row

CLIENTS: Final = 16
WEBHOOKS: Final = 1500
_DAYS: Final = 20
_CHUNK: Final = 50_000
"""Rows in a transaction."""
_FINISHED: Final = (
    """INSERT INTO incidents (id, episode, is_open, latest_event_seq, first_event_seq, started_at, alertname, title)
       SELECT md5(CAST(n AS text)), 1, 0, n, n, :first_at + n * :step, 'KMSProbeFailing', 'ledger cannot encrypt'
       FROM numbers""",
    """INSERT INTO events (seq, id, incident_id, receiver, alertname, status, fingerprint, accepted_at, event, body)
       SELECT n, 'event-' || n, md5(CAST(n AS text)), 'bench', 'KMSProbeFailing', 'resolved', 'fingerprint-' || n,
              :first_at + n * :step, :event, :event
       FROM numbers""",
    """INSERT INTO deliveries (seq, id, event_seq, first_event_seq, incident_id, episode, channel, state, attempts,
                               accepted_at, oldest_accepted_at, due_at, finished_at, maybe_sent, receipt)
       SELECT n, 'delivery-' || n, n, n, md5(CAST(n AS text)), 1, :channel, 'delivered', 1,
              :first_at + n * :step, :first_at + n * :step, :first_at + n * :step,
              :first_at + n * :step + 0.3, 1, :receipt
       FROM numbers""",
    """INSERT INTO attempts (delivery_seq, number, started_at, seconds, reason, detail)
       SELECT n, 1, :first_at + n * :step + 0.1, 0.2, 'ok', 'HTTP 202 Event processed' FROM numbers""",
)
_NUMBERS: Final = {
    "sqlite": "WITH RECURSIVE numbers(n) AS (SELECT :first UNION ALL SELECT n + 1 FROM numbers WHERE n < :last)",
    "postgresql": "WITH numbers(n) AS (SELECT generate_series(CAST(:first AS bigint), CAST(:last AS bigint)))",
}
_AFTERWARDS: Final = {
    "sqlite": ("ANALYZE",),
    "postgresql": (
        *(
            f"SELECT setval(pg_get_serial_sequence('{table}', 'seq'), (SELECT max(seq) FROM {table}))"  # noqa: S608
            for table in ("events", "deliveries")
        ),
        "VACUUM ANALYZE",
        "CHECKPOINT",
    ),
}
"""What happens by itself where so many come one after the other: numbers go on, the planner has statistics, and no
vacuum of all is left to do."""
_RELAY_SEES_ALL: Final = {"max_deliveries": 100_000_000, "max_bytes": "1024GiB"}


@dataclass(frozen=True, slots=True)
class Costs:
    """Of one relay; each is worse when it is more."""

    claim: float
    """Milliseconds of a claim and its receipt, at the median."""
    intake: float
    """Seconds until all webhooks were accepted."""
    start: float
    """Seconds until it is ready."""
    memory: float
    """MB of its processes, after that."""


async def finished(disk: Path, counts: Sequence[int], rounds: int) -> list[Row]:
    """Runs and prints the benchmark. Raises BenchError where a delivery was not claimed, or a webhook not accepted."""
    click.echo(f"\nfinished: a relay beside so many finished deliveries; {WEBHOOKS} webhooks from {CLIENTS} clients")
    rows = []
    with run_postgres(disk) as server:
        stores: dict[str, Callable[[Path], DatabaseUrl]] = {
            "SQLite": lambda folder: database_url.create_sqlite_url(folder / f"{uuid4().hex}.db"),
            "PostgreSQL": lambda _folder: server.database(f"bench_{uuid4().hex}"),
        }
        for name, create in stores.items():
            costs = await _measure(disk, name, create, (0, *counts), rounds)
            for count in counts:
                for what, read in _READERS.items():
                    ratios = tuple(
                        read(beside) / read(alone) for beside, alone in zip(costs[count], costs[0], strict=True)
                    )
                    rows.append(
                        Row(f"{name}, {count:,} finished deliveries: {what}, of beside none", ratios, at_most=1.2)
                    )
    return rows


_READERS: Final[dict[str, Callable[[Costs], float]]] = {
    "claim and receipt": lambda costs: costs.claim,
    "time to accept webhooks": lambda costs: costs.intake,
    "start": lambda costs: costs.start,
    "memory": lambda costs: costs.memory,
}


async def _measure(
    disk: Path, store: str, create: Callable[[Path], DatabaseUrl], counts: Sequence[int], rounds: int
) -> dict[int, list[Costs]]:
    """The costs of each round by how many are finished; the databases, each filled once, take turns."""
    costs: dict[int, list[Costs]] = {count: [] for count in counts}
    with temporary(disk) as folder:
        databases = {count: await asyncio.to_thread(create, folder) for count in counts}
        for count, database in databases.items():
            async with open_store(database, time.time):
                pass  # it makes the tables
            if count:
                await asyncio.to_thread(_fill, database, count)
        for number in range(rounds):
            for count, database in databases.items():
                claim = await _measure_claims(database)
                one = await _measure_relay(disk, database, claim, number)
                costs[count].append(one)
                intake = f"intake {WEBHOOKS / one.intake:5.0f}/s"
                click.echo(
                    f"  {store:10}  {count:9,}  claim and receipt {one.claim:6.2f} ms  {intake}  "
                    f"start {one.start:5.2f} s  memory {one.memory:4.0f} MB"
                )
    return costs


def _fill(database: DatabaseUrl, count: int) -> None:
    encoded, step = webhook(0), _DAYS * 86400.0 / count
    values = {
        "first_at": time.time() - _DAYS * 86400.0,
        "step": step,
        "channel": CHANNEL,
        "event": encoded,
        "receipt": '{"channel": "C0SECURITY", "ts": "1700000000.000100"}',
    }
    engine = create_engine(database)
    kind = engine.dialect.name
    with engine.connect() as connection:
        if kind == "sqlite":
            driver: Any = connection.connection.driver_connection
            driver.create_function("md5", 1, lambda number: md5(number.encode(), usedforsecurity=False).hexdigest())
            for setting in ("cache_size = -400000", "journal_mode = OFF", "synchronous = OFF"):  # for the filling alone
                connection.execute(text(f"PRAGMA {setting}"))
        # Made once, of all that is there, most take less time. But those whose keys come in no order would have full
        # pages then, which each new key splits: they grow, as they do in a relay.
        indexes = [index for table in metadata.sorted_tables for index in table.indexes if not _is_random(index)]
        for index in indexes:
            index.drop(connection)
        for first in range(1, count + 1, _CHUNK):
            chunk = {"first": first, "last": min(first + _CHUNK - 1, count)}
            for statement in _FINISHED:
                table, _, rows = statement.partition("SELECT")
                sql = f"{table} {_NUMBERS[kind]} SELECT {rows}"
                used = {name: value for name, value in (values | chunk).items() if f":{name}" in sql}
                connection.execute(text(sql), used)
            connection.commit()
        for index in indexes:
            index.create(connection)
        connection.commit()
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        for statement in _AFTERWARDS[kind]:
            connection.execute(text(statement))
    engine.dispose()
    os.sync()  # else what the fill has written delays the first commits


def _is_random(index: Index) -> bool:
    return index.columns.keys()[0] == "incident_id"


async def _measure_claims(database: DatabaseUrl) -> float:
    """Milliseconds."""
    seconds = []
    async with open_store(database, time.time) as outbox:
        await claim_due(outbox, WANTED)
        await fill(outbox, TIMES)
        for _ in range(TIMES):
            began = time.perf_counter()
            claimed = await claim_due(outbox, WANTED)
            if len(claimed.claims) != 1:
                raise BenchError("a delivery that is due was not claimed")
            await record_outcomes(outbox, claimed.claims[0], [SENT], PAUSES)
            seconds.append(time.perf_counter() - began)
    return 1000 * statistics.median(seconds)


async def _measure_relay(disk: Path, database: DatabaseUrl, claim: float, number: int) -> Costs:
    """A relay whose one channel hangs, so that what it accepts waits."""
    async with stage(disk) as bench:
        hanging = await bench.module("tests.bench.sink")
        began = time.monotonic()
        relay: Running = await bench.relay(
            {"pagerduty": pagerduty(f"{hanging.url}/hang")},
            timeout="60s",
            database=database.render_as_string(hide_password=False),
            retention=_RELAY_SEES_ALL,
        )
        start = time.monotonic() - began
        try:
            first = (number + 1) * WEBHOOKS
            accepted = await load(relay, [webhook(first + each) for each in range(WEBHOOKS)], CLIENTS)
            return Costs(claim, accepted.seconds, start, resident_mb(relay.pid))
        finally:
            end(hanging)
