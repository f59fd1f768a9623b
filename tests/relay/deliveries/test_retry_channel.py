"""All that was given up on a channel is tried again: what was dead when somebody asked, and no more."""

import asyncio
import time

from services.relay.deliveries import queries as delivery_list
from services.relay.deliveries.queries import DeliveryFilter
from services.relay.deliveries.retries import STEP, retry_channel
from services.relay.outbox.audit import Actor
from services.relay.outbox.dead_letters import DeadLetterFilter
from services.relay.outbox.store import open_store
from services.relay.outbox.tables import DeliveryState
from shared.sql.database_url import DatabaseUrl
from tests.relay.outbox.rows import Rows
from tests.stores import each_store

UNMERGED = frozenset({"log"})


@each_store
async def test_it_ends_although_as_many_die_meanwhile(database: DatabaseUrl) -> None:
    async with open_store(database, time.time, UNMERGED) as store:
        rows = Rows(store)
        event = await rows.event()

        async def dies(number: int) -> set[str]:
            return set(await asyncio.gather(*(rows.delivery(event, "log", DeliveryState.DEAD) for _ in range(number))))

        requested, steps = await dies(STEP + 5), []
        async for requeued in retry_channel(store, "log", None, Actor("alice")):
            steps.append(requeued)
            assert len(steps) <= 2
            await dies(requeued)
        assert steps == [STEP, 5]
        page = await delivery_list.list_deliveries(store, DeliveryFilter(state=DeliveryState.SUPERSEDED), limit=1000)
        assert await store.read(DeadLetterFilter("log").count) == STEP + 5
        assert {delivery.id for delivery in page.deliveries} == requested
