"""Order, leases, and what a crash or a stop leaves behind."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from services.relay.model import Event
from services.relay.outbox.accept import Accepted, Incoming, Plan, accept
from services.relay.outbox.claim import Claim, claim, give_back, next_due
from services.relay.outbox.query import Filter, one, recent
from services.relay.outbox.receipt import Ending, record
from services.relay.outbox.schema import State
from services.relay.outbox.store import Store, opened
from tests.relay.scripted import event_of


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def store(tmp_path: Path, clock: Clock) -> AsyncIterator[Store]:
    async with opened(tmp_path / "relay.db", clock) as store:
        yield store


async def told(store: Store, incident: str, *channels: str, episode: int = 1, event: Event | None = None) -> Accepted:
    incoming = Incoming(event or event_of(), incident, "fingerprint", "KMSTest", b"{}")
    return await accept(store, incoming, lambda _known, _now: Plan(episode, open=True, channels=channels or ("a",)))


async def claimed(store: Store, channel: str = "a", owner: str = "me") -> Claim:
    found = await claim(store, channel, owner=owner, seconds=20)
    assert found is not None
    return found


async def nothing(store: Store, channel: str = "a") -> bool:
    return await claim(store, channel, owner="me", seconds=20) is None


def ended(state: State, due_at: float | None = None, number: int = 1) -> Ending:
    receipt = {"number": str(number)} if state is State.DELIVERED else None
    return Ending(state, 1000.0, 1001.5, "ok", "", receipt, due_at)


def ended_at(now: float, due_at: float) -> Ending:
    return Ending(State.RETRYING, now - 1.5, now, "timeout", "", None, due_at)


async def test_the_oldest_is_claimed_first_and_incidents_do_not_wait_for_each_other(store: Store) -> None:
    await told(store, "x")
    await told(store, "y")
    assert [(await claimed(store)).incident_id for _ in range(2)] == ["x", "y"]
    assert await nothing(store)


async def test_an_incident_goes_out_one_by_one_in_the_order_of_acceptance(store: Store, clock: Clock) -> None:
    for _ in range(3):
        await told(store, "x")
    first = await claimed(store)
    assert await nothing(store)
    await record(store, first, ended(State.RETRYING, due_at=clock.now + 5))
    assert await nothing(store)
    assert await next_due(store, "a") == clock.now + 5
    clock.now += 5
    again = await claimed(store)
    assert (again.delivery_id, again.attempt) == (first.delivery_id, 2)
    await record(store, again, ended(State.DELIVERED))
    second = await claimed(store)
    assert second.delivery_id != first.delivery_id
    await record(store, second, ended(State.DEAD))
    assert (await claimed(store)).delivery_id not in {first.delivery_id, second.delivery_id}


async def test_channels_do_not_wait_for_each_other(store: Store) -> None:
    await told(store, "x", "a", "b")
    assert (await claimed(store, "a")).delivery_id != (await claimed(store, "b")).delivery_id


async def test_a_crashed_relays_claim_returns_when_its_lease_ends(store: Store, clock: Clock) -> None:
    await told(store, "x")
    lost = await claimed(store)
    assert await next_due(store, "a") == clock.now + 20
    clock.now += 19.9
    assert await nothing(store)
    clock.now += 0.1
    again = await claimed(store, owner="other")
    assert again.delivery_id == lost.delivery_id
    assert not await record(store, lost, ended(State.DELIVERED))  # its time is over
    assert await record(store, again, ended(State.DELIVERED))
    assert await next_due(store, "a") is None


@pytest.mark.parametrize("back", [30, 3600, 86400 * 365])
async def test_a_clock_that_is_set_back_holds_up_nothing(store: Store, clock: Clock, back: float) -> None:
    clock.now = 1e9
    for incident in ("retried", "leased", "given back", "queued"):
        await told(store, incident)
    await record(store, await claimed(store), ended_at(clock.now, due_at=clock.now + 300))
    await claimed(store, owner="crashed")
    await claimed(store, owner="stopped")
    await give_back(store, "stopped")
    clock.now -= back
    assert [(await claimed(store)).incident_id for _ in range(4)] == ["retried", "leased", "given back", "queued"]
    clock.now -= back
    assert await nothing(store)  # what this very run holds, it holds: another claim would send it twice


async def test_a_clock_that_is_set_back_by_a_moment_ends_no_wait_and_no_lease(store: Store, clock: Clock) -> None:
    clock.now = 1e9
    await told(store, "retried")
    await told(store, "leased")
    await record(store, await claimed(store), ended_at(clock.now, due_at=clock.now + 300))
    await claimed(store, owner="them")
    clock.now -= 5
    assert await nothing(store)
    clock.now += 5
    clock.now += 300
    assert (await claimed(store)).incident_id == "retried"


async def test_a_clean_stop_returns_its_own_claims_and_no_others(store: Store) -> None:
    await told(store, "x")
    await told(store, "y")
    mine, _theirs = await claimed(store, owner="me"), await claimed(store, owner="them")
    await give_back(store, "me")
    back = await claimed(store)
    assert (back.delivery_id, back.attempt) == (mine.delivery_id, 1)
    assert await nothing(store)


async def test_the_first_receipt_is_that_of_this_episode_on_this_channel(store: Store) -> None:
    for episode in (1, 1, 1, 2):
        await told(store, "x", "a", "b", episode=episode)
    receipts = []
    for number in range(1, 5):
        mine = await claimed(store, "a")
        receipts.append(mine.first_receipt)
        await record(store, mine, ended(State.DEAD if number == 1 else State.DELIVERED, number=number))
    assert receipts == [None, None, {"number": "2"}, None]
    assert (await claimed(store, "b")).first_receipt is None


async def test_an_event_comes_out_as_it_went_in(store: Store) -> None:
    event = event_of("resolved", source="eu", truncated_alerts=3)
    await told(store, "x", event=event)
    assert (await claimed(store)).event() == event


async def test_a_delivery_is_its_own_receipt_with_each_of_its_attempts(store: Store, clock: Clock) -> None:
    accepted = await told(store, "x")
    await record(store, await claimed(store), ended(State.RETRYING, due_at=clock.now))
    await record(store, await claimed(store), ended(State.DELIVERED))
    (delivery,) = await recent(store, Filter(state=State.DELIVERED, channel="a"), limit=10)
    assert (delivery.event_id, delivery.attempts, delivery.receipt) == (accepted.event_id, 2, {"number": "1"})
    assert (delivery.accepted_at, delivery.finished_at) == (1000.0, 1001.5)
    found = await one(store, delivery.id)
    assert found is not None
    assert [(attempt.number, attempt.seconds) for attempt in found[1]] == [(1, 1.5), (2, 1.5)]
    assert await recent(store, Filter(state=State.DEAD), limit=10) == []
    assert await recent(store, Filter(channel="b"), limit=10) == []
    assert await one(store, "unknown") is None
