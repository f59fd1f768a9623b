"""A `Retry-After` longer than the longest backoff takes the channel down until a person fixes it."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest

from services.relay.deliveries.retries import retry_channel, retry_delivery
from services.relay.outbox.audit import Actor
from services.relay.outbox.tables import DeliveryState
from shared.sql.database_url import DatabaseUrl
from tests.relay.delivery.worker_harness import Rig, broken, policy_of, rig
from tests.relay.served_relay import Scripted, until

POLICY = policy_of(0.01, 300, 90_000)
DAY = 86_400.0
REMARK = "Also sent here because channel a is down."


@asynccontextmanager
async def pause_for_a_day(database: DatabaseUrl, *others: str) -> AsyncIterator[tuple[Rig, Scripted, Scripted]]:
    """Channel `a` was told to wait for a day."""
    channel, other = Scripted(broken(retry_after=DAY)), Scripted()
    async with rig(database, POLICY, fallback=others, a=channel, b=other) as it:
        await it.accept_events("firing", channels=("a",))
        await until(lambda: bool(channel.attempted))

        async def waits() -> bool:
            return [each.state for each in await it.deliveries("a")] == [DeliveryState.RETRYING]

        await until(waits)
        yield it, channel, other


async def test_it_counts_as_down_and_others_report_what_waits_and_what_comes_at_once(database: DatabaseUrl) -> None:
    async with pause_for_a_day(database, "b") as (it, channel, other):
        assert await it.refused() == {"a"}
        await it.accept_events("firing", group="meanwhile", channels=("a",))
        await until(lambda: len(other.sent) == 2)
        assert len(channel.attempted) == 1
    assert {message.task.remark for message in other.sent} == {REMARK}


async def retry_one(it: Rig, _channel: Scripted) -> None:
    (waiting,) = await it.deliveries("a")
    await retry_delivery(it.store, waiting.id, {"a"})


async def retry_whole_channel(it: Rig, _channel: Scripted) -> None:
    assert [requeued async for requeued in retry_channel(it.store, "a", None, Actor("alice"))] == []  # none is dead


@pytest.mark.parametrize("act", [retry_one, retry_whole_channel])
async def test_a_person_ends_it(database: DatabaseUrl, act: Callable[[Rig, Scripted], Awaitable[None]]) -> None:
    async with pause_for_a_day(database) as (it, channel, _):
        await act(it, channel)
        (delivery,) = await it.finished("a")
        assert delivery.state is DeliveryState.DELIVERED
        assert await it.refused() == set()
