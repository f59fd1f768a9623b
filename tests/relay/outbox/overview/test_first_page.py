"""What the first page reads of the outbox, on both stores, as of one moment."""

import time
from functools import partial

from services.relay.now.overview import read_overview
from services.relay.now.page import RecentTimes
from services.relay.outbox.heartbeats import record_heartbeats
from services.relay.outbox.served_channels import record_served_channels
from services.relay.outbox.store import open_store
from services.relay.outbox.tables import DeliveryState
from shared.sql.database_url import DatabaseUrl
from tests.relay.outbox.rows import Rows
from tests.stores import each_store


@each_store
async def test_all_of_it_is_read_and_steps_that_are_over_are_read_once(database: DatabaseUrl) -> None:
    async with open_store(database, time.time) as store:
        rows = Rows(store)
        await record_served_channels(store, dict.fromkeys(["slack"]))
        await record_heartbeats(store, ["Watchdog"])
        event = await rows.event("open")
        now = await store.run(lambda transaction: transaction.now)
        for age in (10.0, 4000.0):
            await rows.delivery(event, finished_at=now - age, oldest_accepted_at=now - age - 2)
        await rows.delivery(event, "slack", DeliveryState.QUEUED)
        names = ["slack", "unused"]
        read = partial(read_overview, clock=store.clock, channels=names, max_incidents=5, proof_every=900.0)

        overview = await store.read(read)
        assert abs(overview.now - now) < 60
        assert [(each.name, each.waiting) for each in overview.channels] == [("slack", 1), ("unused", 0)]
        assert overview.incidents.total == 1
        assert overview.heartbeats.keys() == overview.heartbeats_awaited.keys() == {"Watchdog"}
        assert overview.webhooks.accepted_at is not None

        recent = RecentTimes(store)
        first, start = await recent.get()
        assert [step.delivered for step in first.values()] == [1, 1]
        assert all(at >= start for at in first)
        # One that is over is not read again, whatever became of its deliveries; the current one is.
        await rows.delivery(event, finished_at=now - 4000, oldest_accepted_at=now - 4001)
        await rows.delivery(event, finished_at=now, oldest_accepted_at=now - 1)
        assert await recent.get() == (first, start), "for some seconds it is shared"
        second, _ = await recent._read()
        assert sorted(step.delivered for step in second.values()) in ([1, 2], [1, 1, 1])
