"""A person sends a delivery to another channel: once, as the current state of its incident, and on the record."""

import asyncio
import time
from collections.abc import AsyncIterator

import pytest
from sqlalchemy import select

from services.relay.deliveries import queries as delivery_list
from services.relay.deliveries.queries import DeliveryFilter, DeliverySummary
from services.relay.deliveries.retries import UnknownDeliveryError, send_elsewhere
from services.relay.outbox.audit import Actor, OutboxAudit
from services.relay.outbox.incidents import lock_states
from services.relay.outbox.store import Store, open_store
from services.relay.outbox.tables import DeliveryState, deliveries
from shared.http.json_api import RefusedError
from shared.sql.database_url import DatabaseUrl
from tests.relay.outbox.actions import accept, claim_one, end_attempt
from tests.relay.outbox.rows import Rows
from tests.stores import each_store

ALICE = Actor("alice")


@pytest.fixture
async def store(database: DatabaseUrl) -> AsyncIterator[Store]:
    async with open_store(database, time.time, frozenset({"log"})) as store:
        yield store


async def on(store: Store, channel: str) -> list[DeliverySummary]:
    return (await delivery_list.list_deliveries(store, DeliveryFilter(channel=channel), limit=10)).deliveries


async def test_another_channel_gets_the_current_state_and_all_that_follows(store: Store) -> None:
    await accept(store, "one", "slack")
    await accept(store, "one", "slack")
    (newest, oldest) = await on(store, "slack")
    assert oldest.state is DeliveryState.SUPERSEDED
    sent = await send_elsewhere(store, oldest.id, "mail", Actor("alice", "10.0.0.7"))
    claim = await claim_one(store, "mail")
    assert claim.task.delivery_id == sent.delivery_id
    assert claim.task.last_event_seq - claim.task.first_event_seq == 1  # both events, as on its own channel
    assert claim.task.remark == "Sent elsewhere by alice; it was for slack."
    await end_attempt(store, claim)
    assert (await on(store, "slack"))[0] == newest  # which waits as before
    (entry, *_), _ = await OutboxAudit(store).list_entries(9, None)
    assert (entry.who, entry.peer, entry.action, entry.on) == (
        "alice",
        "10.0.0.7",
        "send elsewhere",
        f"{oldest.id} to mail",
    )
    states = await store.run(lambda transaction: lock_states(transaction, {"one": ""}))
    assert states["one"].open_channels == {"slack", "mail"}


async def test_what_the_channel_has_is_not_repeated_however_often_somebody_clicks(store: Store) -> None:
    await accept(store, "one", "slack")
    (delivery,) = await on(store, "slack")
    clicks = await asyncio.gather(
        *(send_elsewhere(store, delivery.id, "mail", ALICE) for _ in range(5)), return_exceptions=True
    )
    assert [type(each) for each in clicks].count(RefusedError) == 4
    (sent,) = await on(store, "mail")
    entries, _ = await OutboxAudit(store).list_entries(9, None)
    assert [entry.action for entry in entries] == ["send elsewhere"]
    for state in ("queued", "delivered"):
        with pytest.raises(RefusedError) as refused:
            await send_elsewhere(store, delivery.id, "mail", ALICE)
        assert str(refused.value) == f"mail has the current state of its incident: delivery {sent.id}, {state}"
        if state == "queued":
            await end_attempt(store, await claim_one(store, "mail"))
    await accept(store, "one", "slack")  # something newer may be sent
    assert (await send_elsewhere(store, delivery.id, "mail", ALICE)).delivery_id != sent.id


@each_store
async def test_what_waits_there_is_merged_and_nothing_older_follows_what_is_newer(store: Store) -> None:
    await accept(store, "one", "slack", "mail")
    await accept(store, "one", "slack")
    newest = (await on(store, "slack"))[0]
    sent = await send_elsewhere(store, newest.id, "mail", ALICE)
    assert sent.superseded_count == 1
    assert [each.id for each in await on(store, "mail") if each.state is DeliveryState.QUEUED] == [sent.delivery_id]
    claim = await claim_one(store, "mail")
    assert claim.task.last_event_seq - claim.task.first_event_seq == 1


async def test_a_channel_that_merges_nothing_gets_the_latest_event_alone(store: Store) -> None:
    for _ in range(3):
        await accept(store, "one", "slack")
    oldest = (await on(store, "slack"))[-1]
    await send_elsewhere(store, oldest.id, "log", ALICE)
    rows = await store.read(
        lambda connection: connection.execute(select(deliveries).where(deliveries.c.channel == "log")).all()
    )
    assert [(row.first_event_seq, row.event_seq) for row in rows] == [(3, 3)]


async def test_what_cannot_be_sent_changes_nothing(store: Store) -> None:
    rows = Rows(store)
    delivery = await rows.delivery(await rows.event("one"), "slack", DeliveryState.DEAD)
    with pytest.raises(UnknownDeliveryError):
        await send_elsewhere(store, "unknown", "mail", ALICE)
    with pytest.raises(RefusedError, match="it is for slack already; expected another channel, or retry it"):
        await send_elsewhere(store, delivery, "slack", ALICE)
    assert await rows.left() == {delivery}
    assert await OutboxAudit(store).list_entries(9, None) == ([], None)


async def test_what_was_given_up_there_is_not_there_and_is_retried(store: Store) -> None:
    await accept(store, "one", "slack", "mail")
    await end_attempt(store, await claim_one(store, "mail"), DeliveryState.DEAD, reason="rejected")
    (delivery,), (dead,) = await on(store, "slack"), await on(store, "mail")
    with pytest.raises(RefusedError) as refused:
        await send_elsewhere(store, delivery.id, "mail", ALICE)
    assert str(refused.value) == f"the current state was given up on mail: retry delivery {dead.id}"
