"""The figures of a period, in both stores: as counted by hand, exact, from indexes, and with what retention deleted."""

import csv
import io
import math
import time
from functools import partial
from random import Random
from typing import Any

import pytest
from sqlalchemy import insert

from services.relay.outbox import quarantine
from services.relay.outbox.audit import PrunedKind, prune_audit, read_pruned
from services.relay.outbox.retention import prune_before
from services.relay.outbox.store import Store, Transaction, open_store
from services.relay.outbox.tables import DeliveryState, deliveries
from services.relay.report import queries as delivery_figures
from services.relay.report import queries as incident_figures
from services.relay.report import queries as slow_deliveries
from services.relay.report.queries import Period, Quantiles, Report, read_channels, read_report
from services.relay.report.report import encode_report, format_csv
from shared.sql.database_url import DatabaseUrl
from shared.sql.rows import RowQuery
from tests.bench.filled import CHANNEL, fill
from tests.relay.outbox.rows import Rows
from tests.relay.outbox.statistics import analyze
from tests.relay.outbox.test_query_plans import plan
from tests.relay.report.history_rows import HistoryRows
from tests.relay.report.small_history import add_small_history
from tests.stores import each_store

DAY = 86400.0


async def read_report_of(store: Store, days: float) -> Report:
    now = time.time()
    period = Period(now - days * DAY, now)
    return await store.read(partial(read_report, period=period, channels=["log"], now=now, proof_every=900.0))


async def read(store: Store, days: float = 7.0) -> dict[str, Any]:
    return encode_report(await read_report_of(store, days))


async def read_csv(store: Store) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(format_csv(await read_report_of(store, 7.0)))))


@each_store
async def test_an_incident_that_starts_more_often_than_is_stored_makes_the_count_a_minimum(
    database: DatabaseUrl,
) -> None:
    def add(transaction: Transaction, starts: int) -> None:
        rows = HistoryRows(transaction, transaction.now - 3 * DAY)
        rows.add_incident(f"{starts}", "KMSTest", "backend", *map(float, range(starts)))

    async with open_store(database, time.time) as store:
        await store.run(partial(add, starts=99))
        assert ((await read(store))["incidents"]["count"], (await read(store))["incidents"]["is_minimum"]) == (
            99,
            False,
        )
        await store.run(partial(add, starts=100))
        assert ((await read(store))["incidents"]["count"], (await read(store))["incidents"]["is_minimum"]) == (
            199,
            True,
        )
        assert (await read(store, days=2))["incidents"]["is_minimum"] is False
        assert (await read_csv(store))[0]["detail"] == "there were more than are stored"


@each_store
async def test_quantiles_are_exact(database: DatabaseUrl) -> None:
    """Each is the smallest time that so many percent do not exceed, as a person finds it in a sorted list."""
    random = Random(16)  # noqa: S311
    times = {f"{count}": [random.expovariate(0.1) // 0.5 for _ in range(count)] for count in (1, 2, 19, 20, 21, 100)}

    def add(transaction: Transaction) -> None:
        rows = [
            {"id": f"{channel} {number}", "event_seq": 1, "incident_id": "a", "episode": 1, "channel": channel}
            | {"state": DeliveryState.DELIVERED, "attempts": 1, "due_at": 0.0, "accepted_at": 5000.0}
            | {"oldest_accepted_at": 5000.0, "finished_at": 5000.0 + seconds}
            for channel, of_channel in times.items()
            for number, seconds in enumerate(of_channel)
        ]
        transaction.connection.execute(insert(deliveries), rows)

    async with open_store(database, time.time) as store:
        await Rows(store).event()
        await store.run(add)
        found = await store.read(lambda connection: read_channels(connection, Period(5000.0, 9000.0), (), ()))
    assert {each.channel: each.time_to_deliver for each in found} == {
        channel: Quantiles(*(sorted(of_channel)[math.ceil(share * len(of_channel)) - 1] for share in (0.5, 0.95, 1)))
        for channel, of_channel in times.items()
    }


@each_store
async def test_what_retention_has_deleted_is_said(database: DatabaseUrl) -> None:
    async with open_store(database, time.time) as store:
        start = await add_small_history(store)
        assert (await read(store))["complete_since"] is None
        await prune_before(store, start - 4.5 * DAY)
        assert (await read(store))["complete_since"] is None  # of before the period
        assert (await read(store, days=10))["complete_since"] is not None
        await prune_before(store, start + 5.5)
        pruned = await store.read(read_pruned)
        assert pruned[PrunedKind.DELIVERIES] == start + 4
        assert pruned[PrunedKind.QUARANTINE] == start + 2
        await prune_audit(store, start + 2601, 100, 2)
        report = await read(store)
        assert report["complete_since"] == encode_time(start + 2600)
        assert report["refused_webhooks"]["is_minimum"]
        assert (await read_csv(store))[0]["detail"] == ""
        assert (await read_csv(store))[-1]["detail"] == "there were more than are stored"
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(quarantine, "MAX_ENTRIES", 2)
            for number in range(3):
                await quarantine.quarantine_webhook(store, b"", source="", code=400, reason=f"{number}")
        assert (await store.read(read_pruned))[PrunedKind.QUARANTINE] > start + 2 * DAY


def encode_time(at: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S.000Z", time.gmtime(at))


@each_store
async def test_a_report_reads_indexes(database: DatabaseUrl) -> None:
    queries: dict[RowQuery[Any], str] = {
        delivery_figures._DELIVERED: "deliveries_delivered",
        delivery_figures._DEAD: "deliveries_dead",
        incident_figures._GROUPS: "incidents_by_start",
        slow_deliveries._SLOWEST: "deliveries_delivered",
        slow_deliveries._ATTEMPTS: "deliveries_of_episode",
        slow_deliveries._OTHER_FAILURES: "deliveries_delivered",
    }
    now = time.time()
    given = {"since": now - 60, "until": now, "channel": CHANNEL, "seq": 9, "incident_id": "a", "episode": 1}
    given |= {"oldest_accepted_at": 0.0, "finished_at": now}
    async with open_store(database, time.time) as store:
        await fill(store, 2000, DeliveryState.DELIVERED)
        await fill(store, 500, DeliveryState.DEAD)
        await analyze(store)
        for query, index in queries.items():
            assert index in await store.read(partial(plan, query, given))
