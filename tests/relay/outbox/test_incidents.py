"""The incidents that go on, read page by page, on both stores."""

from collections.abc import AsyncIterator

import pytest
from sqlalchemy import update

from services.relay.model import Event, Status
from services.relay.outbox.accept import DeliveryPlan, IncomingEvent, accept_event
from services.relay.outbox.incidents import (
    PAGE_SIZE,
    iterate_open_incidents,
)
from services.relay.outbox.store import Store, open_store
from services.relay.outbox.tables import events
from shared.sql.database_url import DatabaseUrl
from tests.relay.monitors.monitored_outbox import START, event

FIRES = event(("A", Status.FIRING))


@pytest.fixture
async def store(database: DatabaseUrl) -> AsyncIterator[Store]:
    async with open_store(database, lambda: START) as store:
        yield store


async def accept(
    store: Store, incident: str, event: Event = FIRES, *, is_open: bool = True, body: bytes = b"{}"
) -> str:
    incoming = IncomingEvent(event, incident, "", "A", body)
    accepted = await accept_event(
        store, incoming, lambda _state, _now: DeliveryPlan(3, is_open=is_open, channels=("slack",))
    )
    return accepted.event_id


async def test_pages_hold_every_open_incident_once(store: Store) -> None:
    names = [f"{number:03}" for number in range(2 * PAGE_SIZE + 5)]
    for name in reversed(names):
        await accept(store, name, is_open=name != "007")
    found = [incident.id async for incident in iterate_open_incidents(store)]
    assert found == [name for name in names if name != "007"]


async def test_an_event_that_another_program_wrote_does_not_hide_the_others(store: Store) -> None:
    await accept(store, "one")
    await accept(store, "two")
    broken = update(events).where(events.c.incident_id == "one").values(event=b"{")
    await store.run(lambda transaction: transaction.connection.execute(broken))
    found = [(incident.id, incident.event) async for incident in iterate_open_incidents(store)]
    assert found == [("one", None), ("two", FIRES)]
