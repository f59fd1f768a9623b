"""Deliveries and their times in steps of a period, as the plot of the page Now shows them."""

import time
from functools import partial

from services.relay.now.page import DeliveryTimes, read_delivery_times
from services.relay.outbox.served_channels import record_served_channels
from services.relay.outbox.store import open_store
from services.relay.outbox.tables import DeliveryState
from shared.sql.database_url import DatabaseUrl
from tests.relay.outbox.rows import Rows
from tests.stores import each_store

STEP = 300


@each_store
async def test_each_step_has_its_counts_and_exact_quantiles(database: DatabaseUrl) -> None:
    async with open_store(database, time.time) as store:
        rows, start = Rows(store), 1_000_000 * STEP
        await record_served_channels(store, dict.fromkeys(["slack", "email"]))
        event = await rows.event()
        for number in range(20):  # 1 to 20 s, in an order of its own, on two channels
            seconds, channel = (number * 7) % 20 + 1, "slack" if number % 2 else "email"
            ended = start + 250.0
            await rows.delivery(event, channel, finished_at=ended, oldest_accepted_at=ended - seconds)
        await rows.delivery(event, finished_at=start + STEP, oldest_accepted_at=start - 1000.0)
        await rows.delivery(event, finished_at=start - 1.0, oldest_accepted_at=start - 2.0)  # before the period
        await rows.delivery(
            event, finished_at=start + 2 * STEP + 1.0, oldest_accepted_at=start + 9000.0
        )  # a clock set back
        await rows.delivery(event, "slack", DeliveryState.DEAD, finished_at=start + STEP + 1.0)
        await rows.delivery(event, "slack", DeliveryState.SUPERSEDED, finished_at=start + 1.0)
        await rows.delivery(event, "slack", DeliveryState.QUEUED)

        found = await store.read(partial(read_delivery_times, since=float(start), step_seconds=STEP))
    assert found == {
        start: DeliveryTimes(start, 20, 0, 10.0, 19.0, 20.0),
        start + STEP: DeliveryTimes(start + STEP, 1, 1, 1300.0, 1300.0, 1300.0),
        start + 2 * STEP: DeliveryTimes(start + 2 * STEP, 1, 0, 0.0, 0.0, 0.0),
    }


async def test_nothing_is_no_step(database: DatabaseUrl) -> None:
    async with open_store(database, time.time) as store:
        assert await store.read(partial(read_delivery_times, since=0.0, step_seconds=STEP)) == {}
