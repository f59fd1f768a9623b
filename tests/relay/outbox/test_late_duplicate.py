"""The other Alertmanager of an HA pair sends what it saw some time ago: nothing is told, and nothing changes."""

from collections.abc import AsyncIterator
from dataclasses import replace

import pytest

from services.relay.intake.acceptance import plan_event
from services.relay.model import Event, Status, build_fingerprint, build_incident_id
from services.relay.outbox.accept import AcceptResult, DeliveryPlan, IncomingEvent, accept_event
from services.relay.outbox.incidents import IncidentState
from services.relay.outbox.store import Store, open_store
from shared.sql.database_url import DatabaseUrl
from tests.relay.outbox.actions import claim_one, nothing_due
from tests.relay.served_relay import at, event_of

FIRING, RESOLVED = Status.FIRING, Status.RESOLVED


@pytest.fixture
async def store(database: DatabaseUrl) -> AsyncIterator[Store]:
    async with open_store(database, lambda: 1000.0) as store:
        yield store


def group(*alerts: tuple[str, Status, float]) -> Event:
    (one,) = event_of().alerts
    replaced = tuple(
        replace(one, fingerprint=name, status=status, starts_at=at(start)) for name, status, start in alerts
    )
    firing = any(status is FIRING for _, status, _ in alerts)
    return event_of("firing" if firing else "resolved", alerts=replaced)


async def come(store: Store, event: Event) -> AcceptResult:
    def decide(state: IncidentState | None, now: float) -> DeliveryPlan | None:
        content = build_fingerprint(event)
        return plan_event(
            event,
            state,
            fingerprint=content,
            now=now,
            duplicate_window=60,
            routed_channels=("a",),
            configured_channels=("a",),
        )

    return await accept_event(
        store, IncomingEvent(event, build_incident_id(event), build_fingerprint(event), "Down", b"{}"), decide
    )


async def test_it_takes_back_no_alert_that_came_since(store: Store) -> None:
    one, two = group(("A", FIRING, 1)), group(("A", FIRING, 1), ("B", FIRING, 2))
    await come(store, one)
    latest = await come(store, two)
    for late in (one, one, two):
        assert await come(store, late) == AcceptResult(latest.event_id, 1, is_duplicate=True, channels=())
    assert (await claim_one(store)).task.last_event_seq == 2
    assert await nothing_due(store)


async def test_it_ends_nothing_that_fires_again(store: Store) -> None:
    fired, ended, refired = (group(("A", status, start)) for status, start in ((FIRING, 1), (RESOLVED, 1), (FIRING, 9)))
    for event in (fired, ended, refired):
        assert not (await come(store, event)).is_duplicate
    assert (await come(store, ended)).is_duplicate
    assert (await come(store, fired)).is_duplicate
    assert not (await come(store, group(("A", RESOLVED, 9)))).is_duplicate
    assert not (await come(store, refired)).is_duplicate, "a firing after a resolve is always news"


async def test_the_end_of_what_is_gone_ends_nothing_that_started_since(store: Store) -> None:
    fired, ended, latest = group(("A", FIRING, 1)), group(("A", RESOLVED, 1)), group(("B", FIRING, 9))
    for event in (fired, ended, latest):
        assert not (await come(store, event)).is_duplicate
    assert (await come(store, ended)).is_duplicate
    assert not (await come(store, group(("A", RESOLVED, 1), ("B", RESOLVED, 9)))).is_duplicate


async def test_it_fires_nothing_again_that_ended_while_another_one_started(store: Store) -> None:
    fired, latest = group(("A", FIRING, 1)), group(("A", RESOLVED, 1), ("B", FIRING, 9))
    await come(store, fired)
    await come(store, latest)
    assert (await come(store, fired)).is_duplicate
    await come(store, group(("A", RESOLVED, 1), ("B", RESOLVED, 9)))
    assert not (await come(store, fired)).is_duplicate, "a firing after a resolve is always news"


async def test_only_the_last_few_events_are_remembered(store: Store) -> None:
    events = [group(("A", FIRING, 1), *((str(number), FIRING, 1) for number in range(most))) for most in range(12)]
    for event in events:
        await come(store, event)
    assert [(await come(store, event)).is_duplicate for event in (events[4], events[2])] == [True, False]
