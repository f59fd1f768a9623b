"""An incident is acknowledged once, by one person; its deliveries go on, and its next episode begins without."""

import asyncio
import itertools
from collections.abc import AsyncIterator
from typing import Any

import pytest
from sqlalchemy import func, select

from services.relay.acknowledgement.store import Acknowledgement, EpisodeOverError, acknowledge, unacknowledge
from services.relay.deliveries.queries import read_delivery
from services.relay.incidents.queries import UnknownIncidentError
from services.relay.model import Claim, IncidentContext
from services.relay.outbox.audit import OutboxAudit
from services.relay.outbox.store import Store, open_store
from services.relay.outbox.tables import DeliveryState, deliveries
from shared.sql.database_url import DatabaseUrl
from tests.relay.outbox.actions import accept, claim_one, end_attempt, nothing_due, prepare, take_edits
from tests.relay.served_relay import event_of
from tests.stores import each_store


@pytest.fixture
async def store(database: DatabaseUrl) -> AsyncIterator[Store]:
    ticks = itertools.count(1)
    async with open_store(database, lambda: 1000.0 + next(ticks) / 1000, frozenset({"log"})) as store:
        yield store


async def acknowledged(
    store: Store, who: str = "anna", incident: str = "x", episode: int | None = None
) -> Acknowledgement:
    origin = {"via": "api", "peer": "10.0.0.7"}
    return await acknowledge(store, incident, episode=episode, who=who, **origin, acknowledging_channels={"pagerduty"})


async def withdrawn(store: Store, who: str = "ben", episode: int | None = None) -> Acknowledgement:
    return await unacknowledge(store, "x", episode=episode, who=who, via="command line")


async def page(store: Store) -> Claim:
    """The delivery that PagerDuty's worker claims, as it goes to the channel."""
    return await prepare(store, await claim_one(store, "pagerduty"), acknowledges=True)


async def no_page(store: Store) -> bool:
    return await nothing_due(store, "pagerduty")


def receipt_of(claim: Claim) -> dict[str, Any]:
    """What PagerDuty's channel gives for a claim."""
    return {
        "receipt": {
            "dedup_key": "k",
            **({"acknowledged": claim.task.acknowledgement} if claim.task.acknowledgement else {}),
        }
    }


async def next_of(store: Store, channel: str = "a") -> IncidentContext:
    """What the next message of a channel says of its incident; it is delivered."""
    claim = await claim_one(store, channel)
    context = (await prepare(store, claim)).task.context
    await end_attempt(store, claim)
    return context


async def paged(store: Store) -> Claim:
    """Claims and delivers to PagerDuty."""
    claim = await page(store)
    await end_attempt(store, claim, **receipt_of(claim))
    return claim


async def audited(store: Store) -> list[tuple[str, str | None, str, str]]:
    entries, _ = await OutboxAudit(store).list_entries(10, None)
    return [(entry.who, entry.peer, entry.action, entry.on) for entry in entries]


@each_store
async def test_the_first_of_many_presses_counts_and_a_message_says_who(store: Store, database: DatabaseUrl) -> None:
    await accept(store, "x", "a", "log")
    names = [f"person {number}" for number in range(20)]

    async with open_store(database, lambda: 1000.0) as other:  # of another replica
        presses = (acknowledged((store, other)[number % 2], name) for number, name in enumerate(names))
        done = await asyncio.gather(*presses)

    (first,) = [each for each in done if each.is_changed]
    assert first.by in names
    assert {each.by for each in done} == {first.by}
    assert await audited(store) == [(first.by, "10.0.0.7", "acknowledge", "x")]
    for channel in ("a", "log"):
        context = await next_of(store, channel)
        assert context.acknowledged_by == first.by
        assert context.acknowledged_at is not None
        assert context.acknowledged_at.timestamp() == pytest.approx(first.at)

    assert await withdrawn(store) == Acknowledgement("x", None, None, is_changed=True)
    assert await withdrawn(store) == Acknowledgement("x", None, None, is_changed=False)
    assert (await audited(store))[0] == ("ben", "command line", "unacknowledge", "x")
    assert len(await audited(store)) == 2
    await accept(store, "x", "b")
    assert (await next_of(store, "b")).acknowledged_by == ""


async def test_one_that_is_over_or_unknown_cannot_be_acknowledged(store: Store) -> None:
    await accept(store, "x", is_open=False, event=event_of("resolved"))
    for action in (acknowledged, withdrawn):
        with pytest.raises(EpisodeOverError, match="episode 1 is over; the incident is resolved"):
            await action(store)
    with pytest.raises(UnknownIncidentError, match="no such incident"):
        await acknowledged(store, incident="y")
    assert await audited(store) == []


async def test_who_saw_an_earlier_episode_changes_nothing_of_the_next_one(store: Store) -> None:
    await accept(store, "x")
    await accept(store, "x", is_open=False, event=event_of("resolved"))
    await accept(store, "x", episode=2)
    for action in (acknowledged, withdrawn):
        with pytest.raises(EpisodeOverError, match="episode 1 is over; the incident fires again as episode 2"):
            await action(store, episode=1)
        with pytest.raises(UnknownIncidentError, match="no episode 3; its last one is 2"):
            await action(store, episode=3)
        assert (await action(store, episode=2)).is_changed
    assert [action for _, _, action, _ in await audited(store)] == ["unacknowledge", "acknowledge"]


async def test_a_press_while_the_next_episode_is_accepted_is_not_of_that_one(
    store: Store, database: DatabaseUrl
) -> None:
    async with open_store(database, lambda: 1000.0) as other:  # of another replica
        for episode in range(1, 21, 2):
            await accept(store, "x", episode=episode)
            begins = accept(store, "x", episode=episode + 1)
            pressed, _ = await asyncio.gather(acknowledged(other, episode=episode), begins, return_exceptions=True)
            assert isinstance(pressed, Acknowledgement | EpisodeOverError)
            assert (await acknowledged(store, "ben")).is_changed


async def test_pagerduty_is_not_notified_of_an_episode_that_it_does_not_have(store: Store) -> None:
    await accept(store, "x", "a", "pagerduty")
    await paged(store)
    await accept(store, "x", "a", "pagerduty", is_open=False, event=event_of("resolved"))
    await paged(store)
    await accept(store, "x", "a", episode=2)
    assert (await acknowledged(store)).channels_to_wake == ()
    assert await no_page(store)


async def test_the_first_message_is_edited_at_once(store: Store) -> None:
    await accept(store, "x")
    await end_attempt(store, await claim_one(store), is_editable=True)
    for action, name in ((acknowledged, "anna"), (withdrawn, "")):
        assert (await action(store)).channels_to_wake == ("a",)
        (edit,) = await take_edits(store)
        assert edit.context.acknowledged_by == name
        await action(store)
        assert await take_edits(store) == []


async def test_pagerduty_gets_an_acknowledgement_once_after_what_it_has(store: Store) -> None:
    await accept(store, "x", "a", "pagerduty")
    assert not (await paged(store)).task.acknowledgement

    assert (await acknowledged(store)).channels_to_wake == ("pagerduty",)
    assert (await acknowledged(store, "ben")).channels_to_wake == ()

    claim = await paged(store)
    assert (bool(claim.task.acknowledgement), claim.task.is_repeat, claim.task.remark) == (
        True,
        True,
        "Acknowledged by anna.",
    )
    assert await no_page(store)
    await end_attempt(store, await claim_one(store))
    assert await nothing_due(store)  # no other channel gets a message for it
    await accept(store, "x", "pagerduty")  # a repeat
    assert not (await paged(store)).task.acknowledgement

    await withdrawn(store)
    assert await no_page(store)
    await acknowledged(store, "ben")
    claim = await paged(store)
    assert (bool(claim.task.acknowledgement), claim.task.is_repeat) == (True, True)


@pytest.mark.parametrize("then", ["nothing", "fails", "is left"])
async def test_a_page_that_is_not_out_yet_is_sent_and_then_acknowledged(store: Store, then: str) -> None:
    await accept(store, "x", "pagerduty")
    if then != "nothing":
        sending = await page(store)
    await acknowledged(store)
    if then == "fails":
        await end_attempt(store, sending, DeliveryState.RETRYING)
    elif then == "is left":
        await end_attempt(store, sending, receipt={"dedup_key": "k"})

    claim = await paged(store)

    assert (bool(claim.task.acknowledgement), claim.task.is_repeat) == (True, then == "is left")
    assert await no_page(store)


async def test_an_acknowledgement_that_waits_goes_with_what_follows_and_never_after_the_resolve(store: Store) -> None:
    await accept(store, "x", "pagerduty")
    await paged(store)
    await acknowledged(store)
    await accept(store, "x", "pagerduty")
    claim = await page(store)
    assert (bool(claim.task.acknowledgement), claim.task.is_repeat) == (True, False)
    await end_attempt(store, claim, DeliveryState.RETRYING)  # its answer was lost, say
    await accept(store, "x", "pagerduty", is_open=False, event=event_of("resolved"))

    last = await paged(store)

    assert last.task.last_event_seq == 3
    assert await no_page(store)
    await accept(store, "x", "pagerduty", episode=2)
    second = await paged(store)
    assert (second.task.acknowledgement, second.task.is_repeat) == ("", False)


async def test_an_acknowledgement_revives_no_page_that_was_given_up(store: Store) -> None:
    await accept(store, "x", "pagerduty")
    await end_attempt(store, await page(store), DeliveryState.DEAD)

    assert (await acknowledged(store)).channels_to_wake == ()

    count = select(func.count()).select_from(deliveries)
    assert await store.read(lambda connection: connection.execute(count).scalar_one()) == 1


async def test_the_record_of_the_delivery_says_why_it_was_sent(store: Store) -> None:
    await accept(store, "x", "pagerduty")
    await paged(store)
    await acknowledged(store, "an\0na" + "x" * 300)
    claim = await paged(store)
    record = await read_delivery(store, claim.task.delivery_id)
    assert record is not None
    assert record.delivery.remark == f"Acknowledged by an\ufffdna{'x' * 195}."
    assert record.delivery.receipt == {"dedup_key": "k", "acknowledged": claim.task.acknowledgement}
