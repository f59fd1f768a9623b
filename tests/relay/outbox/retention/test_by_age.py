"""Retention, on both stores: what goes, and what stays, such as the events that an unsettled delivery still needs."""

import threading
import time

import pytest

from services.relay.model import Event, Status, build_incident_id, decode_event, encode_event
from services.relay.outbox.accept import DeliveryPlan, IncomingEvent, accept_event
from services.relay.outbox.dead_letters import requeue
from services.relay.outbox.incidents import IncidentState
from services.relay.outbox.retention import PruneResult, prune_by_age
from services.relay.outbox.store import Store
from services.relay.outbox.tables import UNFINISHED, DeliveryState, attempts, incidents
from tests.relay.monitors.monitored_outbox import event as build_event
from tests.relay.outbox.actions import claim_one, read_event
from tests.relay.outbox.rows import Rows
from tests.relay.served_relay import event_of
from tests.stores import each_store

DAY = 86400.0
NO_LIMIT = 1_000_000
NOT_DELIVERED = (DeliveryState.QUEUED, DeliveryState.RETRYING, DeliveryState.DEAD)


@each_store
async def test_what_is_over_and_old_goes_with_its_attempts(store: Store, rows: Rows) -> None:
    old = await rows.event(age=2 * DAY, goes_on=False)
    await rows.delivery(old, "slack")
    await rows.delivery(old, "email", DeliveryState.SUPERSEDED)
    young = await rows.event(age=DAY / 2, goes_on=False)
    remaining = await rows.delivery(young)
    assert await prune_by_age(store, DAY, NO_LIMIT) == PruneResult(deliveries=2, events=1)
    assert await rows.left() == {remaining}
    assert await rows.events() == [young]
    assert await rows.count(attempts) == 1


async def test_the_age_counts_from_the_end_of_a_delivery(store: Store, rows: Rows) -> None:
    event = await rows.event(age=2 * DAY, goes_on=False)
    now = await store.run(lambda transaction: transaction.now)
    late = await rows.delivery(event, finished_at=now - DAY / 2)
    await prune_by_age(store, DAY, NO_LIMIT)
    assert await rows.left() == {late}


async def test_what_is_still_to_be_delivered_stays_with_what_was_delivered_before_of_its_incident_however_old_it_is(
    store: Store, rows: Rows
) -> None:
    remaining, ends = set(), []
    for state in UNFINISHED:
        remaining.add(await rows.delivery(await rows.event(state, age=99 * DAY)))
        ends.append(await rows.event(state, age=98 * DAY, goes_on=False))
        remaining.add(await rows.delivery(ends[-1], "slack", state))
    assert await prune_by_age(store, DAY, 1) == PruneResult(0, 0)
    assert await rows.left() == remaining
    assert set(ends) <= set(await rows.events())


async def test_of_what_was_reported_the_newest_are_kept_and_what_was_given_up_is_not_among_them(
    store: Store, rows: Rows
) -> None:
    stored = []
    for number in range(6):
        event = await rows.event(f"{number}", age=60 - number, goes_on=False)
        stored.append(
            await rows.delivery(event, "slack", DeliveryState.DEAD if number == 1 else DeliveryState.DELIVERED)
        )
    await prune_by_age(store, DAY, 2)
    assert await rows.left() == {stored[1], stored[4], stored[5]}


async def test_what_was_given_up_keeps_what_was_delivered_of_its_incident(store: Store, rows: Rows) -> None:
    event = await rows.event(age=60, goes_on=False)
    remaining = {
        await rows.delivery(event),
        await rows.delivery(event, "slack", DeliveryState.DEAD),
        await rows.delivery(event, "slack", DeliveryState.DEAD),
    }
    await rows.delivery(await rows.event("newer", goes_on=False))
    remaining.add(await rows.delivery(await rows.event("newest", goes_on=False)))
    await prune_by_age(store, DAY, 1)
    assert await rows.left() == remaining


async def test_what_was_given_up_goes_by_its_age(store: Store, rows: Rows) -> None:
    await rows.delivery(await rows.event("old", age=2 * DAY, goes_on=False), "slack", DeliveryState.DEAD)
    young = await rows.delivery(await rows.event("young", age=DAY / 2, goes_on=False), "slack", DeliveryState.DEAD)
    await prune_by_age(store, DAY, 1)
    assert await rows.left() == {young}


async def test_an_open_incident_keeps_where_it_is_reported_and_what_to_reply_to(store: Store, rows: Rows) -> None:
    before = await rows.event(age=9 * DAY)
    await rows.delivery(before, "slack")
    event = await rows.event(age=8 * DAY, episode=2)
    oldest = await rows.delivery(event, "slack", DeliveryState.SUPERSEDED, episode=2)
    only = await rows.delivery(event, "email", DeliveryState.SUPERSEDED, episode=2)
    event = await rows.event(age=7 * DAY, episode=2)
    replied_to = await rows.delivery(event, "slack", episode=2)
    await rows.delivery(event, "slack", DeliveryState.SUPERSEDED, episode=2)
    await rows.delivery(await rows.event(age=6 * DAY, episode=2), "slack", episode=2)
    await prune_by_age(store, DAY, 1)
    assert await rows.left() == {oldest, only, replied_to}
    await prune_by_age(store, DAY, 1)
    assert await rows.left() == {oldest, only, replied_to}


async def test_an_incident_whose_end_is_not_reported_keeps_what_to_reply_to(store: Store, rows: Rows) -> None:
    remaining = set()
    for state in NOT_DELIVERED:
        remaining.add(await rows.delivery(await rows.event(state, age=3 * DAY)))
        await rows.delivery(await rows.event(state, age=2 * DAY))
        remaining.add(await rows.delivery(await rows.event(state, age=DAY / 2, goes_on=False), "slack", state))
    await prune_by_age(store, DAY, 1)
    assert await rows.left() == remaining


async def test_every_event_stays_that_a_delivery_may_still_have_to_report(store: Store, rows: Rows) -> None:
    await rows.event("other", age=4 * DAY, goes_on=False)
    remaining = []
    for state in NOT_DELIVERED:
        first, merged, last = [await rows.event(state, age=age) for age in (3 * DAY, 3 * DAY, DAY / 2)]
        await rows.delivery(last, "slack", state, first_event_seq=first)
        remaining += [first, merged, last, await rows.event(state, age=DAY / 2, goes_on=False)]
    await prune_by_age(store, DAY, NO_LIMIT)
    assert await rows.events() == remaining


async def test_an_event_stays_until_its_last_channel_is_pruned(store: Store, rows: Rows) -> None:
    event = await rows.event(age=2 * DAY)
    await rows.delivery(event, "slack")
    now = await store.run(lambda transaction: transaction.now)
    await rows.delivery(event, "email", finished_at=now - DAY / 2)
    latest = await rows.event(age=DAY / 3, goes_on=False)
    await prune_by_age(store, DAY, NO_LIMIT)
    assert await rows.events() == [event, latest]
    await prune_by_age(store, DAY / 4, NO_LIMIT)
    assert await rows.events() == []


@each_store
async def test_a_closed_incident_goes_with_its_last_event_and_an_open_one_stays(store: Store, rows: Rows) -> None:
    await rows.delivery(await rows.event("closed", age=2 * DAY, goes_on=False))
    young = await rows.event("young", age=DAY / 2, goes_on=False)
    await rows.delivery(young)
    still = await rows.event("open", age=2 * DAY)
    delivered = await rows.delivery(still)
    await prune_by_age(store, DAY, 1)
    assert await rows.events() == [young, still]
    assert delivered in await rows.left()
    assert await rows.count(incidents) == 2


async def test_an_open_incident_stays_that_no_channel_reported(store: Store, rows: Rows) -> None:
    event = await rows.event(age=9 * DAY)
    await prune_by_age(store, DAY, 1)
    assert await rows.events() == [event]
    assert await rows.count(incidents) == 1


async def test_an_incident_stays_while_one_of_its_deliveries_does(store: Store, rows: Rows) -> None:
    first = await rows.event(age=3 * DAY)
    now = await store.run(lambda transaction: transaction.now)
    await rows.delivery(first, finished_at=now - DAY / 2)
    latest = await rows.event(age=2 * DAY, goes_on=False)
    await prune_by_age(store, DAY, NO_LIMIT)
    assert await rows.events() == [first, latest]
    assert await rows.count(incidents) == 1


async def test_a_repeat_is_known_for_one_when_the_deliveries_of_what_it_repeats_are_gone(
    store: Store, rows: Rows
) -> None:
    event = event_of("resolved")
    incoming = IncomingEvent(event, build_incident_id(event), "same", "KMSTest", b"{}")
    states: list[IncidentState | None] = []

    def decide(state: IncidentState | None, _now: float) -> DeliveryPlan | None:
        states.append(state)
        return None if state else DeliveryPlan(1, is_open=False, channels=())

    await accept_event(store, incoming, decide)
    for number in range(3):
        await rows.delivery(await rows.event(f"{number}", goes_on=False))
    await prune_by_age(store, DAY, 1)
    assert (await accept_event(store, incoming, decide)).is_duplicate
    assert [state is not None for state in states] == [False, True]


FIRING, RESOLVED = Status.FIRING, Status.RESOLVED


class Incident:
    """One whose events are a day old; what came of a delivery of one ended a moment ago."""

    def __init__(self, store: Store) -> None:
        self.rows = Rows(store)

    async def event(self, *alerts: tuple[str, Status]) -> int:
        goes_on = any(status is FIRING for _, status in alerts)
        return await self.rows.event(age=2 * DAY, goes_on=goes_on, event_json=encode_event(build_event(*alerts)))

    async def given_up(self, seq: int, **more: int) -> str:
        return await self.rows.delivery(seq, "a", DeliveryState.DEAD, finished_at=time.time(), **more)


@pytest.fixture
def incident(store: Store) -> Incident:
    return Incident(store)


@each_store
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


async def test_events_of_a_megabyte_are_compared_beside_the_event_loop(
    store: Store, incident: Incident, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads: list[threading.Thread] = []

    def decode(event_json: bytes) -> Event:
        threads.append(threading.current_thread())
        return decode_event(event_json)

    monkeypatch.setattr("services.relay.outbox.retention.decode_event", decode)
    await incident.given_up(await incident.event(("A", FIRING)))
    await incident.event(("A", RESOLVED))
    await prune_by_age(store, DAY, 1)
    assert threads
    assert threading.current_thread() not in threads


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
