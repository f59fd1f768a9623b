"""What is told of paths that are not proven, and what is counted, over a real outbox whose clock a test moves."""

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Collection
from functools import partial
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry
from sqlalchemy import Executable, update

from services.relay.channels.log import LogSettings
from services.relay.channels.port import ProofSettings
from services.relay.model import Status
from services.relay.outbox.proofs import PathProof, accept_proofs, claim_proof, find_interval, record_proof
from services.relay.outbox.served_channels import record_served_channels
from services.relay.outbox.store import Transaction, open_store
from services.relay.outbox.tables import channel_proofs, channels, path_proofs
from services.relay.proofs.hops import HopFinder
from services.relay.proofs.monitor import ProofMonitor
from shared.sql import database_url
from shared.sql.database_url import DatabaseUrl
from tests.relay.monitors.monitored_outbox import CHANNELS, Clock, MonitoredOutbox, configure, open_monitored_outbox

EVERY = 900.0
TRAVEL = 50.0
"""Seconds from the start of a proof to its webhook."""
STEP = 50.0
UNKNOWN = "set messages.prometheus_url and alertmanager.urls so that the hop can be named"


class ProvenPath:
    """Each quarter of an hour a proof comes and the channels prove themselves, while relays judge."""

    def __init__(self, at: MonitoredOutbox, clock: Clock) -> None:
        self.at, self.clock = at, clock
        clock.now = find_interval(clock.now, EVERY)
        self.is_coming = True
        self.travel = TRAVEL
        self.refusing: Collection[str] = ()
        self.idle: Collection[str] = ()
        self.refusals: dict[int, float] = {}
        self.start()

    def start(
        self,
        replicas: int = 1,
        every: float = EVERY,
        channels: Collection[str] = CHANNELS,
        logs: Collection[str] = (),
    ) -> None:
        """New processes, as after kill -9: they know only the outbox."""
        proof = ProofSettings.model_construct(every=every)
        settings = {name: LogSettings(kind="log") if name in logs else None for name in channels}
        self.at.publisher.settings = configure(proof=proof, channels=settings)
        finder = HopFinder(None, (), self.refusals)
        self.monitors = [ProofMonitor(self.at.publisher, finder) for _ in range(replicas)]

    async def run(self, intervals: float) -> None:
        end = self.clock.now + intervals * EVERY
        while self.clock.now < end:
            if self.is_coming and self.clock.now % EVERY == self.travel:
                await self.prove()
            for monitor in self.monitors:
                await monitor.check()
            await record_served_channels(self.at.store, dict.fromkeys(self.at.publisher.settings.channels), EVERY)
            self.clock.go(STEP)

    async def prove(self) -> None:
        store, started = self.at.store, find_interval(self.clock.now, EVERY)
        proof = PathProof(started, "test", "backend", started + TRAVEL)
        await accept_proofs(store, [proof], CHANNELS, every=EVERY, received_at=self.clock.now)
        for name in set(CHANNELS).difference(self.idle):
            claim = await store.run(
                partial(claim_proof, channel=name, lease_id=name, lease_seconds=20, in_flight_ids=())
            )
            if claim is not None:
                refused = name in self.refusing
                await record_proof(store, claim, None if refused else "reachable", "token_revoked" if refused else "")

    async def list_told(self) -> list[tuple[str, str, set[str]]]:
        published = await self.at.list_published()
        return [(event.status, event.common_annotations["title"], channels) for event, channels in published]


def count_losses(registry: CollectorRegistry) -> dict[str, int]:
    """How many proofs each hop lost, on each channel."""
    lost: Counter[str] = Counter()
    for family in registry.collect():
        for sample in family.samples:
            if sample.name == "relay_path_proof_failures_total" and sample.value:
                lost[f"{sample.labels['channel']} {sample.labels['hop']}"] += int(sample.value)
    return dict(lost)


@pytest.fixture
async def path(tmp_path: Path, clock: Clock) -> AsyncIterator[ProvenPath]:
    async with open_monitored_outbox(database_url.create_sqlite_url(tmp_path / "relay.db"), clock) as at:
        yield ProvenPath(at, clock)


@pytest.fixture
def clock() -> Clock:
    return Clock()


async def test_a_channel_that_is_not_proven_is_told_once_on_the_proven_ones_with_its_hop_until_it_is(
    path: ProvenPath,
) -> None:
    await path.run(3)
    path.refusing, path.idle = ["slack"], ["email"]
    await path.run(1 + 2 * TRAVEL / EVERY)
    assert await path.list_told() == [], "a single proof may be lost"
    await path.run(2 - 2 * TRAVEL / EVERY)
    told = await path.list_told()
    assert told == [
        (
            Status.FIRING,
            "email is not proven since 22:30 UTC: lost at outbox: it waits, and was never tried",
            {"pagerduty"},
        ),
        (Status.FIRING, "slack is not proven since 22:30 UTC: lost at channel: token_revoked", {"pagerduty"}),
    ]
    assert count_losses(path.at.registry) == {"email outbox": 1, "slack channel": 1}
    path.clock.go(2 * STEP)
    path.start(replicas=2)
    await path.run(1)
    assert await path.list_told() == told, "a restart, or two relays, tell nothing again, and a start proves nothing"
    path.refusing = path.idle = ()
    await path.run(1)
    assert [status for status, _, _ in await path.list_told()] == [Status.FIRING] * 2 + [Status.RESOLVED] * 2


async def test_a_channel_that_is_not_proven_is_told_on_all_where_only_the_log_is_proven(path: ProvenPath) -> None:
    path.start(logs=["email", "pagerduty"])
    await path.run(2)
    path.refusing = ["slack"]
    await path.run(4)
    assert [channels for _, _, channels in await path.list_told()] == [set(CHANNELS)]


async def test_a_path_that_is_lost_before_the_relay_is_one_incident_on_all_channels(path: ProvenPath) -> None:
    await path.run(1)
    path.is_coming = False
    path.start(replicas=2)
    await path.run(2.5)
    title = f"No channel is proven since 22:00 UTC: lost before the relay: {UNKNOWN}"
    assert await path.list_told() == [(Status.FIRING, title, set(CHANNELS))]
    path.is_coming = True
    await path.run(1)
    assert await path.list_told() == [(Status.FIRING, title, set(CHANNELS)), (Status.RESOLVED, title, set(CHANNELS))]
    assert count_losses(path.at.registry) == dict.fromkeys([f"{name} unknown" for name in CHANNELS], 2)


async def test_a_single_proof_may_be_lost_and_the_next_may_be_late(path: ProvenPath) -> None:
    await path.run(2)
    path.is_coming = False
    await path.run(1)
    path.is_coming, path.travel = True, TRAVEL + STEP
    await path.run(2)
    assert await path.list_told() == []
    assert sum(count_losses(path.at.registry).values()) == len(CHANNELS)


async def test_what_waits_behind_a_circuit_breaker_is_lost_at_its_channel(path: ProvenPath) -> None:
    await path.run(1)
    path.idle = ["email"]
    down = update(channels).where(channels.c.name == "email").values(is_down=1, failed_detail="535 refused")
    await path.at.store.run(partial(execute, statement=down))
    await path.run(2.5)
    ((_, title, _),) = await path.list_told()
    assert title == "email is not proven since 22:00 UTC: lost at channel: 535 refused"


async def test_what_is_no_longer_proven_is_over(path: ProvenPath) -> None:
    path.refusing = CHANNELS
    await path.run(3)
    assert {title[:5] for _, title, channels in await path.list_told() if channels == set(CHANNELS)} == {
        "email",
        "pager",
        "slack",
    }, "where no channel is proven, all are told"
    path.start(channels=["email", "pagerduty"])
    await path.run(0.1)
    assert [title[:5] for status, title, _ in await path.list_told() if status is Status.RESOLVED] == ["slack"]
    path.start(every=0)
    await path.run(0.1)
    assert sum(status is Status.RESOLVED for status, _, _ in await path.list_told()) == 3


@pytest.mark.parametrize("hours", [[-3, 3], [5]])
async def test_a_clock_that_is_set_tells_nothing_false(path: ProvenPath, hours: list[int]) -> None:
    await path.run(2)
    for each in hours:
        path.clock.now += each * 3600
        await path.run(0.5)
    await path.run(4)
    assert await path.list_told() == []
    assert count_losses(path.at.registry) == {}


async def test_a_relay_that_was_away_for_an_hour_tells_nothing_false_and_its_gap_stays_a_gap(path: ProvenPath) -> None:
    await path.run(2)
    path.clock.go(3650)
    path.start()
    await path.run(4)
    assert await path.list_told() == []
    assert count_losses(path.at.registry) == {}


@pytest.mark.parametrize("seconds", [EVERY - STEP, 3700])
async def test_a_relay_that_was_away_says_nothing_again_of_a_channel_that_stays_refused(
    path: ProvenPath, seconds: float
) -> None:
    await path.run(2)
    path.refusing = {"slack"}
    await path.run(4)
    told = await path.list_told()
    assert len(told) == 1
    path.clock.go(seconds)
    path.start()
    await path.run(4)
    assert await path.list_told() == told


async def test_what_this_relay_refused_is_named(path: ProvenPath) -> None:
    await path.run(1)
    path.is_coming = False
    path.refusals[401] = path.clock.now + EVERY
    await path.run(2.5)
    ((_, title, _),) = await path.list_told()
    assert title.endswith("lost at webhook: this relay refused webhooks (401): wrong or no credentials")


async def test_of_two_replicas_on_postgresql_one_tells_and_counts_and_killing_both_repeats_nothing(
    postgres_outbox: DatabaseUrl,
) -> None:
    async with open_store(postgres_outbox, time.time) as one, open_store(postgres_outbox, time.time) as other:
        every = 1e6  # so that hardly ever an interval ends during the test
        await record_served_channels(one, {"slack": None, "email": None})
        now = await one.run(lambda transaction: transaction.now)
        proven, lost = (find_interval(now, every) - number * every for number in (3, 2))
        rows = [
            ("slack", proven, "reachable"),
            ("email", proven, "reachable"),
            ("email", now, "reachable"),
            ("slack", lost, None),
        ]
        statements: list[Executable] = []
        for channel, at, level in rows:
            values = {"channel": channel, "interval_at": at, "level": level, "ended_at": level and at, "error": None}
            statements.append(channel_proofs.insert().values(attempts=1, due_at=at, **values))
        times = dict.fromkeys(("started_at", "raised_at", "received_at", "accepted_at"), now)
        statements.append(path_proofs.insert().values(env="", service="", **times))
        statements.append(update(channels).values(served_since=now - 10 * every))
        for statement in statements:
            await one.run(partial(execute, statement=statement))
        counted: list[int] = []
        for _ in range(2):
            relays = [MonitoredOutbox(store, CollectorRegistry()) for store in (one, other)]
            for relay in relays:
                relay.publisher.settings = configure(
                    channels={"slack": None, "email": None}, proof=ProofSettings.model_construct(every=every)
                )
            monitors = [ProofMonitor(relay.publisher, HopFinder(None, (), {})) for relay in relays]
            await asyncio.gather(*(monitor.check() for monitor in monitors))
            ((event, told),) = await relays[0].list_published()
            assert (event.common_labels["hop"], event.common_labels["channel"], told) == ("channel", "slack", {"email"})
            counted.append(sum(count_losses(relay.registry).get("slack channel", 0) for relay in relays))
        assert counted == [1, 0]


def execute(transaction: Transaction, statement: Executable) -> None:
    transaction.connection.execute(statement)
