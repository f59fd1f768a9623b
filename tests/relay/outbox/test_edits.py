"""Which first messages are edited, when and by whom, on both stores."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Text, cast, create_engine, func, select, text

from services.relay.acknowledgement.store import acknowledge
from services.relay.model import DeliveryTask, Status, decode_event
from services.relay.outbox import edits
from services.relay.outbox.accept import DeliveryPlan, IncomingEvent, accept_event
from services.relay.outbox.edits import EditClaim, EditClaimRequest, EditClaimResult, EditOutcome, EditResult
from services.relay.outbox.recovery import sweep
from services.relay.outbox.retention import prune_before
from services.relay.outbox.served_channels import record_served_channels
from services.relay.outbox.store import Store, open_store
from services.relay.outbox.tables import DeliveryState, deliveries
from shared.sql import database_url
from shared.sql.database_url import DatabaseUrl
from tests.relay.outbox.actions import accept, claim_one, end_attempt, prepare
from tests.relay.outbox.channel_breakers import Clock
from tests.relay.served_relay import event_of, until
from tests.stores import each_store

RESOLVED = event_of("resolved")
_LOCK = 42
EDITED = EditOutcome(EditResult.EDITED, "ok", maybe_sent=True)


@pytest.fixture
async def store(database: DatabaseUrl, clock: Clock) -> AsyncIterator[Store]:
    async with open_store(database, clock) as store:
        yield store


@pytest.fixture
async def timed(tmp_path: Path, clock: Clock) -> AsyncIterator[Store]:
    """An outbox whose time is the clock's; PostgreSQL has its own."""
    async with open_store(database_url.create_sqlite_url(tmp_path / "relay.db"), clock) as store:
        yield store


async def deliver(store: Store, incident: str = "x", state: DeliveryState = DeliveryState.DELIVERED, **of: Any) -> None:
    await accept(store, incident, **of)
    await end_attempt(store, await claim_one(store), state, is_editable=True)


async def claim(store: Store, owner: str = "me", limit: int = 8, **changes: Any) -> EditClaimResult:
    return await edits.claim_edits(store, EditClaimRequest("scope", ("a",), limit, owner, 20, None)._replace(**changes))


async def claim_edit(store: Store, owner: str = "me") -> EditClaim:
    (one,) = (await claim(store, owner)).claims
    return one


async def deliver_twice(store: Store, *incidents: str) -> None:
    """The first message of each is outdated then."""
    for incident in incidents:
        for _ in range(2):
            await deliver(store, incident)


async def nothing_to_edit(store: Store) -> bool:
    return await claim(store) == EditClaimResult((), None)


async def request(store: Store, *incidents: str) -> frozenset[str]:
    return await store.run(lambda transaction: edits.request_edits(transaction, incidents))


def status_of(task: DeliveryTask) -> Status:
    return decode_event(task.event_json).status


async def test_each_change_after_the_first_message_edits_it_and_many_changes_are_one_edit(store: Store) -> None:
    await deliver(store)
    assert await nothing_to_edit(store)
    await deliver(store)
    await deliver(store, event=RESOLVED)

    edit = await claim_edit(store)

    assert (status_of(edit.claim.task), edit.version, edit.claim.task.is_edit) == (Status.RESOLVED, 2, True)
    assert edit.claim.task.first_receipt == {"number": "1"}
    assert await edits.record_edit(store, "scope", edit, EDITED)
    assert await nothing_to_edit(store)


async def test_what_was_given_up_is_shown_by_an_edit_and_a_retry_by_none(store: Store) -> None:
    await deliver(store)
    await deliver(store, state=DeliveryState.RETRYING)
    assert await nothing_to_edit(store)
    await end_attempt(store, await claim_one(store), DeliveryState.DEAD, is_editable=True)
    assert await claim_edit(store)


@each_store
async def test_a_change_during_an_edit_is_shown_by_the_next_one_and_nobody_else_edits_meanwhile(store: Store) -> None:
    await deliver(store)
    await deliver(store)
    first = await claim_edit(store)
    await deliver(store, event=RESOLVED)
    assert not (await claim(store, "other")).claims
    await edits.record_edit(store, "scope", first, EDITED)
    assert status_of((await claim_edit(store, "other")).claim.task) is Status.RESOLVED


async def test_after_a_lost_lease_the_current_state_is_shown_once_more(timed: Store, clock: Clock) -> None:
    await deliver_twice(timed, "x")
    lost = await claim_edit(timed)
    clock.now += 21
    second = await claim_edit(timed, "other")
    assert second.claim.attempt_number == 2
    assert await edits.record_edit(timed, "scope", second, EDITED)

    assert not await edits.record_edit(timed, "scope", lost, EDITED)

    await edits.record_edit(timed, "scope", await claim_edit(timed), EDITED)
    assert not await edits.record_edit(timed, "scope", lost, EditOutcome(EditResult.RETRYING, "connection"))
    assert await nothing_to_edit(timed)


async def test_a_claim_that_waited_for_its_edit_shows_what_was_accepted_meanwhile(
    postgres_database: DatabaseUrl, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PostgreSQL reads the row that it locks anew, and what is joined to it as it was when the statement began."""
    waits = cast(func.pg_advisory_xact_lock(_LOCK), Text).is_not(None)
    monkeypatch.setattr(edits, "_LOCK_DUE", edits._LOCK_DUE.where(waits))
    async with open_store(postgres_database, time.time) as store, open_store(postgres_database, time.time) as other:
        await deliver_twice(other, "x")
        async with asyncio.TaskGroup() as tasks:
            with hold_lock(postgres_database) as is_awaited:
                claimed = tasks.create_task(claim(store))
                await until(is_awaited)
                await deliver(other, event=RESOLVED)
        (edit,) = claimed.result().claims
    assert (edit.version, status_of(edit.claim.task)) == (2, Status.RESOLVED)


@contextmanager
def hold_lock(database: DatabaseUrl) -> Iterator[Callable[[], bool]]:
    """Holds the lock that a claim waits for. Yields whether one does."""
    waiting = text("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted")
    engine = create_engine(database)
    try:
        with engine.connect() as connection:
            connection.execute(select(func.pg_advisory_xact_lock(_LOCK)))
            yield lambda: connection.execute(waiting).scalar_one() > 0
    finally:
        engine.dispose()


async def test_an_older_episode_is_edited_to_its_own_end(store: Store) -> None:
    await deliver(store)
    await deliver(store, event=RESOLVED)
    await deliver(store, episode=2)
    await deliver(store, episode=2)
    found = {each.claim.task.episode: status_of(each.claim.task) for each in (await claim(store)).claims}
    assert found == {1: Status.RESOLVED, 2: Status.FIRING}


async def test_an_end_that_was_merged_into_the_next_episode_is_shown_where_its_beginning_is(store: Store) -> None:
    await deliver(store)
    await accept(store, "x", event=RESOLVED)
    await accept(store, "x", episode=2)
    merged = await claim_one(store)
    assert (merged.task.episode, merged.task.first_event_seq, merged.task.last_event_seq) == (2, 2, 3)
    await end_attempt(store, merged, is_editable=True)
    task = (await claim_edit(store)).claim.task
    assert (task.episode, status_of(task)) == (1, Status.RESOLVED)


async def test_what_a_person_waits_for_goes_first(timed: Store, clock: Clock) -> None:
    for incident in ("x", "y", "z"):
        await deliver_twice(timed, incident)
        clock.now += 1
    assert await request(timed, "z", "unknown") == {"a"}
    assert await request(timed) == frozenset()
    first = (await claim(timed, limit=1)).claims[0]
    assert (first.claim.task.incident_id, first.version) == ("z", 2)
    assert await request(timed, "z") == {"a"}
    assert [each.claim.task.incident_id for each in (await claim(timed)).claims] == ["x", "y"]


async def test_edits_that_failed_delay_none_that_was_not_tried_yet(timed: Store, clock: Clock) -> None:
    """Else the messages of an archived channel would use up the rate of all channels with its token, for a day."""
    await deliver_twice(timed, "x", "y")
    for each in (await claim(timed)).claims:
        refused = EditOutcome(EditResult.RETRYING, "misconfigured", retry_in=5)
        await edits.record_edit(timed, "scope", each, refused)
    clock.now += 10
    await deliver_twice(timed, "z")
    assert [each.claim.task.incident_id for each in (await claim(timed, limit=2)).claims] == ["z", "x"]
    assert await request(timed, "y") == {"a"}, "a person waits for it"
    await deliver(timed, "z")
    assert [each.claim.task.incident_id for each in (await claim(timed, limit=1)).claims] == ["y"]


async def test_the_scope_keeps_its_rate_and_the_pause_that_the_provider_asked_for(timed: Store, clock: Clock) -> None:
    await deliver_twice(timed, *"012345")
    claimed = await claim(timed, rate=0.75)
    assert (len(claimed.claims), claimed.retry_in) == (3, 0.0)
    empty = await claim(timed, rate=0.75)
    assert not empty.claims
    assert empty.retry_in is not None
    assert 0 < empty.retry_in <= 1 / 0.75
    clock.now += empty.retry_in
    assert len((await claim(timed, rate=0.75)).claims) == 1

    postponed = EditOutcome(EditResult.RETRYING, "rate_limited", retry_in=1, retry_after=30)
    await edits.record_edit(timed, "scope", claimed.claims[0], postponed)
    clock.now += 10
    assert await claim(timed) == EditClaimResult((), pytest.approx(20))  # type: ignore[arg-type]
    clock.now += 20
    assert len((await claim(timed)).claims) == 6  # the leases of the first four are over


@pytest.mark.parametrize("result", [EditResult.GIVEN_UP, EditResult.RETRYING])
async def test_an_edit_that_failed_waits_or_is_over(timed: Store, clock: Clock, result: EditResult) -> None:
    await deliver_twice(timed, "x")
    await edits.record_edit(timed, "scope", await claim_edit(timed), EditOutcome(result, "rejected", retry_in=5))
    waiting = await claim(timed)
    assert waiting == EditClaimResult((), 5 if result is EditResult.RETRYING else None)
    clock.now += 5
    second = (await claim(timed)).claims
    assert [(each.claim.attempt_number, each.age) for each in second] == (
        [(2, 5.0)] if result is EditResult.RETRYING else []
    )


@each_store
async def test_of_a_channel_that_was_renamed_first_messages_show_their_end_though_the_next_episode_began(
    store: Store,
) -> None:
    await record_served_channels(store, {"a": "scope"})
    await deliver(store)
    for episode, status in ((1, "resolved"), (2, "firing")):
        incoming = IncomingEvent(event_of(status), "x", status, "KMSTest", b"{}")
        plan = DeliveryPlan(episode, is_open=episode == 2, channels=("b",), unconfigured_channels=("a",))
        await accept_event(store, incoming, lambda _state, _now, plan=plan: plan)  # type: ignore[misc]
    (one,) = (await claim(store, channels=("b",))).claims
    assert (one.claim.task.channel, one.claim.task.episode, status_of(one.claim.task)) == ("a", 1, Status.RESOLVED)
    assert not (await claim(store, scope="another", channels=("b",))).claims


async def test_a_stop_gives_back_what_was_claimed_and_a_clock_that_was_set_back_costs_minutes_at_most(
    timed: Store, clock: Clock
) -> None:
    clock.now = 1e9
    await deliver_twice(timed, "x")
    await claim_edit(timed)
    await edits.release_edits(timed, "other")
    assert not (await claim(timed)).claims
    await edits.release_edits(timed, "me")
    claimed = await claim_edit(timed)
    clock.now -= 5000
    await sweep(timed, 86_400, (), 300)
    assert not (await claim(timed)).claims
    clock.now += 300
    assert not (await claim(timed, in_flight_ids=(claimed.claim.task.delivery_id,))).claims
    assert await claim_edit(timed, "other")


@pytest.mark.parametrize("is_visible", [False, True])
async def test_what_an_edit_shows_is_not_pruned_before(timed: Store, clock: Clock, is_visible: bool) -> None:
    await deliver(timed)
    await deliver(timed, event=RESOLVED)
    await timed.run(lambda transaction: transaction.connection.exec_driver_sql("UPDATE incidents SET is_open = 0"))
    if is_visible:
        await edits.record_edit(timed, "scope", await claim_edit(timed), EDITED)
    clock.now += 100
    await prune_before(timed, clock.now - 50)
    assert len(await timed.read(lambda connection: connection.execute(select(deliveries.c.seq)).all())) == (
        0 if is_visible else 2
    )
    clock.now += 7 * 86400  # nobody has edited on the channel since: it is no longer configured
    await prune_before(timed, clock.now - 50)
    assert not await timed.read(lambda connection: connection.execute(select(deliveries.c.seq)).all())


async def test_what_a_person_did_while_a_first_message_was_sent_is_shown_by_an_edit(store: Store) -> None:
    await accept(store, "x")
    unaware = await claim_one(store)
    context = (await prepare(store, unaware)).task.context
    await acknowledge(store, "x", who="ann", via="slack", acknowledging_channels=())
    await end_attempt(store, unaware, is_editable=True, context=context)
    first = await claim_edit(store)
    assert (await prepare(store, first.claim)).task.context.acknowledged_by == "ann"
    await edits.record_edit(store, "scope", first, EDITED)
    await accept(store, "x", "b")
    aware = await claim_one(store, "b")
    await end_attempt(store, aware, is_editable=True, context=(await prepare(store, aware)).task.context)
    assert await claim(store, channels=("a", "b")) == EditClaimResult((), None)
