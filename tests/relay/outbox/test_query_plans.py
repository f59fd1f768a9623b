"""What was delivered costs nobody time: no more steps beside thousands of other episodes than beside a few.

The steps are SQLite's own instructions, which no machine takes more or fewer of than another.
"""

import time
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection, Text, cast, event, insert, select, update

from services.relay.acknowledgement import store as escalation
from services.relay.deliveries import queries as delivery_list
from services.relay.incidents import queries as incident_queries
from services.relay.model import EscalationStep
from services.relay.now import page as delivery_times
from services.relay.outbox import claim, context, dead_letters
from services.relay.outbox import dead_letters as requeue
from services.relay.outbox import incidents as outbox_incidents
from services.relay.outbox import recovery as sweeper
from services.relay.outbox.context import may_have_earlier_open
from services.relay.outbox.dead_letters import DeadLetterFilter, requeue_dead
from services.relay.outbox.proofs import read_times
from services.relay.outbox.served_channels import record_served_channels
from services.relay.outbox.store import Store, Transaction, open_store
from services.relay.outbox.tables import DeliveryState, channel_proofs, deliveries, incidents
from services.relay.text import WORST_FIRST
from shared.sql import database_url
from shared.sql.database_url import DatabaseUrl
from shared.sql.rows import RowQuery
from tests.bench.filled import CHANNEL, fill
from tests.relay.outbox.actions import accept, claim_one, claim_some, end_attempt
from tests.relay.outbox.statistics import analyze
from tests.stores import each_store

FEW, LARGE = 20, 2000
WORK: dict[str, Callable[[Store], Awaitable[object]]] = {
    "an acceptance": lambda store: accept(store, "new", CHANNEL),
    "a claim": lambda store: claim_some(store, CHANNEL, limit=10),
    "a look that finds nothing": lambda store: claim_some(store, "another"),
    "a scrape": lambda store: store.run(lambda transaction: delivery_list.count_deliveries(transaction.connection)),
    "dead letters again": lambda store: requeue_dead(store, DeadLetterFilter(CHANNEL), 100),
}


class Steps:
    """What SQLite takes on the connection that writes, from the call of `count` on."""

    def __init__(self) -> None:
        self.number = 0

    def count(self, transaction: Transaction) -> None:
        driver = transaction.connection.connection.driver_connection
        assert driver is not None
        driver.set_progress_handler(self._step, 1)

    def _step(self) -> int:
        self.number += 1
        return 0


async def claim_deliveries(file: Path, delivered: int, work: Callable[[Store], Awaitable[object]]) -> int:
    async with open_store(database_url.create_sqlite_url(file), time.time) as store:
        await fill(store, delivered, DeliveryState.DELIVERED)
        await fill(store, 3, DeliveryState.DEAD)
        for number in range(10):
            await accept(store, f"incident {number}", CHANNEL)
        steps = Steps()
        await store.run(steps.count)
        await work(store)
        return steps.number


@pytest.mark.parametrize("work", WORK)
async def test_what_was_delivered_before_is_not_searched(tmp_path: Path, work: str) -> None:
    few, large = [await claim_deliveries(tmp_path / f"{number}.db", number, WORK[work]) for number in (FEW, LARGE)]
    assert 50 < large < 1.05 * few + 20


async def test_a_month_of_proofs_is_not_searched_for_the_last_one(tmp_path: Path) -> None:
    found = []
    for number in (FEW, LARGE):
        async with open_store(database_url.create_sqlite_url(tmp_path / f"{number}.db"), time.time) as store:
            await record_served_channels(store, {CHANNEL: None})
            ended = [{"interval_at": at, "ended_at": at, "due_at": at} for at in range(number)]
            rows = [{"channel": CHANNEL, "attempts": 1, "level": "reachable", **each} for each in ended]
            await store.run(lambda transaction: transaction.connection.execute(insert(channel_proofs), rows).close())  # noqa: B023
            steps = Steps()
            await store.run(steps.count)
            times = await store.run(lambda transaction: read_times(transaction.connection))
            assert times[CHANNEL].by_level == {"reachable": number - 1}
            found.append(steps.number)
    few, large = found
    assert 50 < large < 1.05 * few + 20


async def test_earlier_episodes_of_an_incident_are_not_searched(tmp_path: Path) -> None:
    found = []
    for number in (FEW, LARGE):
        async with open_store(database_url.create_sqlite_url(tmp_path / f"{number}.db"), time.time) as store:
            await accept(store, "flapping", CHANNEL)
            await end_attempt(store, await claim_one(store, CHANNEL))
            await store.run(partial(_retry_repeatedly, number=number))
            await accept(store, "flapping", CHANNEL, episode=number + 1)
            steps = Steps()
            await store.run(steps.count)
            claimed = await claim_one(store, CHANNEL)
            assert claimed.task.first_receipt is None
            assert await store.run(lambda transaction: may_have_earlier_open(transaction.connection, claimed.task))  # noqa: B023
            found.append(steps.number)
    few, large = found
    assert 50 < large < 1.05 * few + 20


def _retry_repeatedly(transaction: Transaction, number: int) -> None:
    """The one delivery that is there, once more for each of its incident's next episodes."""
    row = dict(transaction.connection.execute(select(deliveries)).one()._mapping)
    del row["seq"]
    copies = [{**row, "id": f"{episode}", "episode": episode} for episode in range(2, number + 1)]
    transaction.connection.execute(insert(deliveries), copies)


def plan(query: RowQuery[Any], given: dict[str, Any], connection: Connection) -> str:
    """How the database would run it."""
    explain = "EXPLAIN QUERY PLAN" if connection.dialect.name == "sqlite" else "EXPLAIN"

    @event.listens_for(connection, "before_cursor_execute", retval=True)
    def _explained(*execution: Any) -> tuple[str, Any]:
        return f"{explain} {execution[2]}", execution[3]

    return str(
        connection.execute(query.statement, given).cursor.fetchall()
    )  # the plan has other columns than the query


@each_store
async def test_no_database_takes_the_index_of_what_was_delivered(database: DatabaseUrl) -> None:
    of_two: dict[str, Any] = {"incidents": ["a", "b"], "episodes": [1]}
    now = time.time()
    first: list[tuple[RowQuery[Any], dict[str, Any], tuple[str, ...]]] = [
        (claim._FIRST_RECEIPTS, {**of_two, "channel": CHANNEL}, ("deliveries_of_episode",)),
        (claim._LOCK_DUE, {"channel": CHANNEL, "now": now, "in_flight": [], "most": 8}, ("deliveries_predecessors",)),
        (claim._PREDECESSORS, {"incident": "a", "channel": CHANNEL}, ("deliveries_predecessors",)),
        (context._READ_PREVIOUS, {**of_two, "channels": [CHANNEL]}, ("deliveries_of_episode",)),
    ]
    # PostgreSQL looks for the first ones in another way when it knows that there are many.
    of_dead_letters = ("deliveries_unsettled", "deliveries_dead_groups")
    of_channel, of_reason = DeadLetterFilter(CHANNEL), DeadLetterFilter(CHANNEL, "timeout")
    without_attempt = DeadLetterFilter(CHANNEL, dead_letters.NO_ATTEMPT)
    then: list[tuple[RowQuery[Any], dict[str, Any], tuple[str, ...]]] = [
        (of_channel.narrow(dead_letters.OLDEST).limit(10), {}, of_dead_letters),
        (of_reason.narrow(dead_letters.OLDEST).limit(10), {}, of_dead_letters),
        (without_attempt.narrow(dead_letters.EXAMPLES), {}, of_dead_letters),
        (dead_letters._COUNTS, {}, of_dead_letters),
        (requeue._FIND_DEAD_TOO_EARLY, {"now": now, "give_up_after": 86400.0}, ("deliveries_dead",)),
        (sweeper._FIND_EXPIRED, {"now": now, "before": now - 86400.0}, ("deliveries_due",)),
    ]
    async with open_store(database, time.time) as store:
        await fill(store, LARGE, DeliveryState.DELIVERED)
        found = [await store.read(partial(plan, query, given)) for query, given, _ in first]
        await fill(store, 500, DeliveryState.DEAD)
        await analyze(store)
        found += [await store.read(partial(plan, query, given)) for query, given, _ in then]
    for how, (_, _, wanted) in zip(found, first + then, strict=True):
        assert any(index in how for index in wanted), how
        assert "deliveries_delivered" not in how


@each_store
async def test_open_incidents_of_a_service_are_found_by_their_index(database: DatabaseUrl) -> None:
    given = {"services": ["1", "2"], "service": "1"}
    async with open_store(database, time.time) as store:
        await fill(store, LARGE, DeliveryState.DELIVERED)
        seq = incidents.c.latest_event_seq
        services = update(incidents).values(started_at=seq, service_id=cast(seq % 40, Text))
        await store.run(lambda transaction: transaction.connection.execute(services).close())
        await analyze(store)
        queries: tuple[RowQuery[Any], ...] = (context._COUNT_OPEN, context._READ_OLDEST)
        plans = [await store.read(partial(plan, query, given)) for query in queries]
    for found in plans:
        assert "incidents_of_service" in found
        assert "TEMP B-TREE" not in found
        assert "Sort" not in found


@each_store
async def test_open_incidents_are_read_in_pages_by_their_index(database: DatabaseUrl) -> None:
    async with open_store(database, time.time) as store:
        await fill(store, LARGE, DeliveryState.DELIVERED)
        closed = update(incidents).values(first_event_seq=incidents.c.latest_event_seq, is_open=0)
        await store.run(lambda transaction: transaction.connection.execute(closed).close())
        await accept(store, "new", CHANNEL)
        await analyze(store)
        found = await store.read(partial(plan, outbox_incidents._OPEN_PAGE, {"after": 0}))
    assert "incidents_open" in found
    assert "TEMP B-TREE" not in found
    assert "Sort" not in found


async def test_a_receipt_searches_nothing_either(tmp_path: Path) -> None:
    async def receipt(store: Store) -> None:
        await end_attempt(store, await claim_one(store, CHANNEL))

    few, large = [await claim_deliveries(tmp_path / f"{number}.db", number, receipt) for number in (FEW, LARGE)]
    assert 50 < large < 1.05 * few + 20


@each_store
async def test_what_escalates_and_what_is_newest_is_found_by_its_index(database: DatabaseUrl) -> None:
    newest = incident_queries._SUMMARIES.order_by(incidents.c.first_event_seq.desc()).limit(11)
    async with open_store(database, time.time) as store:
        await fill(store, LARGE, DeliveryState.DELIVERED)
        first = update(incidents).values(first_event_seq=incidents.c.latest_event_seq)
        await store.run(lambda transaction: transaction.connection.execute(first).close())
        await accept(store, "new", CHANNEL, escalation=(EscalationStep(60.0, ("boss",)),))
        await analyze(store)
        escalating = await store.read(partial(plan, escalation._FIND_DUE, escalation.compute_times(time.time())))
        latest = await store.read(partial(plan, newest, {"now": time.time()}))
    assert "incidents_escalating" in escalating
    assert "incidents_by_episode" in latest
    assert "deliveries_delivered" not in escalating + latest


@each_store
async def test_what_the_first_page_shows_is_found_by_its_indexes(database: DatabaseUrl) -> None:
    queries: dict[str, tuple[RowQuery[Any], dict[str, Any]]] = {
        "incidents_open_by_severity": (
            incident_queries._build_query(incident_queries.IncidentFilter(), len(WORST_FIRST)).limit(20),
            {},
        ),
        "deliveries_delivered": (delivery_times._DELIVERED, {"since": time.time() + 60, "millis": 300_000}),
        "deliveries_dead": (delivery_times._DEAD, {"since": time.time() + 60, "millis": 300_000}),
    }
    async with open_store(database, time.time) as store:
        await record_served_channels(store, {CHANNEL: None})
        await fill(store, LARGE, DeliveryState.DELIVERED)
        await fill(store, 500, DeliveryState.DEAD)
        seq = incidents.c.latest_event_seq
        severities = update(incidents).values(first_event_seq=seq, severity="warning", is_open=0)
        some = update(incidents).where(seq % 40 == 0).values(severity="critical", is_open=1)
        for changes in (severities, some):
            await store.run(lambda transaction, changes=changes: transaction.connection.execute(changes).close())  # type: ignore[misc]
        await analyze(store)
        for index, (query, given) in queries.items():
            found = await store.read(partial(plan, query, given))
            assert index in found, found
            assert "SCAN deliveries" not in found
            assert "Seq Scan on deliveries" not in found
