"""A channel that has another name, that another replica has, or that comes back."""

from collections.abc import AsyncIterator

import pytest
from sqlalchemy import update

from services.relay.outbox.accept import AcceptResult
from services.relay.outbox.fallback import UNSERVED_AFTER, fall_back_unserved
from services.relay.outbox.merge import DeliveryChanges
from services.relay.outbox.served_channels import record_served_channels, refresh_outdated
from services.relay.outbox.store import Store, open_store
from services.relay.outbox.tables import DeliveryState, channels, deliveries
from shared.sql.database_url import DatabaseUrl
from tests.relay.outbox.actions import accept_webhook, claim_one, end_attempt, nothing_due
from tests.relay.served_relay import event_of
from tests.stores import each_store


@pytest.fixture
async def store(database: DatabaseUrl) -> AsyncIterator[Store]:
    async with open_store(database, lambda: 10_000.0, frozenset({"every"})) as store:
        yield store


async def come(store: Store, status: str, *routed: str, configured: tuple[str, ...] = ()) -> AcceptResult:
    """A webhook comes to a replica with these channels, by default those that are routed."""
    return await accept_webhook(store, event_of(status), routed, configured=configured)


async def ages(store: Store, seconds: float) -> None:
    """As if all that waits, and all that relays said, were so old."""
    older = update(deliveries).values(oldest_accepted_at=deliveries.c.oldest_accepted_at - seconds)
    aged = update(channels).values(served_at=channels.c.served_at - seconds)
    await store.run(lambda transaction: [transaction.connection.execute(each) for each in (older, aged)])


async def test_a_new_name_gets_the_beginning_that_waits_for_the_old_one(store: Store) -> None:
    await come(store, "firing", "old", "slack")
    await end_attempt(store, await claim_one(store, "slack"))
    await come(store, "resolved", "new", "slack", "every")
    claim = await claim_one(store, "new")
    assert (claim.task.first_event_seq, claim.task.last_event_seq, claim.task.firing_undelivered) == (1, 2, True)
    for kind in ("slack", "every"):
        claim = await claim_one(store, kind)
        assert (claim.task.first_event_seq, claim.task.last_event_seq, claim.task.firing_undelivered) == (2, 2, False)


@each_store
async def test_a_new_name_gets_the_end_alone_where_the_old_one_reported_the_beginning(store: Store) -> None:
    await come(store, "firing", "old")
    await end_attempt(store, await claim_one(store, "old"))
    await come(store, "resolved", "new")
    claim = await claim_one(store, "new")
    assert (claim.task.first_event_seq, claim.task.last_event_seq, claim.task.firing_undelivered) == (2, 2, False)


@each_store
async def test_what_another_replica_delivers_is_left_to_it_and_it_gets_what_comes(store: Store) -> None:
    await record_served_channels(store, dict.fromkeys(["theirs", "ours"]))
    await come(store, "firing", "theirs", "ours")
    await ages(store, 4 * UNSERVED_AFTER)
    await record_served_channels(store, dict.fromkeys(["theirs"]))
    assert await fall_back_unserved(store, ("ours",), ("ours", "mail")) == DeliveryChanges()
    assert (await come(store, "resolved", "ours")).channels == ("ours", "theirs")
    assert await nothing_due(store, "mail")


@each_store
async def test_what_no_replica_has_delivered_on_for_a_while_goes_to_the_others(store: Store) -> None:
    await record_served_channels(store, dict.fromkeys(["theirs"]))
    await come(store, "firing", "theirs", "ours")
    await ages(store, UNSERVED_AFTER - 10)
    assert await fall_back_unserved(store, ("ours",), ("mail",)) == DeliveryChanges()
    await ages(store, 20)
    assert (await come(store, "resolved", "ours")).channels == ("ours",)
    assert await fall_back_unserved(store, ("ours",), ("mail",)) == DeliveryChanges(
        channels_to_wake=frozenset(("mail",))
    )


async def test_a_channel_that_comes_back_reports_how_things_stand_now(store: Store) -> None:
    await come(store, "firing", "old")
    await end_attempt(store, await claim_one(store, "old"), DeliveryState.RETRYING, retry_in=0.0)
    await come(store, "resolved", "new")
    await refresh_outdated(store, ["new"])
    await refresh_outdated(store, ["old", "every"])
    claim = await claim_one(store, "old")
    assert (
        claim.task.first_event_seq,
        claim.task.last_event_seq,
        claim.task.firing_undelivered,
        claim.attempt_number,
    ) == (
        1,
        2,
        True,
        2,
    )
    await refresh_outdated(store, ["old"])
    await end_attempt(store, claim)
    assert await nothing_due(store, "old")
