"""What nobody acknowledges goes to further channels: when due, once, and until somebody does or it is resolved."""

import asyncio
from collections.abc import AsyncIterator

import pytest
from sqlalchemy import select

from services.relay.acknowledgement.store import Escalation, acknowledge, escalate_due, unacknowledge
from services.relay.model import EscalationStep
from services.relay.outbox.audit import OutboxAudit
from services.relay.outbox.store import Store, open_store
from services.relay.outbox.tables import DeliveryState, incidents
from shared.sql.database_url import DatabaseUrl
from tests.relay.outbox.actions import accept, claim_one, end_attempt, let_pass, nothing_due, prepare, take_edits
from tests.relay.served_relay import event_of
from tests.stores import each_store

SERVED = ("a", "lead", "boss", "log")
STEPS = (EscalationStep(600.0, ("lead",)), EscalationStep(1800.0, ("boss", "log")))


@pytest.fixture
async def store(database: DatabaseUrl) -> AsyncIterator[Store]:
    async with open_store(database, lambda: 1000.0, frozenset({"log"})) as store:
        yield store


async def deliver(store: Store, channel: str = "a") -> str:
    """Delivers what is due on a channel; gives its remark."""
    claim = await claim_one(store, channel)
    await end_attempt(store, claim)
    return claim.task.remark


async def escalated(store: Store, *served: str) -> list[Escalation]:
    return await escalate_due(store, served or SERVED)


async def fired(store: Store, incident: str = "x") -> None:
    """An incident that was delivered on its first channel."""
    await accept(store, incident, "a", escalation=STEPS)
    await deliver(store)


async def press(store: Store, *, withdraw: bool = False) -> None:
    if withdraw:
        await unacknowledge(store, "x", who="anna", via="api")
    else:
        await acknowledge(store, "x", who="anna", via="api", acknowledging_channels=())


async def test_what_nobody_acknowledges_goes_to_one_step_after_the_other(store: Store) -> None:
    await fired(store)
    await let_pass(store, 590)
    assert await escalated(store) == []

    await let_pass(store, 20)
    assert await escalated(store) == [Escalation("x", ("lead",), ())]
    assert await escalated(store) == []
    claim = await prepare(store, await claim_one(store, "lead"))
    assert claim.task.remark == "Escalated: nobody acknowledged it within 10 min."
    assert (claim.task.context.escalated_to, claim.task.context.escalated_at is not None) == (("lead",), True)
    await end_attempt(store, claim)
    assert await nothing_due(store, "boss")

    await accept(store, "x", "a", "lead", escalation=STEPS)  # a repeat, of all channels on which it is open
    assert (await prepare(store, await claim_one(store))).task.context.escalated_to == ("lead",)
    await let_pass(store, 1200)
    assert await escalated(store) == [Escalation("x", ("boss", "log"), ())]
    assert await deliver(store, "boss") == await deliver(store, "log")
    assert (await prepare(store, await claim_one(store, "lead"))).task.context.escalated_to == ("lead", "boss", "log")

    entries, _ = await OutboxAudit(store).list_entries(10, None)
    assert [(each.who, each.peer, each.action, each.on) for each in entries] == [
        ("keypulse", None, "escalate", "x to boss, log"),
        ("keypulse", None, "escalate", "x to lead"),
    ]


async def test_the_steps_of_two_receivers_of_one_group_are_all_taken_and_an_event_replaces_those_of_its_own(
    store: Store,
) -> None:
    other = event_of(receiver="audit")
    await accept(store, "x", "a", escalation=STEPS)
    await deliver(store)
    await accept(store, "x", "log", event=other, escalation=(EscalationStep(60.0, ("mail",)),), is_repeat=True)
    await accept(store, "x", "a", "log", escalation=STEPS[:1])  # a reminder, after a reload
    await deliver(store)
    await let_pass(store, 2000)
    assert await escalated(store, *SERVED, "mail") == [Escalation("x", ("mail", "lead"), ())]
    assert await escalated(store, *SERVED, "mail") == []


@pytest.mark.parametrize("how", ["acknowledged", "resolved", "not delivered", "dead"])
async def test_it_ends_with_the_acknowledgement_and_the_resolve_and_waits_for_the_first_delivery(
    store: Store, how: str
) -> None:
    await accept(store, "x", "a", escalation=STEPS)
    if how == "dead":
        await end_attempt(store, await claim_one(store), DeliveryState.DEAD)
    elif how != "not delivered":
        await deliver(store)
    if how == "acknowledged":
        await press(store)
    elif how == "resolved":
        await accept(store, "x", "a", is_open=False, event=event_of("resolved"), escalation=STEPS)
    await let_pass(store, 90_000)

    assert await escalated(store) == []
    to_come = select(incidents.c.escalation_after)
    left = await store.read(lambda connection: connection.execute(to_come).scalar_one())
    assert left == (None if how == "resolved" else 600.0)  # what is over is not looked at again


async def test_the_steps_count_again_from_when_an_acknowledgement_is_withdrawn(store: Store) -> None:
    await fired(store)
    await press(store)
    await let_pass(store, 90_000)
    await press(store, withdraw=True)
    assert await escalated(store) == []

    await let_pass(store, 601)
    assert [each.channels for each in await escalated(store)] == [("lead",)]


async def test_a_new_episode_escalates_anew_and_its_resolve_reaches_where_it_went(store: Store) -> None:
    await fired(store)
    await let_pass(store, 2000)
    assert [each.channels for each in await escalated(store)] == [("lead", "boss", "log")]  # a relay that was away
    for channel in ("lead", "boss", "log"):
        assert await deliver(store, channel) == "Escalated: nobody acknowledged it within 30 min."
    await accept(store, "x", *SERVED, is_open=False, event=event_of("resolved"))
    for channel in SERVED:
        claim = await prepare(store, await claim_one(store, channel))
        assert claim.task.context.escalated_to == ("lead", "boss", "log")
        await end_attempt(store, claim)

    await accept(store, "x", "a", episode=2, escalation=STEPS)
    claim = await prepare(store, await claim_one(store))
    assert claim.task.context.escalated_to == ()
    await end_attempt(store, claim)
    assert await escalated(store) == []
    await let_pass(store, 601)
    assert [each.channels for each in await escalated(store)] == [("lead",)]


async def test_the_next_event_brings_the_steps_of_a_new_configuration(store: Store) -> None:
    await fired(store)
    await accept(store, "x", "a")
    await let_pass(store, 601)
    assert await escalated(store) == []

    await accept(store, "x", "a", escalation=(EscalationStep(60.0, ("gone", "boss")),))
    assert await escalated(store) == [Escalation("x", ("boss",), ("gone",))]
    assert await escalated(store) == []


@each_store
async def test_of_many_incidents_each_is_escalated_once_by_one_of_two_replicas(
    store: Store, database: DatabaseUrl
) -> None:
    names = [f"x{number:02}" for number in range(40)]
    for first in range(0, len(names), 10):
        await asyncio.gather(*(fired(store, name) for name in names[first : first + 10]))
    await let_pass(store, 601)
    async with open_store(database, lambda: 1000.0, frozenset({"log"})) as other:
        both = await asyncio.gather(escalated(store), escalated(other))
    assert sorted(each.incident_id for found in both for each in found) == names


async def test_a_clock_that_was_set_back_neither_hurries_nor_delays_it_for_long(store: Store) -> None:
    await fired(store)
    await let_pass(store, -3600)
    assert [each.channels for each in await escalated(store)] == [()]
    assert await escalated(store) == []
    await let_pass(store, 601)
    assert [each.channels for each in await escalated(store)] == [("lead",)]


async def test_the_first_message_is_edited_to_show_it(store: Store) -> None:
    await accept(store, "x", escalation=STEPS)
    await end_attempt(store, await claim_one(store), is_editable=True)
    await let_pass(store, 601)
    assert [each.edited_channels for each in await escalated(store)] == [{"a"}]
    (edit,) = await take_edits(store)
    assert edit.context.escalated_to == ("lead",)
    await accept(store, "x", "a", escalation=(EscalationStep(1.0, ("gone",)),))
    assert [each.edited_channels for each in await escalated(store)] == [frozenset()]
    assert (await prepare(store, await claim_one(store))).task.context.escalated_at == edit.context.escalated_at


async def test_the_current_state_is_what_a_further_channel_gets(store: Store) -> None:
    await fired(store)
    await accept(store, "x", "a", event=event_of(remark="the latest"), escalation=STEPS)
    await let_pass(store, 601)
    await escalated(store)
    claim = await claim_one(store, "lead")
    assert (claim.task.first_event_seq, claim.task.last_event_seq) == (2, 2)
