"""The events that an unsettled delivery still needs are left, and no more than those, on both stores."""

import time

import pytest

from services.relay.model import Status, encode_event
from services.relay.outbox.dead_letters import requeue
from services.relay.outbox.retention import prune_by_age
from services.relay.outbox.store import Store
from services.relay.outbox.tables import DeliveryState
from tests.relay.monitors.monitored_outbox import event
from tests.relay.outbox.actions import claim_one, read_event
from tests.relay.outbox.rows import Rows

DAY = 86400.0
FIRING, RESOLVED = Status.FIRING, Status.RESOLVED


class Incident:
    """One whose events are a day old; what came of a delivery of one ended a moment ago."""

    def __init__(self, store: Store) -> None:
        self.rows = Rows(store)

    async def event(self, *alerts: tuple[str, Status]) -> int:
        goes_on = any(status is FIRING for _, status in alerts)
        return await self.rows.event(age=2 * DAY, goes_on=goes_on, event_json=encode_event(event(*alerts)))

    async def given_up(self, seq: int, **more: int) -> str:
        return await self.rows.delivery(seq, "a", DeliveryState.DEAD, finished_at=time.time(), **more)


@pytest.fixture
def incident(store: Store) -> Incident:
    return Incident(store)


async def test_of_what_came_after_a_dead_letter_the_last_state_of_each_alert_is_left(
    store: Store, incident: Incident
) -> None:
    first = await incident.event(("A", FIRING), ("B", FIRING))
    dead = await incident.given_up(first)
    for _ in range(5):
        await incident.event(("A", FIRING), ("B", FIRING), ("C", FIRING))
    last_of_a = await incident.event(("A", RESOLVED), ("B", FIRING))
    last_of_c = await incident.event(("B", FIRING), ("C", RESOLVED))
    for _ in range(5):
        await incident.event(("B", FIRING))
    end = await incident.event(("B", RESOLVED))

    assert (await prune_by_age(store, DAY, 1)).events == 10

    assert await incident.rows.events() == [first, last_of_a, last_of_c, end]
    assert await requeue(store, dead) is DeliveryState.DEAD
    claimed_event = await read_event(store, await claim_one(store))
    assert {alert.labels["alertname"]: alert.status for alert in claimed_event.alerts} == dict.fromkeys("ABC", RESOLVED)


async def test_what_a_dead_letter_reports_itself_is_left_whole(store: Store, incident: Incident) -> None:
    events = [await incident.event(("A", FIRING)) for _ in range(3)]
    await incident.given_up(events[-1], first_event_seq=events[0])
    await incident.event(("A", FIRING))
    end = await incident.event(("A", RESOLVED))
    await prune_by_age(store, DAY, 1)
    assert await incident.rows.events() == [*events, end]


async def test_an_event_that_cannot_be_read_is_left(store: Store, incident: Incident) -> None:
    first = await incident.event(("A", FIRING))
    await incident.given_up(first)
    unreadable = await incident.rows.event(age=2 * DAY)
    end = await incident.event(("A", RESOLVED))
    await prune_by_age(store, DAY, 1)
    assert await incident.rows.events() == [first, unreadable, end]


async def test_once_the_dead_letter_is_gone_so_is_what_it_required(store: Store, incident: Incident) -> None:
    await incident.given_up(await incident.event(("A", FIRING), ("B", FIRING)))
    await incident.event(("A", RESOLVED), ("B", FIRING))
    await incident.event(("B", RESOLVED))
    await prune_by_age(store, 0.0, 1)
    assert await incident.rows.events() == []
