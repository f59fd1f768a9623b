"""Retention, on both stores: what goes, and what stays."""

import pytest

from services.relay.model import build_incident_id
from services.relay.outbox.accept import DeliveryPlan, IncomingEvent, accept_event
from services.relay.outbox.incidents import IncidentState
from services.relay.outbox.retention import PruneResult, prune_by_age
from services.relay.outbox.store import Store
from services.relay.outbox.tables import UNFINISHED, DeliveryState, attempts, incidents
from tests.relay.outbox.rows import Rows
from tests.relay.served_relay import event_of

DAY = 86400.0
NO_LIMIT = 1_000_000


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


@pytest.mark.parametrize("state", UNFINISHED)
async def test_what_is_still_to_be_delivered_stays_however_old_it_is(
    store: Store, rows: Rows, state: DeliveryState
) -> None:
    event = await rows.event(age=99 * DAY, goes_on=False)
    waiting = await rows.delivery(event, "slack", state)
    assert await prune_by_age(store, DAY, 1) == PruneResult(0, 0)
    assert await rows.left() == {waiting}
    assert await rows.events() == [event]


@pytest.mark.parametrize("state", UNFINISHED)
async def test_what_is_still_to_be_delivered_keeps_what_was_delivered_before_of_its_incident(
    store: Store, rows: Rows, state: DeliveryState
) -> None:
    delivered = await rows.delivery(await rows.event(age=99 * DAY))
    end = await rows.event(age=98 * DAY, goes_on=False)
    waiting = await rows.delivery(end, "slack", state)
    assert await prune_by_age(store, DAY, 1) == PruneResult(0, 0)
    assert await rows.left() == {delivered, waiting}
    assert end in await rows.events()


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


@pytest.mark.parametrize("state", [DeliveryState.QUEUED, DeliveryState.RETRYING, DeliveryState.DEAD])
async def test_an_incident_whose_end_is_not_reported_keeps_what_to_reply_to(
    store: Store, rows: Rows, state: DeliveryState
) -> None:
    page = await rows.delivery(await rows.event(age=3 * DAY, goes_on=True))
    await rows.delivery(await rows.event(age=2 * DAY, goes_on=True))
    end = await rows.delivery(await rows.event(age=DAY / 2, goes_on=False), "slack", state)
    await prune_by_age(store, DAY, 1)
    assert await rows.left() == {page, end}


@pytest.mark.parametrize("state", [DeliveryState.QUEUED, DeliveryState.RETRYING, DeliveryState.DEAD])
async def test_every_event_stays_that_a_delivery_may_still_have_to_report(
    store: Store, rows: Rows, state: DeliveryState
) -> None:
    untold = await rows.event("other", age=4 * DAY, goes_on=False)
    first = await rows.event(age=3 * DAY)
    merged = await rows.event(age=3 * DAY)
    last = await rows.event(age=DAY / 2)
    await rows.delivery(last, "slack", state, first_event_seq=first)
    latest = await rows.event(age=DAY / 2, goes_on=False)
    await prune_by_age(store, DAY, NO_LIMIT)
    assert await rows.events() == [first, merged, last, latest]
    assert untold not in await rows.events()


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
