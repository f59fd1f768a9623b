"""Fallback channels deliver what waits for a channel that is down: in order, each event once."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from services.relay.deliveries.queries import DeliveryFilter, list_deliveries
from services.relay.outbox import fallback
from services.relay.outbox.breaker import FAILURE_THRESHOLD, ChannelEffect, commit_allow_trial
from services.relay.outbox.dead_letters import requeue
from services.relay.outbox.fallback import fall_back, fall_back_unserved
from services.relay.outbox.merge import DeliveryChanges
from services.relay.outbox.recovery import sweep
from services.relay.outbox.retention import prune_before
from services.relay.outbox.store import Store, open_store
from services.relay.outbox.tables import DeliveryState
from shared.sql import database_url
from shared.sql.database_url import DatabaseUrl
from tests.relay.outbox.actions import accept, claim_one, claim_some, end_attempt, nothing_due
from tests.relay.outbox.channel_breakers import Clock, enqueue, fail, open_breaker
from tests.relay.served_relay import event_of
from tests.stores import each_store

REMARK = "Also sent here because channel a is down."


@pytest.fixture
async def store(database: DatabaseUrl, clock: Clock) -> AsyncIterator[Store]:
    async with open_store(database, clock, frozenset({"every"})) as store:
        yield store


async def refuse(store: Store, channel: str = "a", *others: str) -> None:
    """One attempt says that the channel refuses everything."""
    claim = await claim_one(store, channel)
    await fail(store, claim, ChannelEffect.DOWN, reason="unauthorized", retry_in=300.0, fallback_channels=others)


async def all_of(store: Store, channel: str) -> list[tuple[str, int, int]]:
    """What a channel tells now, in this order: the incident, from which event to which."""
    claims = (await claim_some(store, channel, limit=200)).claims
    for claim in claims:
        assert claim.task.remark == REMARK
        await end_attempt(store, claim)
    return [(claim.task.incident_id, claim.task.first_event_seq, claim.task.last_event_seq) for claim in claims]


@each_store
async def test_all_that_waits_goes_to_the_others_in_order_and_once(store: Store) -> None:
    await enqueue(store, 4)
    await refuse(store, "a", "b", "every")
    assert await fall_back(store, "a", ("b", "every")) == DeliveryChanges(channels_to_wake=frozenset(("b", "every")))
    for channel in ("b", "every"):
        assert await all_of(store, channel) == [(f"a{number}", number + 1, number + 1) for number in range(4)]
    assert await fall_back(store, "a", ("b", "every")) == DeliveryChanges()
    assert await nothing_due(store, "b")


async def test_what_is_accepted_meanwhile_goes_there_too_and_no_event_twice(store: Store) -> None:
    await accept(store, "x")
    await refuse(store, "a", "b", "every")
    await fall_back(store, "a", ("b", "every"))
    assert await all_of(store, "b") == [("x", 1, 1)]
    await accept(store, "x")  # merged into what waits
    await accept(store, "y")
    await fall_back(store, "a", ("b", "every"))
    assert await all_of(store, "b") == [("x", 2, 2), ("y", 3, 3)]
    every = [await claim_one(store, "every") for _ in range(2)]  # of one incident one after the other
    assert [(claim.task.first_event_seq, claim.task.last_event_seq) for claim in every] == [(1, 1), (3, 3)]
    await end_attempt(store, every[0])
    assert await all_of(store, "every") == [("x", 2, 2)]


async def test_what_fell_back_is_not_reported_again_once_retention_has_pruned_it_there(store: Store) -> None:
    await accept(store, "x")
    await refuse(store, "a", "every")
    for number in (1, 2, 3):
        assert await all_of(store, "every") == [("x", number, number)]
        await accept(store, "x")
        await fall_back(store, "a", ("every",))
    pruned = await prune_before(store, await store.run(lambda transaction: transaction.now) + 1)
    assert (pruned.deliveries, pruned.events) == (4, 0)  # the first one stays while its incident is unsettled
    await accept(store, "x")
    await fall_back(store, "a", ("every",))
    assert await all_of(store, "every") == [("x", 4, 4)]
    assert await all_of(store, "every") == [("x", 5, 5)]


async def test_what_another_channel_reports_anyway_is_not_reported_twice(store: Store) -> None:
    await accept(store, "x", "a", "b")
    await accept(store, "x", "a")
    await refuse(store)
    assert await fall_back(store, "a", ("b",)) == DeliveryChanges(
        ended=(("b", DeliveryState.SUPERSEDED),), channels_to_wake=frozenset(("b",))
    )
    assert await all_of(store, "b") == [("x", 1, 2)]


async def test_a_beginning_and_an_end_that_fall_back_as_one_were_reported_to_nobody_there(store: Store) -> None:
    await accept(store, "x", event=event_of("firing"))
    hanging = await claim_one(store)
    await accept(store, "x", event=event_of("resolved"))
    await fail(store, hanging, ChannelEffect.DOWN, reason="unauthorized", retry_in=300.0, fallback_channels=("b",))
    claim = await claim_one(store, "b")
    assert (claim.task.first_event_seq, claim.task.last_event_seq, claim.task.firing_undelivered) == (1, 2, True)


async def test_an_end_that_falls_back_where_the_beginning_was_reported_is_an_end(store: Store) -> None:
    await accept(store, "x", "a", "b", event=event_of("firing"))
    await end_attempt(store, await claim_one(store, "b"))
    await accept(store, "x", event=event_of("resolved"))
    await refuse(store, "a", "b")
    claim = await claim_one(store, "b")
    assert (claim.task.first_event_seq, claim.task.last_event_seq, claim.task.firing_undelivered) == (2, 2, False)
    assert claim.task.first_receipt is not None


async def test_thousands_are_passed_on_in_steps(store: Store) -> None:
    await enqueue(store, 2 * fallback.FALLBACK_STEP + 2)
    await refuse(store, "a", "b")
    passed_on = []
    more = True
    while more:
        more = (await fall_back(store, "a", ("b",))).has_more
        passed_on.append(len((await list_deliveries(store, DeliveryFilter(channel="b"), limit=200)).deliveries))
    assert passed_on == [1 + fallback.FALLBACK_STEP, 1 + 2 * fallback.FALLBACK_STEP, 2 + 2 * fallback.FALLBACK_STEP]
    assert [each[0] for each in await all_of(store, "b")] == [
        f"a{number}" for number in range(2 * fallback.FALLBACK_STEP + 2)
    ]


async def test_what_a_third_one_stands_in_for_twice_is_reported_there_once(store: Store) -> None:
    await accept(store, "x")
    await refuse(store, "a", "b", "c")
    await refuse(store, "b", "a", "c")
    assert await all_of(store, "c") == [("x", 1, 1)]
    assert await fall_back(store, "b", ("a", "c")) == DeliveryChanges()
    assert await nothing_due(store, "c")


@pytest.mark.parametrize("others", [("b",), ()])
async def test_nothing_is_given_up_that_nobody_else_reports(store: Store, others: tuple[str, ...]) -> None:
    await enqueue(store, fallback.FALLBACK_STEP + 2)
    await refuse(store)
    swept = await sweep(store, -1, others, 360)
    assert swept.ended == (("a", DeliveryState.DEAD),) * (fallback.FALLBACK_STEP + 2)
    assert swept.channels_to_wake == {"a", *others}
    assert len(await all_of(store, "b")) == (fallback.FALLBACK_STEP + 2 if others else 0)


@pytest.mark.parametrize("effect", [ChannelEffect.DOWN, ChannelEffect.FAILED])
async def test_a_last_attempt_hands_on_what_no_step_did_before(store: Store, effect: ChannelEffect) -> None:
    await enqueue(store, 2)
    await refuse(store)
    await commit_allow_trial(store, ["a"])
    probe = await claim_one(store)
    recorded = await end_attempt(
        store, probe, DeliveryState.DEAD, channel_effect=effect, reason="timeout", fallback_channels=("b",)
    )
    assert recorded.channels_to_wake == ("a", "b")
    assert [each[0] for each in await all_of(store, "b")] == [probe.task.incident_id]


async def test_a_message_that_is_refused_itself_is_reported_by_nobody_else(store: Store) -> None:
    await accept(store, "x")
    await end_attempt(store, await claim_one(store), DeliveryState.DEAD, fallback_channels=("b",))
    assert await nothing_due(store, "b")


async def test_a_channel_that_cannot_be_reached_waits_for_itself(store: Store) -> None:
    await enqueue(store, FAILURE_THRESHOLD + 2)
    await fail(store, await claim_one(store), fallback_channels=("b",))
    await open_breaker(store)
    assert (await sweep(store, 3600, ("b",), 360)).ended == ()
    assert await nothing_due(store, "b")


@each_store
async def test_what_is_given_up_for_its_age_goes_to_the_others_whatever_its_channel_says(store: Store) -> None:
    await enqueue(store, FAILURE_THRESHOLD + fallback.FALLBACK_STEP)
    claim = await claim_one(store)
    gave_up = {"channel_effect": ChannelEffect.FAILED, "fallback_channels": ("b",), "is_expired": True}
    await end_attempt(store, claim, DeliveryState.DEAD, **gave_up)
    assert await all_of(store, "b") == [("a0", 1, 1)]
    await open_breaker(store)
    swept = await sweep(store, -1, ("a", "b"), 360)
    assert swept == DeliveryChanges(
        (("a", DeliveryState.DEAD),) * (FAILURE_THRESHOLD + fallback.FALLBACK_STEP - 1), frozenset({"a", "b"})
    )
    assert len(await all_of(store, "b")) == FAILURE_THRESHOLD + fallback.FALLBACK_STEP - 1
    assert await sweep(store, -1, ("a", "b"), 360) == DeliveryChanges()


async def test_what_a_crashed_relay_leased_goes_there_once_its_lease_ended(tmp_path: Path, clock: Clock) -> None:
    async with open_store(database_url.create_sqlite_url(tmp_path / "relay.db"), clock) as store:
        await enqueue(store, 2)
        await claim_one(store, owner="crashed")
        await refuse(store, "a", "b")
        assert await all_of(store, "b") == [("a1", 2, 2)]
        clock.now += 19
        assert await fall_back(store, "a", ("b",)) == DeliveryChanges()  # it may be under way
        clock.now += 1
        await fall_back(store, "a", ("b",))
        assert await all_of(store, "b") == [("a0", 1, 1)]


async def test_a_dead_letter_that_is_resent_goes_there_too(store: Store) -> None:
    await accept(store, "x")
    claim = await claim_one(store)
    await end_attempt(store, claim, DeliveryState.DEAD)
    await accept(store, "x")
    await accept(store, "y")
    await refuse(store)
    await fall_back(store, "a", ("b",))
    assert await requeue(store, claim.task.delivery_id) is DeliveryState.DEAD
    await fall_back(store, "a", ("b",))
    assert ("x", 1, 2) in await all_of(store, "b")


async def test_all_that_waits_for_a_channel_that_is_gone_goes_to_the_others_and_to_nobody_where_it_is_there(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    await enqueue(store, fallback.FALLBACK_STEP + 1)
    assert await fall_back_unserved(store, ("b",), ("b",)) == DeliveryChanges()
    monkeypatch.setattr(fallback, "UNSERVED_AFTER", -60.0)
    assert await fall_back_unserved(store, ("a", "b"), ("b",)) == DeliveryChanges()
    assert await fall_back_unserved(store, ("b",), ("b",)) == DeliveryChanges(channels_to_wake=frozenset(("b",)))
    assert len(await all_of(store, "b")) == fallback.FALLBACK_STEP + 1
    assert await fall_back_unserved(store, ("b",), ("b",)) == DeliveryChanges()
