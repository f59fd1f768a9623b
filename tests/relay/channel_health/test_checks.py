"""Channels are checked at a sparing pace, by one replica each."""

from collections.abc import AsyncIterator, Sequence
from functools import partial
from pathlib import Path

import pytest

from services.relay.channel_health.checks import ChannelChecks
from services.relay.channel_health.store import CheckKind, CheckRow, list_checks
from services.relay.config import RelaySettings
from services.relay.outbox.store import Store, open_store
from shared.check import CheckOutcome, CheckResult
from shared.http.json_api import RefusedError
from shared.sql.database_url import create_sqlite_url
from tests.relay.outbox.channel_breakers import Clock
from tests.relay.outbox.channel_state.test_channel_checks import change
from tests.relay.served_relay import Scripted, settings

DAY, HOUR = 86400.0, 3600.0


class Relay:
    """One replica: what it checked, and what a check finds."""

    def __init__(self, store: Store, folder: Path, *channels: str) -> None:
        self.store = store
        self.settings = settings(folder, {name: Scripted() for name in channels})
        self.checks = self.start(None)
        self.checked: list[str] = []
        self.finds = CheckOutcome.PASSED

    def start(self, changed: Sequence[str] | None) -> ChannelChecks:
        self.checks = ChannelChecks(self.store, self.settings, lambda _channels: None, changed, self.run)
        return self.checks

    async def run(self, _settings: RelaySettings, channel: str) -> list[CheckResult]:
        self.checked.append(channel)
        return [] if channel == "log" else [CheckResult("token", self.finds, "its detail", "its hint")]

    async def play(self) -> list[str]:
        """What is checked until nothing more is due."""
        self.checked.clear()
        while await self.checks.check_next() == 5:
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


async def test_each_is_checked_at_the_start_then_daily_and_hourly_while_it_fails(
    store: Store, clock: Clock, tmp_path: Path
) -> None:
    channels = ("log", "mail", "slack")
    one, other = Relay(store, tmp_path, *channels), Relay(store, tmp_path, *channels)
    assert [await each.checks.check_next() for each in (one, other)] == [15, 15]
    assert await one.play() == [*channels]
    assert await other.play() == []  # somebody has
    assert await list_all(store, "log") == []
    (row,) = await list_all(store, "mail")
    assert (row.problem, row.requested_by) == (None, None)
    assert row.started_at == pytest.approx(clock.now, abs=1)

    clock.now += DAY - 1
    assert await one.play() == []
    clock.now += 1
    other.finds = CheckOutcome.FAILED
    assert await other.play() == [*channels]
    clock.now += HOUR
    assert await one.play() == ["mail", "slack"]
    assert [each.problem for each in await list_all(store, "mail")] == [None, "its detail", None]
    await one.start(None).check_next()
    assert await one.play() == ["log"]  # the others were checked a moment ago
    with pytest.raises(RefusedError, match="it is being checked, or was a moment ago; try again in 10 s"):
        await one.checks.check("mail", "anna")
    clock.now += 10
    await one.checks.check("mail", "anna")
    assert (await list_all(store, "mail"))[0].requested_by == "anna"


async def test_a_reload_checks_what_has_changed_and_a_busy_channel_waits(
    store: Store, clock: Clock, tmp_path: Path
) -> None:
    relay = Relay(store, tmp_path, "mail", "slack")
    await relay.checks.check_next()
    assert await relay.play() == ["mail", "slack"]
    clock.now += 60
    relay = Relay(store, tmp_path, "mail", "slack", "new")
    await relay.start(("slack", "new")).check_next()
    await change(store, next_token_at=clock.now + 2)  # deliveries use the rate
    assert await relay.play() == ["new"]
    await change(store, next_token_at=0, retry_after_until=clock.now + 5)
    assert await relay.play() == []
    clock.now += 6
    assert await relay.play() == ["slack"]
