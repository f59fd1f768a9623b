"""The incidents that go on, read page by page, on both stores."""

from collections.abc import AsyncIterator

import pytest
from sqlalchemy import update

from services.relay.model import Status
from services.relay.outbox.incidents import PAGE_SIZE, iterate_open_incidents
from services.relay.outbox.store import Store, open_store
from services.relay.outbox.tables import events
from shared.sql.database_url import DatabaseUrl
from tests.relay.monitors.monitored_outbox import START, event
from tests.relay.outbox.actions import accept
from tests.stores import each_store

FIRES = event(("A", Status.FIRING))


@pytest.fixture
async def store(database: DatabaseUrl) -> AsyncIterator[Store]:
    async with open_store(database, lambda: START) as store:
        yield store


@each_store
async def test_pages_hold_every_open_incident_once(store: Store) -> None:
    names = [f"{number:03}" for number in range(2 * PAGE_SIZE + 5)]
    for name in reversed(names):
        await accept(store, name, event=FIRES, is_open=name != "007")
    found = [incident.id async for incident in iterate_open_incidents(store)]
    assert found == [name for name in reversed(names) if name != "007"]


async def test_an_event_that_another_program_wrote_does_not_hide_the_others(store: Store) -> None:
    await accept(store, "one", event=FIRES)
    await accept(store, "two", event=FIRES)
    broken = update(events).where(events.c.incident_id == "one").values(event=b"{")
    await store.run(lambda transaction: transaction.connection.execute(broken))
    found = [(incident.id, incident.event) async for incident in iterate_open_incidents(store)]
    assert found == [("one", None), ("two", FIRES)]
