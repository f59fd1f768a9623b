"""Channels are checked at a sparing pace, by one replica each."""

from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path

import pytest

from services.relay.channel_health.checks import ChannelChecker, ChannelCheckMonitor
from services.relay.channel_health.store import CheckKind, CheckRow, list_checks
from services.relay.outbox.store import Store, open_store
from shared.check import CheckOutcome, CheckResult
from shared.sql.database_url import create_sqlite_url
from tests.relay.outbox.channel_breakers import Clock
from tests.relay.outbox.channel_state.test_channel_checks import change

DAY, HOUR = 86400.0, 3600.0


class Relay:
    """One replica: what it checked, and what a check finds."""

    def __init__(self, store: Store) -> None:
        self.checker = ChannelChecker(store, self.run, lambda: 0.0)
        self.checked: list[str] = []
        self.finds = CheckOutcome.PASSED

    async def run(self, channel: str) -> list[CheckResult]:
        self.checked.append(channel)
        return [] if channel == "log" else [CheckResult("token", self.finds, "its detail", "its hint")]

    async def play(self, monitor: ChannelCheckMonitor) -> list[str]:
        """What is checked until nothing more is due."""
        self.checked.clear()
        while await monitor.check_next() == 5:
            pass
        return list(self.checked)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def store(tmp_path: Path, clock: Clock) -> AsyncIterator[Store]:
    async with open_store(create_sqlite_url(tmp_path / "relay.db"), clock) as store:
        yield store


async def list_all(store: Store, channel: str) -> list[CheckRow]:
    return await store.read(partial(list_checks, channel=channel, kind=CheckKind.CHECK, limit=9))


async def test_each_is_checked_at_the_start_then_daily_and_hourly_while_it_fails(store: Store, clock: Clock) -> None:
    channels = ("log", "mail", "slack")
    one, other = Relay(store), Relay(store)
    first, second = (ChannelCheckMonitor(each.checker, channels, None) for each in (one, other))
    assert [await each.check_next() for each in (first, second)] == [15, 15]
    assert await one.play(first) == [*channels]
    assert await other.play(second) == []  # somebody has
    assert await list_all(store, "log") == []
    (row,) = await list_all(store, "mail")
    assert (row.problem, row.requested_by, row.started_at) == (None, None, clock.now)

    clock.now += DAY - 1
    assert await one.play(first) == []
    clock.now += 1
    other.finds = CheckOutcome.FAILED
    assert await other.play(second) == [*channels]
    clock.now += HOUR
    assert await one.play(first) == ["mail", "slack"]
    assert [each.problem for each in await list_all(store, "mail")] == [None, "its detail", None]
    restarted = ChannelCheckMonitor(one.checker, channels, None)
    await restarted.check_next()
    assert await one.play(restarted) == ["log"]  # the others were checked a moment ago
    assert await one.checker.check("mail", 10, "anna") is None
    clock.now += 10
    found = await one.checker.check("mail", 10, "anna")
    assert found is not None
    assert (await list_all(store, "mail"))[0].requested_by == "anna"


async def test_a_reload_checks_what_has_changed_and_a_busy_channel_waits(store: Store, clock: Clock) -> None:
    relay = Relay(store)
    monitor = ChannelCheckMonitor(relay.checker, ("mail", "slack"), None)
    await monitor.check_next()
    assert await relay.play(monitor) == ["mail", "slack"]
    clock.now += 60
    monitor = ChannelCheckMonitor(relay.checker, ("mail", "slack", "new"), ("slack", "new"))
    await monitor.check_next()
    await change(store, next_token_at=clock.now + 2)  # deliveries use the rate
    assert await relay.play(monitor) == ["new"]
    await change(store, next_token_at=0, retry_after_until=clock.now + 5, retry_after_set_at=clock.now)
    assert await relay.play(monitor) == []
    clock.now += 6
    assert await relay.play(monitor) == ["slack"]
