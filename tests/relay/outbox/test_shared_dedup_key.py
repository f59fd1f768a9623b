"""What an open incident needs of those of its group: as long as it lives, and none of them told its alerts as over."""

from collections.abc import AsyncIterator
from dataclasses import replace

import pytest
from sqlalchemy import text, update

from services.relay.model import DeliveryTask, Event, Status, compute_digest
from services.relay.outbox.accept import DeliveryPlan, IncomingEvent, accept_event
from services.relay.outbox.claim import ClaimRequest, claim_due, save_progress
from services.relay.outbox.store import Store, open_store
from services.relay.outbox.tables import DeliveryState, deliveries, events
from shared.sql.database_url import DatabaseUrl
from tests.relay.outbox.actions import accept, claim_one, end_attempt, nothing_due, prepare
from tests.relay.served_relay import event_of

DAY = 24 * 3600.0


@pytest.fixture
async def store(database: DatabaseUrl) -> AsyncIterator[Store]:
    async with open_store(database, lambda: 1000.0) as store:
        yield store


def group(status: str = "firing", /, **alerts: str) -> Event:
    (one,) = event_of().alerts
    alert_states = tuple(replace(one, fingerprint=name, status=Status(each)) for name, each in alerts.items())
    return event_of(status, alerts=alert_states)


async def come(store: Store, incident: str, event: Event) -> None:
    """Accepts it, and delivers what waits."""
    plan = DeliveryPlan(1, is_open=event.status is Status.FIRING, channels=("a",))
    await accept_event(store, IncomingEvent(event, incident, "", "Down", b"{}"), lambda _state, _now: plan)
    if plan.is_open:
        await _stays_open(store)


async def _claim_with_group(store: Store) -> DeliveryTask:
    (one,) = (await claim_due(store, ClaimRequest("a", 1, "me", 20, None, dedup_channels=("a",)))).tasks
    return await prepare(store, one, acknowledges=True)


async def _stays_open(store: Store) -> bool:
    one = await _claim_with_group(store)
    await end_attempt(store, one)
    return one.keep_open


async def ends(store: Store, incident: str, **alerts: str) -> bool:
    """Whether its end leaves open what the others need."""
    await come(store, incident, group("resolved", **alerts or {"X": "resolved"}))
    return await _stays_open(store)


async def go(store: Store, seconds: float) -> None:
    """Everything was accepted that much earlier."""
    earlier = update(events).values(accepted_at=events.c.accepted_at - seconds)
    await store.run(lambda transaction: transaction.connection.execute(earlier))


async def test_one_that_has_been_quiet_for_a_day_needs_nothing(store: Store) -> None:
    await come(store, "gone", replace(group(A="firing"), truncated_alerts=1))
    await go(store, DAY - 60)
    assert await ends(store, "other")
    await come(store, "repeated", group(A="firing"))
    await go(store, 120)
    assert await ends(store, "other"), "one that was told again lives"
    await go(store, DAY)
    assert not await ends(store, "other")


async def test_an_alert_that_another_incident_ended_last_is_over_until_an_event_of_its_own_fires_it_again(
    store: Store,
) -> None:
    await come(store, "one", group(A="firing", B="firing"))
    await come(store, "two", group(A="resolved", C="firing"))
    await come(store, "three", group(B="resolved", D="firing"))
    await come(store, "two", group(A="firing"))
    assert await ends(store, "four")
    await come(store, "three", group(D="resolved", E="firing"))
    assert await ends(store, "two", A="resolved"), "three fires"
    assert not await ends(store, "three", D="resolved", E="resolved")
    await come(store, "one", group(A="firing", B="firing"))
    assert await ends(store, "three", E="resolved")


async def test_what_is_not_listed_counts_too(store: Store) -> None:
    await come(store, "one", replace(group(A="firing"), unlisted_firing=compute_digest("B")))
    assert await ends(store, "two", A="resolved")
    await come(store, "two", replace(group("resolved", A="resolved"), unlisted_resolved=compute_digest("B")))
    assert not await _stays_open(store)


async def test_what_a_replica_commits_late_under_an_earlier_number_is_reported_again_after_an_end(
    postgres_database: DatabaseUrl,
) -> None:
    async with open_store(postgres_database, lambda: 1000.0) as store:
        await come(store, "ends", group(A="firing"))
        await _number(store, "SELECT nextval('events_seq_seq')")  # another replica has it, and does not commit yet
        await come(store, "ends", group("resolved", A="resolved"))
        (ending,) = (await claim_due(store, ClaimRequest("a", 1, "me", 20, None, dedup_channels=("a",)))).tasks
        await _number(store, "SELECT setval('events_seq_seq', (SELECT max(seq) - 2 FROM events))")
        await come(store, "begins", group(A="firing"))
        await end_attempt(store, ending, payload=b"sent")
        (second,) = (await claim_due(store, ClaimRequest("a", 1, "me", 20, None, dedup_channels=("a",)))).tasks
        assert (second.incident_id, second.last_event_seq < ending.last_event_seq) == ("begins", True)


async def _number(store: Store, of: str) -> None:
    await store.run(lambda transaction: transaction.connection.execute(text(of)).all())


async def _restart(store: Store, episode: int, status: str = "firing") -> DeliveryTask:
    """The claim of what waits for PagerDuty once the next episode has begun, as it goes there."""
    await accept(store, "x", episode=episode, is_open=status == "firing", event=event_of(status))
    return await prepare(store, await claim_one(store), acknowledges=True)


async def test_a_resolve_that_did_not_arrive_comes_before_the_next_episode(store: Store) -> None:
    first = await _restart(store, 1)
    assert not first.resolves_earlier
    await end_attempt(store, first)
    ending = await _restart(store, 1, "resolved")
    assert not ending.resolves_earlier
    await end_attempt(store, ending, DeliveryState.RETRYING, reason="server_error")
    second = await _restart(store, 2)
    assert second.resolves_earlier
    await end_attempt(store, second)
    repeated = await _restart(store, 2)
    assert not repeated.resolves_earlier, "the channel has this episode"
    await end_attempt(store, repeated)
    await end_attempt(store, await _restart(store, 2, "resolved"))
    third = await _restart(store, 3)
    assert not third.resolves_earlier, "the resolve arrived"
    await end_attempt(store, third)
    await end_attempt(store, await _restart(store, 3, "resolved"), DeliveryState.DEAD, reason="rejected")
    assert (await _restart(store, 4)).resolves_earlier, "the resolve was given up"


async def test_an_episode_that_nobody_was_notified_of_needs_no_resolve(store: Store) -> None:
    await end_attempt(store, await _restart(store, 1), DeliveryState.RETRYING, reason="unreachable")
    await accept(store, "x", is_open=False, event=event_of("resolved"))
    second = await _restart(store, 2)
    assert not second.resolves_earlier
    await end_attempt(store, second, DeliveryState.RETRYING, reason="timeout", maybe_sent=True)
    await accept(store, "x", episode=2, is_open=False, event=event_of("resolved"))
    assert (await _restart(store, 3)).resolves_earlier, "it may have arrived"


async def test_what_was_begun_of_an_episode_is_not_resolved_again(store: Store) -> None:
    await end_attempt(store, await _restart(store, 1))
    begun = await _restart(store, 2)
    assert begun.resolves_earlier
    assert await save_progress(store, begun, {"earlier_resolved": "yes"})
    await end_attempt(store, begun, DeliveryState.RETRYING, reason="timeout", maybe_sent=True)
    assert not (await _restart(store, 2)).resolves_earlier, "its trigger may have arrived, and was perhaps acknowledged"


async def test_an_earlier_episode_stays_open_where_another_incident_needs_its_key(store: Store) -> None:
    await come(store, "one", group(A="firing"))
    await come(store, "two", group(B="firing"))
    await accept(store, "one", is_open=False, event=group("resolved", A="resolved"))
    await accept(store, "one", episode=2, event=group(A="firing"))
    second = await _claim_with_group(store)
    assert (second.incident_id, second.keep_open, second.resolves_earlier) == ("one", True, False)


async def test_what_was_begun_of_an_earlier_episode_is_resolved(store: Store) -> None:
    begun = await _restart(store, 1)
    assert await save_progress(store, begun, {"triggered": "yes"})
    await end_attempt(store, begun, DeliveryState.RETRYING, reason="server_error")
    await accept(store, "x", is_open=False, event=event_of("resolved"))
    assert (await _restart(store, 2)).resolves_earlier


async def _claim_on(store: Store, channel: str) -> DeliveryTask:
    """The next claim of one of two channels with one key, as it goes there."""
    (one,) = (await claim_due(store, ClaimRequest(channel, 1, "me", 20, None, dedup_channels=("a", "b")))).tasks
    return await prepare(store, one, acknowledges=True)


@pytest.mark.parametrize("is_resolved", [True, False])
async def test_of_two_channels_with_one_key_the_second_resolves_nothing_that_the_first_has_begun(
    store: Store, *, is_resolved: bool
) -> None:
    await accept(store, "x", "a", "b")
    for channel in ("a", "b"):
        await end_attempt(store, await _claim_on(store, channel))
    await accept(store, "x", "a", is_open=False, event=event_of("resolved"))
    await end_attempt(store, await _claim_on(store, "a"), DeliveryState.DEAD, reason="rejected")
    await accept(store, "x", "a", "b", episode=2)
    first = await _claim_on(store, "a")
    assert first.resolves_earlier
    if is_resolved:
        assert await save_progress(store, first, {"earlier_resolved": "yes"})
    await end_attempt(store, first, DeliveryState.RETRYING, reason="timeout", maybe_sent=True)
    second = await _claim_on(store, "b")
    assert second.resolves_earlier != is_resolved, "without progress the resolve itself may be lost"
    await end_attempt(store, second)


async def test_a_resolve_by_one_of_two_channels_with_one_key_is_enough(store: Store) -> None:
    await accept(store, "x", "a", "b")
    for channel in ("a", "b"):
        await end_attempt(store, await _claim_on(store, channel))
    await accept(store, "x", "a", is_open=False, event=event_of("resolved"))
    await end_attempt(store, await _claim_on(store, "a"))
    await accept(store, "x", "b", episode=2)
    assert not (await _claim_on(store, "b")).resolves_earlier


@pytest.mark.parametrize("delivered_up_to", [2, 3])
async def test_after_a_restored_backup_nobody_is_called_twice(store: Store, delivered_up_to: int) -> None:
    await end_attempt(store, await _restart(store, 1))
    await accept(store, "x", is_open=False, event=event_of("resolved"))
    await accept(store, "x", episode=2)
    restored = update(deliveries).where(deliveries.c.event_seq == 3).values(maybe_delivered_up_to=delivered_up_to)
    await store.run(lambda transaction: transaction.connection.execute(restored))
    second = await prepare(store, await claim_one(store), acknowledges=True)
    assert second.resolves_earlier == (delivered_up_to == 2)  # what began after it, nobody was called for


async def test_two_incidents_of_a_group_that_restart_at_the_same_time_are_each_sent_once(store: Store) -> None:
    for incident in ("one", "two"):
        await come(store, incident, group(A="firing"))
    for incident in ("one", "two"):
        await come(store, incident, group("resolved", A="resolved"))
        await _stays_open(store)
    for incident in ("one", "two"):
        await accept(store, incident, episode=2, event=group(A="firing"))
    first, second = (await _claim_with_group(store), await _claim_with_group(store))
    for claim in (second, first):
        await end_attempt(store, claim, payload=b"sent")
    assert await nothing_due(store)
