"""Two replicas' stores on one PostgreSQL, at the same time and about the same incidents.

PostgreSQL itself watches, at each commit, that of an incident never two deliveries wait for one channel; what was told
is judged at the end.
"""

import asyncio
import time
from collections import defaultdict
from collections.abc import AsyncIterator
from random import Random

import pytest
from sqlalchemy import Connection, create_engine, select, text

from services.relay.model import Claim, Event
from services.relay.outbox.breaker import FAILURE_THRESHOLD, ChannelEffect
from services.relay.outbox.claim import ClaimRequest, claim_due
from services.relay.outbox.dead_letters import DeadLetterFilter, requeue, requeue_dead
from services.relay.outbox.store import Store, open_store
from services.relay.outbox.tables import DeliveryState, deliveries, events
from shared.sql.database_url import DatabaseUrl
from tests.faults.incidents import seeded
from tests.relay.outbox.actions import accept, accept_webhook, claim_one, end_attempt
from tests.relay.served_relay import event_of, until

CHANNELS = ("a", "b")
_ONE_WAITS = """
    ALTER TABLE deliveries ADD CONSTRAINT one_waits EXCLUDE USING btree (incident_id WITH =, channel WITH =)
    WHERE (state IN ('queued', 'retrying')) DEFERRABLE INITIALLY DEFERRED
"""
"""Checked when a transaction commits: one that breaks it fails."""


class Replicas:
    """Two stores, and what was told by claims that ended as delivered."""

    def __init__(self, one: Store, other: Store) -> None:
        self.stores = (one, other)
        self.reported: dict[tuple[str, str], list[tuple[int, int]]] = defaultdict(list)
        """By incident and channel: the first and the last event of each message, in the order of their receipts."""

    async def deliver(self, store: Store, channel: str, random: Random, *, fails: float) -> int:
        """Claims what is due and ends it, some of it as failed; how many claims that were."""
        claimed = await claim_due(store, ClaimRequest(channel, 3, "me", 60, None))
        await asyncio.gather(*(self.end(store, one, failed=random.random() < fails) for one in claimed.claims))
        return len(claimed.claims)

    async def end(self, store: Store, one: Claim, *, failed: bool) -> None:
        """Ends a claim as delivered, or as failed."""
        if failed:
            # It says nothing of the channel, whose breaker would else keep everybody waiting.
            await end_attempt(store, one, DeliveryState.RETRYING, channel_effect=ChannelEffect.UNCHANGED)
        else:
            self.reported[one.task.incident_id, one.task.channel].append(
                (one.task.first_event_seq, one.task.last_event_seq)
            )
            assert (await end_attempt(store, one)).lease_valid

    async def drain(self) -> None:
        """Delivers everything that is left."""

        async def finished() -> bool:
            for channel in CHANNELS:
                for store in self.stores:
                    await self.deliver(store, channel, seeded("drain"), fails=0)
            return not await self.stores[0].read(_unfinished)

        await until(finished)

    async def judge(self) -> None:
        """Nothing is untold or stale, and what was merged is told by what took its place."""
        rows = await self.stores[0].read(lambda connection: connection.execute(select(deliveries)).all())
        by_id = {row.id: row for row in rows}
        for row in rows:
            heir = row
            while heir.state == DeliveryState.SUPERSEDED:
                heir = by_id[heir.superseded_by]
                assert (heir.incident_id, heir.channel) == (row.incident_id, row.channel)
            assert heir.state == DeliveryState.DELIVERED
            assert heir.first_event_seq <= row.first_event_seq <= row.event_seq <= heir.event_seq
        of_incident = select(events.c.incident_id, events.c.seq).order_by(events.c.seq)
        accepted = defaultdict(list)
        for incident, seq in await self.stores[0].read(lambda connection: connection.execute(of_incident).all()):
            accepted[incident].append(seq)
        assert set(self.reported) == {(incident, channel) for incident in accepted for channel in CHANNELS}
        for (incident, channel), messages in self.reported.items():
            last = [message[1] for message in messages]
            assert last == sorted(last), f"{incident} on {channel}: {messages}"
            assert last[-1] == accepted[incident][-1]
            untold = [s for s in accepted[incident] if not any(first <= s <= last for first, last in messages)]
            assert untold == [], f"{incident} on {channel}: {messages}"


def _unfinished(connection: Connection) -> bool:
    return connection.execute(select(deliveries.c.seq).where(deliveries.c.finished_at.is_(None))).first() is not None


@pytest.fixture
async def replicas(postgres_database: DatabaseUrl) -> AsyncIterator[Replicas]:
    async with open_store(postgres_database, time.time) as one, open_store(postgres_database, time.time) as other:
        await asyncio.to_thread(_watch, postgres_database)
        yield Replicas(one, other)
    assert await asyncio.to_thread(_deadlocks, postgres_database) == 0


def _watch(database: DatabaseUrl) -> None:
    engine = create_engine(database)
    with engine.begin() as connection:
        connection.execute(text(_ONE_WAITS))
    engine.dispose()


def _deadlocks(database: DatabaseUrl) -> int:
    """How many PostgreSQL had to resolve; each costs somebody a second, whom the store lets try again."""
    engine = create_engine(database)
    with engine.connect() as connection:
        counted = text("SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()")
        found: int = connection.execute(counted).scalar_one()
    engine.dispose()
    return found


async def _accept(store: Store, incident: str, number: int) -> None:
    for _ in range(number):
        await accept(store, incident, *CHANNELS)


async def test_events_at_both_while_claims_and_receipts_go_on(replicas: Replicas) -> None:
    all_accepted = asyncio.Event()

    async def go_on(store: Store, channel: str, random: Random) -> None:
        while not all_accepted.is_set():
            await replicas.deliver(store, channel, random, fails=0.5)

    async with asyncio.TaskGroup() as workers:
        for number, store in enumerate(replicas.stores):
            for channel in CHANNELS:
                workers.create_task(go_on(store, channel, seeded(number, channel)))
        await asyncio.gather(*(_accept(store, incident, 25) for store in replicas.stores for incident in "xyz"))
        all_accepted.set()
    await replicas.drain()
    await replicas.judge()


async def test_a_notification_that_comes_to_both_at_once_is_accepted_once(replicas: Replicas) -> None:
    async def posted(store: Store, event: Event) -> bool:
        return (await accept_webhook(store, event, CHANNELS, duplicate_window=60)).is_duplicate

    for number in range(15):
        for status in ("firing", "resolved"):
            event = event_of(status, group=str(number))
            repeats = await asyncio.gather(*(posted(store, event) for store in replicas.stores))
            assert sorted(repeats) == [False, True]
    await replicas.drain()
    await replicas.judge()


async def test_a_claim_whose_lease_ended_while_the_other_accepts(replicas: Replicas) -> None:
    one, other = replicas.stores
    for number in range(15):
        incident = str(number)
        await accept(one, incident, *CHANNELS)
        for channel in CHANNELS:  # a crash: nobody ends this claim
            assert len((await claim_due(one, ClaimRequest(channel, 1, "crashed", 0, None))).claims) == 1
        if number % 2:  # something waits behind it already
            await accept(other, incident, *CHANNELS)
        await asyncio.gather(
            accept(other, incident, *CHANNELS),
            *(replicas.deliver(one, channel, seeded(number), fails=0) for channel in CHANNELS),
        )
        await replicas.drain()
    await replicas.judge()


async def test_a_dead_letter_that_is_resent_while_the_other_accepts(replicas: Replicas) -> None:
    one, other = replicas.stores
    for number in range(15):
        incident = str(number)
        await accept(one, incident, *CHANNELS)
        dead = {channel: await claim_one(one, channel) for channel in CHANNELS}
        for each in dead.values():
            await end_attempt(one, each, DeliveryState.DEAD)
        state, revived, _ = await asyncio.gather(
            requeue(one, dead["a"].task.delivery_id),
            requeue_dead(one, DeadLetterFilter("b"), 10),
            accept(other, incident, *CHANNELS),
        )
        assert (state, revived) == (DeliveryState.DEAD, 1)
        await replicas.drain()
    await replicas.judge()


async def test_a_breaker_that_closes_while_what_waits_for_it_is_merged(replicas: Replicas) -> None:
    one, other = replicas.stores
    incidents = [str(number) for number in range(FAILURE_THRESHOLD + 15)]
    for _ in range(3):
        for incident in incidents:
            await accept(one, incident, *CHANNELS)
        last_claims = [await _open_the_breaker_but_for_one(one, channel, len(incidents)) for channel in CHANNELS]
        # No deadlock comes out of any of these: `gather` would raise what it became.
        await asyncio.gather(
            *(replicas.end(one, last_claim, failed=False) for last_claim in last_claims),
            *(accept(other, incident, *CHANNELS) for incident in incidents),
            *(
                replicas.deliver(store, channel, seeded(channel), fails=0.5)
                for store in replicas.stores
                for channel in CHANNELS
            ),
        )
        await replicas.drain()
    await replicas.judge()


async def _open_the_breaker_but_for_one(store: Store, channel: str, number: int) -> Claim:
    """All deliveries of a channel fail and wait: its breaker is open. One claim is still to end, and may close it."""
    last_claim, *others = (await claim_due(store, ClaimRequest(channel, number, "me", 60, None))).claims
    assert len(others) == number - 1
    await asyncio.gather(*(end_attempt(store, each, DeliveryState.RETRYING, retry_in=1) for each in others))
    return last_claim
