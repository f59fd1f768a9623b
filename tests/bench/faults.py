"""Five faults of a durable queue: what two replicas on one PostgreSQL lose, and how fast they deliver afterwards.

PostgreSQL flushes each commit. Clients post as fast as they are answered, and as Alertmanager does: what is answered
503, or not at all, is posted again, to the other replica. Each fault has fresh programs and a fresh database. The rate
is what reaches the provider in a second: in the 10 s before the fault, and between 20 s and 30 s after its end.
"""

import asyncio
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final
from uuid import uuid4

import aiohttp
import click
import psycopg
from psycopg.conninfo import make_conninfo

from shared.sql.database_url import DatabaseUrl
from tests.bench.alerts import webhook
from tests.bench.stage import TOKEN, BenchError, Running, Stage, pagerduty, run_postgres, stage
from tests.bench.table import Row
from tests.postgres import SUPERUSER, Postgres

CLIENTS: Final = 16
BACKLOG: Final = 300
"""Webhooks that are accepted and not delivered, at most; the clients wait then."""
USER: Final = "keypulse"
"""The relays' and everybody's: PostgreSQL keeps a few connections for its superuser alone."""
CONNECTIONS: Final = 40
_SECONDS: Final = 10.0
_AFTER: Final = 30.0
_FAULT_SECONDS: Final = 5.0
_KILLS: Final = 6
_POLL_SECONDS: Final = 0.2
_TIMEOUT: Final = 120.0


@dataclass
class Cluster:
    """Two replicas and their PostgreSQL."""

    bench: Stage
    server: Postgres
    database: DatabaseUrl
    relays: list[Running]

    async def kill(self, number: int) -> None:
        """SIGKILL to a replica."""
        os.kill(self.relays[number].pid, signal.SIGKILL)

    async def start(self, number: int) -> None:
        """Starts a replica again, at its address; returns once it is ready."""
        relay = self.relays[number]
        self.relays[number] = await self.bench.start_relay(f"relay-{number}", relay.address)

    async def connect(self, user: str = SUPERUSER) -> psycopg.AsyncConnection[Any]:
        """A connection to the database."""
        where = make_conninfo(host=str(self.server.folder), dbname=self.database.database, user=user)
        return await psycopg.AsyncConnection.connect(where, autocommit=True)

    async def list_backends(self) -> list[int]:
        """The processes of PostgreSQL that serve the replicas."""
        async with await self.connect() as connection:
            found = await connection.execute("SELECT pid FROM pg_stat_activity WHERE usename = %s", (USER,))
            return [pid for (pid,) in await found.fetchall()]


async def _kill_replica(cluster: Cluster) -> None:
    await cluster.kill(0)
    await asyncio.sleep(_FAULT_SECONDS)
    await cluster.start(0)


async def _kill_again_and_again(cluster: Cluster) -> None:
    for number in range(_KILLS):
        await cluster.kill(number % 2)
        await cluster.start(number % 2)


async def _restart_postgres(cluster: Cluster) -> None:
    await asyncio.to_thread(cluster.server.stop)
    await asyncio.to_thread(cluster.server.start)


async def _kill_backends(cluster: Cluster) -> None:
    """PostgreSQL then ends all other connections, too, and recovers as after a crash."""
    for pid in await cluster.list_backends():
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


async def _use_up_connections(cluster: Cluster) -> None:
    """Others take each connection that is free, those of the replicas as well, which are ended."""
    async with AsyncExitStack() as stack:
        ends = time.monotonic() + _FAULT_SECONDS
        superuser = await stack.enter_async_context(await cluster.connect())
        taken: list[int] = []
        while time.monotonic() < ends:
            try:
                other = await stack.enter_async_context(await cluster.connect(USER))
                taken.append(other.info.backend_pid)
            except psycopg.OperationalError:  # too many clients
                end = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = %s AND pid <> ALL(%s)"
                await superuser.execute(end, (USER, taken))
        if len(taken) < CONNECTIONS // 2:
            raise BenchError(f"others had only {len(taken)} of {CONNECTIONS} connections")


FAULTS: Final[dict[str, Callable[[Cluster], Awaitable[None]]]] = {
    f"a replica killed, and started {_FAULT_SECONDS:g} s later": _kill_replica,
    f"replicas killed {_KILLS} times by turns": _kill_again_and_again,
    "PostgreSQL restarted": _restart_postgres,
    "its backends killed": _kill_backends,
    f"its connections used up by others for {_FAULT_SECONDS:g} s": _use_up_connections,
}


@dataclass
class _Traffic:
    """What was accepted, and what reached the provider so far."""

    accepted: int = 0
    delivered: list[tuple[float, int]] = field(default_factory=lambda: [(0.0, 0)])
    """When it was looked, seconds of `time.monotonic`, and how many incidents it had then."""
    messages: int = 0

    @property
    def waiting(self) -> int:
        return self.accepted - self.delivered[-1][1]

    def compute_rate(self, begin: float, end: float) -> float:
        """Deliveries in a second in a time."""
        first = next(look for look in self.delivered if look[0] >= begin)
        last = next((look for look in self.delivered if look[0] >= end), self.delivered[-1])
        return (last[1] - first[1]) / (last[0] - first[0])


async def faults(disk: Path, rounds: int, seconds: float = _SECONDS, after: float = _AFTER) -> list[Row]:
    """Runs and prints the benchmark; what is not delivered two minutes after the last webhook is lost."""
    click.echo(f"\nfaults: two replicas on PostgreSQL with fsync, {CLIENTS} clients")
    rates: dict[str, list[float]] = {name: [] for name in FAULTS}
    lost: list[float] = []
    accepted: list[float] = []
    repeated: list[float] = []
    for _ in range(rounds):
        totals = [await _run(disk, name, fault, seconds, after) for name, fault in FAULTS.items()]
        for name, (rate, _traffic) in zip(FAULTS, totals, strict=True):
            rates[name].append(rate)
        lost.append(sum(traffic.waiting for _, traffic in totals))
        accepted.append(sum(traffic.accepted for _, traffic in totals))
        repeated.append(sum(traffic.messages - traffic.delivered[-1][1] for _, traffic in totals))
    return [
        Row("of all five faults: webhooks accepted", tuple(accepted)),
        Row("lost", tuple(lost), at_most=0),
        Row("delivered twice, with the same deduplication key", tuple(repeated)),
        *(
            Row(f"{name}: rate {after - seconds:g} s to {after:g} s after, of that before", tuple(each), at_least=0.9)
            for name, each in rates.items()
        ),
    ]


async def _run(
    disk: Path, name: str, fault: Callable[[Cluster], Awaitable[None]], seconds: float, after: float
) -> tuple[float, _Traffic]:
    """The rate after a fault, of that before; and all of its traffic."""
    async with _cluster(disk) as (cluster, sink):
        traffic = _Traffic()
        async with _traffic(cluster, sink, traffic) as stop:
            await asyncio.sleep(seconds / 2)  # connections, caches
            began = time.monotonic()
            await asyncio.sleep(seconds)
            fault_began = time.monotonic()
            await fault(cluster)
            ended = time.monotonic()
            await asyncio.sleep(after)
            stop()

            async def nothing_waits() -> bool:
                return not traffic.waiting

            with suppress(BenchError):  # what waits then counts as lost
                await cluster.bench.until("every delivery", _TIMEOUT, nothing_waits)
    before, later = (
        traffic.compute_rate(*window) for window in ((began, fault_began), (ended + after - seconds, ended + after))
    )
    click.echo(
        f"  {name:50}  {fault_began - began:.0f} s before {before:5.0f}/s  fault {ended - fault_began:4.1f} s  "
        f"after {later:5.0f}/s: {later / before:.2f}  {traffic.accepted} accepted, {traffic.waiting} lost, "
        f"{traffic.messages - traffic.delivered[-1][1]} twice"
    )
    return later / before, traffic


@asynccontextmanager
async def _cluster(disk: Path) -> AsyncIterator[tuple[Cluster, Running]]:
    with run_postgres(disk, f"max_connections={CONNECTIONS}") as server:
        database = await asyncio.to_thread(server.database, f"bench_{uuid4().hex}")
        async with stage(disk) as bench:
            sink = await bench.module("tests.bench.sink")
            cluster = Cluster(bench, server, database.set(username=USER), [])
            async with await cluster.connect() as connection:
                await connection.execute(f"CREATE ROLE {USER} LOGIN".encode())
                await connection.execute(f"ALTER DATABASE {database.database} OWNER TO {USER}".encode())
            for number in range(2):
                relay = await bench.relay(
                    {"pagerduty": pagerduty(sink.url)},
                    name=f"relay-{number}",
                    database=cluster.database.render_as_string(hide_password=False),
                )
                cluster.relays.append(relay)
            yield cluster, sink


@asynccontextmanager
async def _traffic(cluster: Cluster, sink: Running, traffic: _Traffic) -> AsyncIterator[Callable[[], None]]:
    """Posts and counts until the end; yields what ends the posting."""
    headers = {"Authorization": f"Bearer {TOKEN}", "Content-Type": "application/json"}
    urls = [f"{relay.url}/alerts" for relay in cluster.relays]
    numbers = iter(range(sys.maxsize))
    stopped = asyncio.Event()
    timeout = aiohttp.ClientTimeout(total=10)
    async with aiohttp.ClientSession(headers=headers, timeout=timeout) as http, asyncio.TaskGroup() as group:

        async def post_all() -> None:
            while not stopped.is_set():
                if traffic.waiting >= BACKLOG:
                    await asyncio.sleep(0.005)
                    continue
                await post(next(numbers))

        async def post(number: int) -> None:
            body, tries = webhook(number), number
            while True:
                with suppress(aiohttp.ClientError, TimeoutError):
                    async with http.post(urls[tries % len(urls)], data=body) as answer:
                        if answer.status in {200, 202}:
                            traffic.accepted += 1
                            return
                tries += 1
                await asyncio.sleep(0.1)

        async def count() -> None:
            while True:
                async with http.get(f"{sink.url}/") as answer:
                    found = (await answer.json())["pagerduty"]
                traffic.messages = found["messages"]
                traffic.delivered.append((time.monotonic(), found["groups"]))
                await asyncio.sleep(_POLL_SECONDS)

        tasks = [group.create_task(post_all()) for _ in range(CLIENTS)]
        counting = group.create_task(count())
        yield stopped.set
        await asyncio.wait(tasks)
        counting.cancel()
