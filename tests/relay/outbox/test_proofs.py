"""Proofs of the path in the outbox, on both stores."""

import time
from collections.abc import Collection
from typing import Any

import pytest
from sqlalchemy import select, update

from services.relay.model import Claim
from services.relay.outbox.claim import ClaimRequest, claim_due, release_leases
from services.relay.outbox.proofs import (
    CHANNEL_PROOFS,
    KEPT_SECONDS,
    PATH_PROOFS,
    Hop,
    PathProof,
    accept_proofs,
    find_interval,
    prune_proofs,
    read_times,
    record_losses,
    record_proof,
)
from services.relay.outbox.served_channels import record_served_channels
from services.relay.outbox.store import Store, Transaction
from services.relay.outbox.tables import DeliveryState, channel_proofs, channels
from tests.relay.outbox.rows import Rows
from tests.stores import each_store

EVERY = 900.0


async def accept(store: Store, ago: float = 0.0, channels: Collection[str] = ("a", "b"), **changes: Any) -> set[str]:
    started = find_interval(time.time() - ago, EVERY)
    proof = PathProof(started, "production", "ledger", started + 20)._replace(**changes)
    return set(await accept_proofs(store, [proof], channels, every=EVERY, received_at=time.time()))


async def claim(store: Store, channel: str = "a", **changes: Any) -> Claim | None:
    request = ClaimRequest(channel, 8, "owner", lease_seconds=20, rate=1.0)._replace(**changes)
    claims = (await claim_due(store, request)).claims
    return claims[0] if claims else None


async def states(store: Store) -> dict[str, tuple[int, str | None, str | None]]:
    found = await store.read(CHANNEL_PROOFS.fetch_all)
    return {row.channel: (row.attempts, row.level, row.hop) for row in found}


async def lose(store: Store, interval: float, *channels: str, hop: Hop = Hop.PROMETHEUS) -> dict[str, Hop]:
    return dict(await store.run(lambda transaction: record_losses(transaction, interval, channels, hop, "why")))


@each_store
async def test_an_interval_has_one_proof_on_each_channel_however_many_send_it(store: Store) -> None:
    assert await accept(store) == {"a", "b"}
    assert await accept(store, service="billing") == set()  # another service
    assert await accept(store) == set()  # the other Alertmanager of a pair
    assert set(await states(store)) == {"a", "b"}


async def test_of_an_interval_a_hundred_services_are_stored_and_the_first_ones_in_any_order(store: Store) -> None:
    started = find_interval(time.time(), EVERY)
    proofs = [PathProof(started, "production", f"{number:03}", started) for number in range(150)]
    for half in (proofs[:60], proofs, proofs[::-1]):
        await accept_proofs(store, frozenset(half), ["a"], every=EVERY, received_at=started)
    assert len(await store.read(PATH_PROOFS.fetch_all)) == 100


@pytest.mark.parametrize(("ago", "taken"), [(EVERY, True), (3 * EVERY, False), (-2 * EVERY, False)])
async def test_a_proof_that_is_lost_already_or_of_a_wrong_clock_proves_nothing(
    store: Store, ago: float, taken: bool
) -> None:
    assert await accept(store, ago) == ({"a", "b"} if taken else set())


async def test_a_proof_waits_for_every_delivery_and_for_a_token_and_leaves_that_to_the_next_delivery(
    store: Store, rows: Rows
) -> None:
    await rows.delivery(await rows.event(), "a", DeliveryState.QUEUED)
    await accept(store)
    first = await claim(store, limit=1, rate=0.001)
    assert first is not None
    assert not first.task.is_proof
    assert await claim(store, rate=0.001) is None, "there is no token"
    second = await claim(store)
    assert second is not None
    assert second.task.is_proof
    assert await claim(store) is None, "it is in flight"
    found = await claim(store, "b", rate=0.001)
    assert found is not None
    assert found.task.is_proof
    await rows.delivery(await rows.event(), "b", DeliveryState.QUEUED)
    page = await claim(store, "b", rate=0.001)
    assert page is not None
    assert not page.task.is_proof


async def test_a_proof_that_failed_is_tried_again_and_one_that_succeeded_is_not(store: Store) -> None:
    await accept(store, channels=["a"])
    first = await claim(store)
    assert first is not None
    assert await record_proof(store, first, None, "Slack answered token_revoked")
    assert await states(store) == {"a": (1, None, None)}
    assert await claim(store) is None, "not before a minute"
    await store.run(lambda transaction: transaction.connection.exec_driver_sql("UPDATE channel_proofs SET due_at = 0"))
    second = await claim(store)
    assert second is not None
    assert second.attempt_number == 2
    assert not await record_proof(store, first, "reachable", ""), "its lease is another's"
    assert await record_proof(store, second, "read_back", "")
    assert await states(store) == {"a": (2, "read_back", None)}
    times = (await store.read(read_times))["a"]
    assert times.by_level == {"read_back": pytest.approx(time.time(), abs=60)}
    assert await claim(store) is None


async def test_a_proof_that_fails_is_tried_four_times_in_an_interval(store: Store) -> None:
    """A mailbox is locked after a few wrong passwords."""
    await accept(store, channels=["a"])
    pauses = []
    for _ in range(6):
        found = await claim(store)
        assert found is not None
        await record_proof(store, found, None, "535 wrong password")
        (pause,) = await store.run(make_due)
        pauses.append(pause)
    assert pauses == pytest.approx([60, 120, 240, 480, 960, 960], abs=5)
    assert sum(pauses[:4]) >= EVERY - 5


def make_due(transaction: Transaction) -> list[float]:
    """Makes all proofs due now; gives in how many seconds each would have been."""
    due = transaction.connection.scalars(select(channel_proofs.c.due_at)).all()
    transaction.connection.execute(update(channel_proofs).values(due_at=transaction.now))
    return [at - transaction.now for at in due]


async def test_only_the_newest_proof_of_a_channel_is_tried(store: Store) -> None:
    await accept(store, EVERY, channels=["a"])
    await accept(store, channels=["a"])
    found = await claim(store)
    assert found is not None
    await record_proof(store, found, "reachable", "")
    left = await store.read(CHANNEL_PROOFS.fetch_all)
    assert sorted((row.attempts, row.level) for row in left) == [(0, None), (1, "reachable")]


async def test_a_clean_stop_gives_a_claimed_proof_to_the_next_relay(store: Store) -> None:
    await accept(store, channels=["a"])
    assert await claim(store)
    assert await claim(store, lease_owner="other") is None
    await release_leases(store, "owner")
    assert await claim(store, lease_owner="other")


@each_store
async def test_a_lost_proof_is_counted_once_at_the_hop_that_had_it_last(store: Store) -> None:
    interval = find_interval(time.time(), EVERY)
    await accept(store, channels=["proven", "tried", "waiting"])
    for channel, level in (("proven", "accepted"), ("tried", None)):
        found = await claim(store, channel)
        assert found is not None
        await record_proof(store, found, level, "")
    lost = await lose(store, interval, "proven", "tried", "waiting", "never came")
    assert lost == {"tried": Hop.CHANNEL, "waiting": Hop.OUTBOX, "never came": Hop.PROMETHEUS}
    assert await lose(store, interval, "proven", "tried", "waiting", "never came") == {}
    assert await claim(store, "waiting") is None


async def test_what_waits_behind_a_circuit_breaker_is_lost_at_its_channel(store: Store) -> None:
    interval = find_interval(time.time(), EVERY)
    await accept(store, channels=["revoked", "busy"])
    await record_served_channels(store, {"revoked": None, "busy": None})
    down = "UPDATE channels SET is_down = 1, failed_detail = 'token_revoked' WHERE name = 'revoked'"
    await store.run(lambda transaction: transaction.connection.exec_driver_sql(down))
    assert await lose(store, interval) == {"revoked": Hop.CHANNEL, "busy": Hop.OUTBOX}
    found = await store.read(CHANNEL_PROOFS.fetch_all)
    assert {row.channel: row.error for row in found} == {"revoked": "token_revoked", "busy": None}


async def test_a_clock_that_was_set_back_leaves_nothing_proven_until_then(store: Store) -> None:
    await record_served_channels(store, {"a": None})
    await accept(store, channels=["a"])
    found = await claim(store)
    assert found is not None
    await record_proof(store, found, "reachable", "")
    for ahead in (
        "UPDATE channels SET served_at = served_at + 86400, served_since = served_since + 86400",
        "UPDATE channel_proofs SET interval_at = interval_at + 86400, ended_at = ended_at + 86400",
    ):
        await store.run(lambda transaction: transaction.connection.exec_driver_sql(ahead))  # noqa: B023
    await record_served_channels(store, {"a": None})
    await prune_proofs(store, 0.0)
    proven_at = (await store.read(read_times))["a"].proven_at
    assert proven_at == pytest.approx(time.time(), abs=60)


async def test_a_channel_without_a_proof_counts_from_when_it_is_served(store: Store) -> None:
    await record_served_channels(store, {"a": None})
    (served,) = (await store.read(read_times)).values()
    ((level, since),) = served.list_levels()
    assert level == "none"
    assert since == pytest.approx(time.time(), abs=60)
    await record_served_channels(store, {"a": None})
    assert (await store.read(read_times))["a"] == served, "it was served all the time"
    earlier = "UPDATE channels SET served_since = served_since - 7200"
    await store.run(lambda transaction: transaction.connection.exec_driver_sql(earlier))
    await record_served_channels(store, {"a": None}, EVERY)
    newly = (await store.read(read_times))["a"].served_since
    assert newly == pytest.approx(time.time(), abs=60), "only now it is proven, or with another interval"


@pytest.mark.parametrize(
    ("served_at", "served_since", "ended_at", "proven_at"),
    [
        pytest.param(-300, -7200, None, -7200, id="it never had a proof"),
        pytest.param(-300, -7200, -6000, -6000, id="it lost its proofs"),
        pytest.param(-300, -7200, -1000, 0, id="it was proven"),
        pytest.param(-300, -1000, -6000, 0, id="its first proof was not due yet"),
        pytest.param(-3600, -7200, -6000, 0, id="no proof could come for a whole interval"),
        pytest.param(None, -7200, -6000, 0, id="it was not configured meanwhile"),
    ],
)
async def test_a_relay_that_was_away_for_a_moment_leaves_a_channel_unproven(
    store: Store, served_at: float | None, served_since: float, ended_at: float | None, proven_at: float
) -> None:
    await record_served_channels(store, {"a": None}, EVERY)
    await accept(store, channels=["a"])

    def go_away(transaction: Transaction) -> None:
        at = {each: each and transaction.now + each for each in (served_at, served_since, ended_at)}
        served = update(channels).values(served_at=at[served_at], served_since=at[served_since])
        transaction.connection.execute(served)
        level = None if ended_at is None else "reachable"
        transaction.connection.execute(update(channel_proofs).values(level=level, ended_at=at[ended_at]))

    await store.run(go_away)
    for _ in range(2):
        await record_served_channels(store, {"a": None}, EVERY)
    found = (await store.read(read_times))["a"].proven_at
    assert found == pytest.approx(time.time() + proven_at, abs=60)


@each_store
async def test_proofs_are_kept_for_a_month_whatever_else_is(store: Store) -> None:
    await accept(store)
    await prune_proofs(store, time.time() + KEPT_SECONDS)
    assert len(await states(store)) == 2
    old = f"UPDATE channel_proofs SET interval_at = interval_at - {KEPT_SECONDS + EVERY}"  # noqa: S608  # of two numbers
    await store.run(lambda transaction: transaction.connection.exec_driver_sql(old))
    await prune_proofs(store, 0.0)
    assert await states(store) == {}
