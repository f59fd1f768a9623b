"""Digests: what a claim collects in a storm, and what becomes of the members, whatever happens to their message."""

from collections.abc import AsyncIterator, Iterable
from dataclasses import replace
from itertools import chain
from typing import Any

import pytest
from sqlalchemy import create_engine, select, update

from services.relay.model import Claim, Status, decode_event
from services.relay.outbox.breaker import FAILURE_THRESHOLD, ChannelEffect
from services.relay.outbox.claim import ClaimRequest, ClaimResult, claim_due, release_leases, save_progress
from services.relay.outbox.dead_letters import requeue
from services.relay.outbox.edits import EditClaimRequest, EditOutcome, EditResult, claim_edits, record_edit
from services.relay.outbox.receipt import AttemptOutcome, OutcomeResult, record_outcomes
from services.relay.outbox.retention import prune_before
from services.relay.outbox.store import Store, open_store
from services.relay.outbox.tables import CHANNELS, DeliveryState, attempts, deliveries, edits, incidents
from shared.sql.database_url import DatabaseUrl
from tests.relay.outbox.actions import PAUSES, accept, end_attempt, prepare
from tests.relay.outbox.clocks import FileClock, ServerClock
from tests.relay.served_relay import event_of, with_labels
from tests.stores import each_store

OVER = 3
"""More waiting deliveries are a storm."""
SIZE = 10


class Storm:
    """An outbox whose channel `a` takes a message a second, and its clock."""

    def __init__(self, store: Store, clock: FileClock) -> None:
        self.store = store
        self.clock = clock

    async def accept_events(
        self, names: Iterable[str], severity: str = "warning", status: str = "firing", episode: int = 1
    ) -> None:
        for name in names:
            event = with_labels(event_of(status, group=name), {"alertname": name, "severity": severity})
            alert = replace(event.alerts[0], status=event.status)
            await accept(self.store, name, event=replace(event, alerts=(alert,)), episode=episode)

    async def claim(self, owner: str = "me", *, after: float = 1.0, size: int = SIZE) -> ClaimResult:
        """By default after a second, so that there is a token."""
        self.clock.move(after)
        return await claim_due(self.store, ClaimRequest("a", 8, owner, 20, 1.0, digest_over=OVER, digest_size=size))

    async def claim_alone(self) -> list[str]:
        tasks = (await self.claim()).claims
        assert not any(taken.members for taken in tasks)
        for taken in tasks:
            await end_attempt(self.store, taken, is_editable=True)
        return [taken.task.incident_id for taken in tasks]

    async def claim_digest(self, **options: Any) -> Claim:
        (task,) = (await self.claim(**options)).claims
        assert task.members
        return task

    async def deliver_digest_of_critical(self) -> Claim:
        """Sends five of nine critical incidents alone, then a digest names `f` to `i`, whose own messages follow."""
        await self.accept_events("abcdefghi", "critical")
        for _ in range(5):
            await self.claim_alone()
        task = await self.claim_digest()
        await self.deliver(task)
        return task

    async def spend_burst(self) -> None:
        """What the channel had saved up: from now on it takes a message a second."""
        await self.accept_events(f"burst {number}" for number in range(5))
        for task in (await claim_due(self.store, ClaimRequest("a", 8, "me", 20, 1.0))).claims:
            await end_attempt(self.store, task)

    async def deliver(self, claim: Claim) -> list[OutcomeResult]:
        outcome = AttemptOutcome(
            DeliveryState.DELIVERED, 1000.0, 1.5, "ok", "", ChannelEffect.REACHED, is_editable=True
        )
        delivered = outcome._replace(receipt={"ts": "1", "digest": claim.task.delivery_id}, maybe_sent=True)
        named = delivered._replace(state=DeliveryState.QUEUED, maybe_sent=False)
        outcomes = [named if member.is_named_only else delivered for member in claim.members]
        return await record_outcomes(self.store, claim, outcomes, PAUSES)

    async def fail(self, task: Claim, reason: str = "timeout", **changes: Any) -> list[OutcomeResult]:
        outcome = AttemptOutcome(DeliveryState.RETRYING, 1000.0, 1.5, reason, "", ChannelEffect.FAILED)
        return await record_outcomes(self.store, task, [outcome._replace(**changes) for _ in task.members], PAUSES)

    async def rows(self) -> dict[str, Any]:
        """The last delivery of each incident."""
        found = await self.store.read(lambda connection: connection.execute(select(deliveries)).all())
        return {row.incident_id: row for row in sorted(found, key=lambda row: row.seq)}

    async def states(self, names: Iterable[str]) -> set[str]:
        rows = await self.rows()
        return {rows[name].state for name in names}


@pytest.fixture
async def storm(database: DatabaseUrl) -> AsyncIterator[Storm]:
    engine = create_engine(database)
    clock = FileClock() if engine.dialect.name == "sqlite" else ServerClock(engine)
    async with open_store(database, clock) as store:
        new_storm = Storm(store, clock)
        await new_storm.spend_burst()
        yield new_storm
    engine.dispose()


def list_incidents(task: Claim) -> list[str]:
    return [member.task.incident_id for member in task.members]


@each_store
async def test_few_go_one_by_one_and_more_go_as_one_message_for_one_token(storm: Storm) -> None:
    await storm.accept_events("abc")
    assert await storm.claim_alone() == ["a"]
    await storm.accept_events("de")
    taken = await storm.claim_digest()
    assert list_incidents(taken) == ["b", "c", "d", "e"]
    assert not (await storm.claim(after=0)).claims, "it cost a token"
    results = await storm.deliver(taken)
    assert [each.state for each in results] == [DeliveryState.DELIVERED] * 4
    rows = await storm.rows()
    assert {rows[name].digest_id for name in "bcde"} == {taken.task.delivery_id}
    assert all(f'"digest": "{taken.task.delivery_id}"' in rows[name].receipt for name in "bcde")
    assert rows["a"].digest_id is None
    assert (await storm.claim()).retry_in is None, "nothing is left"


async def test_a_channel_without_a_rate_or_without_digests_sends_each_alone(storm: Storm) -> None:
    await storm.accept_events("abcdef")
    assert [len(taken.members) for taken in (await storm.claim(size=0)).claims] == [0]
    everything = await claim_due(storm.store, ClaimRequest("a", 8, "me", 20, None, digest_over=OVER, digest_size=SIZE))
    assert [taken.task.incident_id for taken in everything.claims] == ["b", "c", "d", "e", "f"]


async def test_a_digest_names_a_limited_number_and_the_next_one_names_the_rest(storm: Storm) -> None:
    names = [f"{number:02}" for number in range(SIZE + OVER + 1)]
    await storm.accept_events(names)
    first, second = [list_incidents(await storm.claim_digest()) for _ in range(2)]
    assert (first, second) == (names[:SIZE], names[SIZE:])


async def test_what_waits_of_a_member_is_merged_and_the_digest_shows_its_current_state(storm: Storm) -> None:
    await storm.accept_events("abcd")
    await storm.accept_events("b", status="resolved")
    task = await storm.claim_digest()
    assert sorted(list_incidents(task)) == ["a", "b", "c", "d"]
    (member,) = [each.task for each in task.members if each.task.incident_id == "b"]
    assert member.last_event_seq > member.first_event_seq
    assert member.firing_undelivered
    # While it is sent, the next event of a member waits: one message of an incident at a time.
    await storm.accept_events("ab")
    assert not (await storm.claim()).claims
    await storm.deliver(task)
    assert await storm.claim_alone() == ["a", "b"], "what came meanwhile"


async def test_critical_ones_go_first_and_one_by_one_until_others_have_waited_for_a_burst(storm: Storm) -> None:
    await storm.accept_events("abcd")
    critical = [f"critical {number}" for number in range(8)]
    await storm.accept_events(critical, "critical")
    alone = [await storm.claim_alone() for _ in range(5)]
    assert list(chain.from_iterable(alone)) == critical[:5]
    claim = await storm.claim_digest()
    assert [(each.task.incident_id, each.is_named_only) for each in claim.members] == [
        *((name, True) for name in critical[5:]),
        *((name, False) for name in "abcd"),
    ]
    await storm.deliver(claim)
    rows = await storm.rows()
    assert await storm.states("abcd") == {"delivered"}
    assert {(rows[name].state, rows[name].attempts, rows[name].named_in) for name in critical[5:]} == {
        ("queued", 0, claim.task.delivery_id)
    }
    # Their own messages follow, and nothing names them again.
    await storm.accept_events("efgh")
    assert list(chain.from_iterable([await storm.claim_alone() for _ in range(3)])) == critical[5:]
    rows = await storm.rows()
    assert {(rows[name].state, rows[name].attempts, rows[name].digest_id) for name in critical} == {
        ("delivered", 1, None)
    }
    assert list_incidents(await storm.claim_digest()) == ["e", "f", "g", "h"]


@each_store
async def test_a_critical_one_that_changes_while_a_digest_names_it_sends_that(storm: Storm) -> None:
    await storm.accept_events("abcdef", "critical")
    for _ in range(5):
        await storm.claim_alone()
    await storm.accept_events("ghij", "critical")
    task = await storm.claim_digest()
    assert "j" in list_incidents(task)
    await storm.accept_events("j", "critical", "resolved")
    await storm.deliver(task)
    rows = await storm.rows()
    assert (rows["j"].state, rows["j"].digest_id, rows["j"].attempts) == ("retrying", None, 0)
    assert sum(row.finished_at is None for row in rows.values()) == 5


async def test_the_resolve_of_what_was_shown_alone_goes_alone_and_others_end_in_a_digest(storm: Storm) -> None:
    await storm.accept_events(["alone"])
    assert await storm.claim_alone() == ["alone"]
    await storm.accept_events("abcd")
    await storm.deliver(await storm.claim_digest())
    await storm.accept_events(["alone", *"abcd"], status="resolved")
    assert await storm.claim_alone() == ["alone"]
    task = await storm.claim_digest()
    assert list_incidents(task) == list("abcd")
    assert all((each.task.first_receipt or {}).keys() == {"ts", "digest"} for each in task.members)
    # An incident that fires again is shown in a digest all the same.
    await storm.deliver(task)
    await storm.accept_events("efgh")
    await storm.accept_events(["alone"])
    assert "alone" in list_incidents(await storm.claim_digest())


async def test_what_may_have_arrived_alone_or_was_refused_in_a_digest_goes_alone(storm: Storm) -> None:
    await storm.accept_events("abcd")
    await storm.fail(await storm.claim_digest(), "rejected", channel_effect=ChannelEffect.REACHED)
    await storm.accept_events("efgh")
    assert [await storm.claim_alone() for _ in range(4)] == [["a"], ["b"], ["c"], ["d"]]
    task = await storm.claim_digest()
    assert list_incidents(task) == list("efgh")
    await storm.deliver(task)
    await storm.accept_events("i")
    (lost,) = (await storm.claim()).claims
    await end_attempt(storm.store, lost, DeliveryState.RETRYING, reason="timeout", maybe_sent=True, retry_in=0.5)
    await storm.accept_events("jklm")
    (second,) = (await storm.claim()).claims
    assert (second.task.incident_id, second.task.maybe_sent, second.members) == ("i", True, ())


async def test_a_digest_that_did_not_arrive_is_collected_anew_with_what_came_meanwhile(storm: Storm) -> None:
    await storm.accept_events("abcd")
    claim = await storm.claim_digest()
    await storm.accept_events("b", status="resolved")
    await storm.fail(claim, "rate_limited", retry_in=0.5)
    await storm.accept_events("e")
    second = await storm.claim_digest()
    assert sorted(list_incidents(second)) == list("abcde")
    assert second.task.delivery_id != claim.task.delivery_id
    assert not second.task.maybe_sent


@pytest.mark.parametrize("end", ["answer lost", "lease expired", "stopped", "progress saved"])
async def test_a_digest_that_may_have_arrived_is_claimed_again_as_it_was(storm: Storm, end: str) -> None:
    await storm.accept_events("abcd")
    await storm.accept_events(["critical"], "critical")
    assert await storm.claim_alone() == ["critical"]
    claim = await storm.claim_digest()
    if end == "answer lost":
        await storm.fail(claim, maybe_sent=True, retry_in=0.5)
    elif end == "lease expired":
        storm.clock.move(20)
    elif end == "progress saved":
        assert await save_progress(storm.store, claim, {"sent to": "one of two"})
        await storm.fail(claim, retry_in=0.5)
    else:
        await release_leases(storm.store, "me")
    await storm.accept_events("b", status="resolved")
    await storm.accept_events("efghi")
    second = await storm.claim_digest(owner="other")
    assert (second.task.delivery_id, list_incidents(second)) == (claim.task.delivery_id, ["a", "c", "d"])
    assert second.task.maybe_sent == (end != "progress saved")
    assert second.attempt_number == (1 if end == "stopped" else 2)
    assert dict(second.task.progress) == ({"sent to": "one of two"} if end == "progress saved" else {})
    await storm.deliver(second)
    # An attempt without its lease changes nothing, and the current state is sent once more.
    if end == "lease expired":
        assert not any(each.lease_valid for each in await storm.deliver(claim))
    assert "b" in list_incidents(await storm.claim_digest())


@each_store
async def test_only_the_whole_of_a_digest_that_may_have_arrived_is_claimed(storm: Storm, database: DatabaseUrl) -> None:
    """Else a part of it would be searched for, and a post that does not name it be found."""
    await storm.accept_events("abcd")
    task = await storm.claim_digest()
    await storm.fail(task, maybe_sent=True, retry_in=0.5)
    rows = await storm.rows()
    assert await requeue(storm.store, rows["c"].id) == DeliveryState.RETRYING
    if database.get_backend_name() == "postgresql":
        engine = create_engine(database)
        with engine.begin() as other:
            other.execute(select(deliveries.c.seq).where(deliveries.c.id == rows["d"].id).with_for_update())
            assert not (await storm.claim()).claims, "another replica works on one of them"
        engine.dispose()
    second = await storm.claim_digest()
    assert list_incidents(second) == list("abcd")


async def test_each_member_has_its_attempts_and_a_digest_reaches_the_channel_once(storm: Storm) -> None:
    await storm.accept_events("abcd")
    await storm.fail(await storm.claim_digest(), retry_in=0.5)
    rows = await storm.rows()
    read = select(attempts.c.delivery_seq, attempts.c.number, attempts.c.reason)
    found = await storm.store.read(lambda connection: connection.execute(read).all())
    assert {(row.number, row.reason) for row in found if row.delivery_seq == rows["b"].seq} == {(1, "timeout")}
    (channel,) = await storm.store.read(CHANNELS.fetch_all)
    assert channel.failures == 1


async def test_what_the_rate_allows_at_once_goes_alone_however_few_make_a_storm(storm: Storm) -> None:
    storm.clock.move(60)
    await storm.accept_events("abcde")
    assert await storm.claim_alone() == list("abcde")


async def test_an_episode_that_was_only_in_a_digest_ends_in_one_whatever_earlier_ones_did(storm: Storm) -> None:
    await storm.accept_events(["flapping"])
    assert await storm.claim_alone() == ["flapping"]
    await storm.accept_events(["flapping"], status="resolved")
    assert await storm.claim_alone() == ["flapping"]
    for status in ("firing", "resolved"):
        await storm.accept_events(["flapping"], status=status, episode=2)
        await storm.accept_events("abcd", status=status)
        task = await storm.claim_digest()
        assert "flapping" in list_incidents(task)
        await storm.deliver(task)


async def test_after_an_outage_a_critical_one_tries_the_channel_and_others_follow(storm: Storm) -> None:
    for number in range(FAILURE_THRESHOLD):
        await storm.accept_events([f"lost {number}"])
        (task,) = (await storm.claim()).claims
        failure = {"reason": "server_error", "retry_in": 1000.0}
        await end_attempt(storm.store, task, DeliveryState.RETRYING, **failure)
    await storm.accept_events("abcd")
    await storm.accept_events(["critical"], "critical")
    storm.clock.move(400)
    (trial,) = (await storm.claim()).claims
    assert (trial.task.incident_id, trial.is_breaker_trial) == ("critical", True)
    await end_attempt(storm.store, trial)
    assert set("abcd") <= set(list_incidents(await storm.claim_digest()))


async def test_progress_of_a_digest_is_none_of_a_message_that_it_only_named(storm: Storm) -> None:
    await storm.accept_events([f"critical {number}" for number in range(12)], "critical")
    for _ in range(5):
        await storm.claim_alone()
    task = await storm.claim_digest()
    assert await save_progress(storm.store, task, {"sent to": "one of two"})
    await storm.deliver(task)
    rows = await storm.rows()
    assert {row.progress for row in rows.values()} == {None}


async def list_edits(storm: Storm) -> dict[str, set[tuple[str, Status]]]:
    """What the digests will show that are to be edited now: each incident with its status."""
    claimed = await claim_edits(storm.store, EditClaimRequest("scope", ("a",), 100, "editor", 20, None))
    digests = [(await prepare(storm.store, edit.claim)).task for edit in claimed.claims if edit.claim.members]
    assert all(digest.first_receipt in ({"ts": "1", "digest": digest.delivery_id}, {}) for digest in digests)
    return {
        digest.incident_id: {
            (member.task.incident_id, decode_event(member.task.event_json).status) for member in digest.members
        }
        for digest in digests
    }


async def test_a_digest_shows_the_end_of_what_it_only_named_though_that_came_before_its_own_message(
    storm: Storm,
) -> None:
    claim = await storm.deliver_digest_of_critical()
    assert await storm.claim_alone() == ["f"]
    await storm.accept_events("i", "critical", "resolved")
    assert [await storm.claim_alone() for _ in range(3)] == [["g"], ["h"], ["i"]]
    edited = await list_edits(storm)
    assert ("i", Status.RESOLVED) in edited[claim.task.delivery_id]


async def test_a_digest_stays_one_when_it_is_edited_in_the_same_round_as_the_message_of_an_incident_that_it_named(
    storm: Storm,
) -> None:
    taken = await storm.deliver_digest_of_critical()
    assert [await storm.claim_alone() for _ in range(4)] == [["f"], ["g"], ["h"], ["i"]]
    await storm.accept_events("fghi", "critical", "resolved")
    for _ in range(4):
        await storm.claim_alone()
    claimed = await claim_edits(storm.store, EditClaimRequest("scope", ("a",), 100, "editor", 20, None))
    members = {
        edit.claim.task.incident_id: [member.task.incident_id for member in edit.claim.members]
        for edit in claimed.claims
    }
    assert members == {taken.task.delivery_id: ["f", "g", "h", "i"], "f": [], "g": [], "h": [], "i": []}


async def test_a_digest_shows_an_end_that_was_merged_into_the_next_episode(storm: Storm) -> None:
    await storm.accept_events("abcd")
    claim = await storm.claim_digest()
    await storm.deliver(claim)
    await storm.accept_events("b", status="resolved")
    await storm.accept_events("b", episode=2)
    assert await storm.claim_alone() == ["b"]
    edited = await list_edits(storm)
    assert ("b", Status.RESOLVED) in edited[claim.task.delivery_id]


@each_store
async def test_a_digest_that_may_have_arrived_with_an_older_state_is_edited(storm: Storm) -> None:
    await storm.accept_events("abcd")
    claim = await storm.claim_digest()
    await storm.fail(claim, maybe_sent=True, retry_in=0.5)
    await storm.accept_events("b", status="resolved")
    second = await storm.claim_digest()
    assert (second.task.delivery_id, list_incidents(second)) == (claim.task.delivery_id, ["a", "c", "d"])
    await storm.deliver(second)
    expected = {*((name, Status.FIRING) for name in "acd"), ("b", Status.RESOLVED)}
    assert await list_edits(storm) == {claim.task.delivery_id: expected}


@pytest.mark.parametrize("end", ["answer lost", "changed meanwhile", "lease expired", "stopped", "given up"])
async def test_a_digest_whose_answer_was_lost_is_edited_though_all_of_it_changed(storm: Storm, end: str) -> None:
    await storm.accept_events("abcd")
    taken = await storm.claim_digest()
    if end == "changed meanwhile":
        await storm.accept_events("abcd", status="resolved")
    if end == "lease expired":
        storm.clock.move(20)
    elif end == "stopped":
        await release_leases(storm.store, "me")
    else:
        state = DeliveryState.DEAD if end == "given up" else DeliveryState.RETRYING
        await storm.fail(taken, state=state, maybe_sent=True, retry_in=0.5)
    if end != "changed meanwhile":
        await storm.accept_events("abcd", status="resolved")
    while claimed := (await storm.claim(owner="other")).claims:
        for each in claimed:
            assert each.task.delivery_id != taken.task.delivery_id
            await (storm.deliver(each) if each.members else end_attempt(storm.store, each, is_editable=True))
    (lost,) = (await claim_edits(storm.store, EditClaimRequest("scope", ("a",), 100, "editor", 20, None))).claims
    assert (lost.claim.task.delivery_id, lost.claim.task.first_receipt) == (taken.task.delivery_id, {})
    found = {"ts": "2", "digest": taken.task.delivery_id}
    assert await record_edit(storm.store, "scope", lost, EditOutcome(EditResult.EDITED, "ok", receipt=found))
    # From then on it is edited where it was found.
    await storm.accept_events("a", status="resolved")
    await storm.claim_alone()
    claims = (await claim_edits(storm.store, EditClaimRequest("scope", ("a",), 100, "editor", 20, None))).claims
    assert {edit.claim.task.delivery_id: edit.claim.task.first_receipt for edit in claims}[
        taken.task.delivery_id
    ] == found


@pytest.mark.parametrize("arrived", [False, True])
async def test_a_digest_whose_answer_was_lost_is_edited_after_digests_were_turned_off(
    storm: Storm, arrived: bool
) -> None:
    await storm.accept_events("abcd")
    taken = await storm.claim_digest()
    await storm.fail(taken, maybe_sent=arrived, retry_in=0.5)
    for _ in "abcd":
        (alone,) = (await storm.claim(size=0)).claims
        await end_attempt(storm.store, alone, is_editable=True, receipt={"ts": "of its own"})
    expected = {(name, Status.FIRING) for name in "abcd"}
    assert await list_edits(storm) == ({taken.task.delivery_id: expected} if arrived else {})


@pytest.mark.parametrize("end", [DeliveryState.RETRYING, DeliveryState.DEAD])
async def test_what_may_have_arrived_alone_goes_alone_when_it_changes_in_a_storm(
    storm: Storm, end: DeliveryState
) -> None:
    """Only a message of its own finds the other one, and edits it."""
    await storm.accept_events("a")
    (lost,) = (await storm.claim()).claims
    await end_attempt(storm.store, lost, end, reason="timeout", maybe_sent=True, retry_in=0.5)
    await storm.accept_events("abcdefg")
    (alone,) = (await storm.claim()).claims
    assert (alone.task.incident_id, alone.members) == ("a", ())
    assert [each.delivery_id for each in alone.task.predecessors] == [lost.task.delivery_id]
    await end_attempt(storm.store, alone, is_editable=True)
    assert list_incidents(await storm.claim_digest()) == list("bcdefg")
    await storm.accept_events("a", episode=2)
    await storm.accept_events("hijk")
    assert "a" in list_incidents(await storm.claim_digest())


async def test_a_digest_is_edited_as_long_as_the_outbox_has_one_of_its_incidents(storm: Storm) -> None:
    await storm.accept_events("abcd")
    claim = await storm.claim_digest()
    await storm.deliver(claim)
    ended = update(incidents).where(incidents.c.id == "a").values(is_open=0)
    await storm.store.run(lambda transaction: transaction.connection.execute(ended))
    storm.clock.move(1000)
    await prune_before(storm.store, await storm.store.run(lambda transaction: transaction.now) - 500)
    assert "a" not in await storm.rows()
    await storm.accept_events("b", status="resolved")
    assert await storm.claim_alone() == ["b"]
    edited = await list_edits(storm)
    assert ("b", Status.RESOLVED) in edited[claim.task.delivery_id]
    # With the last of them it is forgotten.
    await storm.store.run(lambda transaction: transaction.connection.execute(update(incidents).values(is_open=0)))
    await storm.store.run(
        lambda transaction: transaction.connection.execute(update(edits).values(shown=edits.c.wanted))
    )
    await prune_before(storm.store, await storm.store.run(lambda transaction: transaction.now) + 500)
    assert await storm.rows() == {}


async def test_a_digest_that_is_refused_after_its_answer_was_lost_goes_one_by_one(storm: Storm) -> None:
    await storm.accept_events("abcd")
    await storm.fail(await storm.claim_digest(), maybe_sent=True, retry_in=0.5)
    second = await storm.claim_digest()
    assert second.task.maybe_sent
    await storm.fail(second, "rejected", channel_effect=ChannelEffect.REACHED)
    assert [await storm.claim_alone() for _ in range(4)] == [["a"], ["b"], ["c"], ["d"]]


async def test_one_incident_alone_is_no_digest(storm: Storm) -> None:
    await storm.accept_events([f"critical {number}" for number in range(20)], "critical")
    for _ in range(5):
        await storm.claim_alone()
    for _ in range(2):
        await storm.deliver(await storm.claim_digest())
    await storm.accept_events("a")
    for _ in range(5):
        await storm.claim_alone()
    assert await storm.claim_alone() == ["a"], "it has waited for long enough"


async def test_the_payload_of_an_attempt_stays_when_the_next_one_finds_its_message(storm: Storm) -> None:
    await storm.accept_events("abcd")
    await storm.fail(await storm.claim_digest(), maybe_sent=True, retry_in=0.5, payload=b"sent")
    await storm.deliver(await storm.claim_digest())
    assert {row.payload for name, row in (await storm.rows()).items() if name in "abcd"} == {b"sent"}


@pytest.mark.parametrize("arrived", [False, True])
async def test_where_digests_are_turned_off_their_members_go_alone(storm: Storm, arrived: bool) -> None:
    await storm.accept_events("abcd")
    task = await storm.claim_digest()
    await storm.fail(task, maybe_sent=arrived, retry_in=0.5)
    alone = []
    for _ in range(4):
        (one,) = (await storm.claim(size=0)).claims
        assert (one.members, one.task.maybe_sent) == ((), arrived)
        await end_attempt(storm.store, one)
        alone.append(one.task.incident_id)
    assert alone == list("abcd")
    rows = await storm.rows()
    assert {(rows[name].state, rows[name].digest_id) for name in "abcd"} == {("delivered", None)}


async def test_a_member_that_was_given_up_is_resent_as_a_delivery_of_its_own(storm: Storm) -> None:
    await storm.accept_events("abcd")
    await storm.fail(await storm.claim_digest(), state=DeliveryState.DEAD, maybe_sent=True)
    rows = await storm.rows()
    assert await storm.states("abcd") == {"dead"}
    assert await requeue(storm.store, rows["c"].id) == DeliveryState.DEAD
    (second,) = (await storm.claim()).claims
    assert (second.task.incident_id, second.members, second.task.maybe_sent) == ("c", (), False)


async def test_members_of_a_digest_that_cannot_be_built_go_alone_so_that_one_does_not_hold_up_the_others(
    storm: Storm,
) -> None:
    await storm.accept_events("abcd")
    for _ in range(3):
        await storm.fail(await storm.claim_digest(), "internal", channel_effect=ChannelEffect.UNCHANGED, retry_in=0.5)
    assert [await storm.claim_alone() for _ in range(4)] == [["a"], ["b"], ["c"], ["d"]]
