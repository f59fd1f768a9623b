"""An incident of the relay's own starts once and ends once, whichever replica publishes it."""

import asyncio
from collections.abc import AsyncIterator
from functools import partial

import pytest

from services.relay.model import Status, build_incident_id
from services.relay.monitors.self_alerts import SelfAlert
from services.relay.outbox.incidents import Incident, read_open_incident
from shared.sql.database_url import DatabaseUrl
from tests.relay.monitors.monitored_outbox import Clock, MonitoredOutbox, event, open_monitored_outbox
from tests.stores import each_store

OWN = SelfAlert(
    "watchdog/Watchdog",
    {"alertname": "WatchdogAbsent", "severity": "critical"},
    "a title",
    "a summary",
    "a description",
)
FIRING, RESOLVED = Status.FIRING, Status.RESOLVED


@pytest.fixture
async def at(database: DatabaseUrl) -> AsyncIterator[MonitoredOutbox]:
    async with open_monitored_outbox(database, Clock()) as at:
        yield at


async def opened(at: MonitoredOutbox, incident_id: str = OWN.incident_id) -> Incident | None:
    return await at.store.read(partial(read_open_incident, incident_id=incident_id))


async def going_on(at: MonitoredOutbox) -> Incident:
    incident = await opened(at)
    assert incident is not None
    return incident


@each_store
async def test_of_two_replicas_one_does(at: MonitoredOutbox, database: DatabaseUrl) -> None:
    async with open_monitored_outbox(database, Clock()) as other:
        begun = await asyncio.gather(*(each.publisher.fire(OWN, ["email"]) for each in (at, other) * 5))
        assert begun.count(True) == 1
        incident = await going_on(other)
        over = await asyncio.gather(*(each.publisher.resolve(incident, "over") for each in (at, other) * 5))
        assert over.count(True) == 1
    assert [published.event.status for published in await at.list_published()] == [FIRING, RESOLVED]


async def test_its_end_goes_where_it_was_reported_with_a_remark_and_counts_what_it_merged(at: MonitoredOutbox) -> None:
    await at.publisher.fire(OWN, ["email", "pagerduty"])
    assert await at.publisher.resolve(await going_on(at), "it is back")
    published, channels = (await at.list_published())[-1]
    assert channels == {"email", "pagerduty"}
    assert (published.source, published.receiver) == ("keypulse", "keypulse-relay")
    assert (published.status, published.remark) == (RESOLVED, "it is back")
    assert set(at.woken) == {"email", "pagerduty"}
    assert published.alerts[0].ends_at is not None
    assert await opened(at) is None
    superseded = {"channel": "email", "outcome": "superseded"}
    assert at.registry.get_sample_value("relay_deliveries_total", superseded) == 1


async def test_an_incident_that_has_changed_since_is_not_ended(at: MonitoredOutbox) -> None:
    fires = event(("A", FIRING))
    await at.accept(fires)
    incident = await opened(at, build_incident_id(fires))
    assert incident is not None
    await at.accept(event(("A", FIRING), ("B", FIRING)))
    assert not await at.publisher.resolve(incident, "")
    assert len(await at.list_published()) == 2


async def test_what_was_reported_resolved_is_not_reported_again(at: MonitoredOutbox) -> None:
    mixed = event(("A", RESOLVED), ("B", FIRING))
    await at.accept(mixed)
    incident = await opened(at, build_incident_id(mixed))
    assert incident is not None
    assert await at.publisher.resolve(incident, "")
    (alert,) = (await at.list_published())[-1].event.alerts
    assert (alert.labels["alertname"], alert.status) == ("B", RESOLVED)
    assert alert.ends_at is not None
    assert alert.ends_at >= alert.starts_at
