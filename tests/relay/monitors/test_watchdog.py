"""A watchdog that stays away is told once, and its return too; a relay that could not have seen it says nothing."""

import asyncio
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from services.relay.intake.routing import WatchdogSettings
from services.relay.model import Status
from services.relay.monitors.watchdog import IntakeUptime, WatchdogMonitor
from services.relay.outbox.heartbeats import record_heartbeats
from services.relay.outbox.store import StoreUnavailableError
from tests.relay.monitors.monitored_outbox import Clock, MonitoredOutbox, PublishedEvent, event, watch

WATCHDOG = watch("Watchdog", "180s", "email", "pagerduty")


class Relay:
    """A relay that waits for a heartbeat in 180 s, or one after the other over the same outbox."""

    def __init__(self, at: MonitoredOutbox, clock: Clock) -> None:
        self.at = at
        self.clock = clock
        self.uptime = IntakeUptime(clock.steady)
        self.start()

    def start(self, *others: WatchdogSettings) -> None:
        """A new process."""
        self.uptime = IntakeUptime(self.clock.steady)
        self.configure(WATCHDOG, *others)

    def configure(self, *watchdogs: WatchdogSettings) -> None:
        self.monitor = WatchdogMonitor(self.at.publisher, watchdogs, self.uptime)

    async def check(self, *waits: float) -> int:
        """Checks now and after each wait; gives how many events there are by then."""
        for seconds in (0.0, *waits):
            self.clock.go(seconds)
            await self.monitor.check()
        return len(await self.at.list_published())

    async def check_after(self, seconds: float) -> int:
        self.clock.go(seconds)
        return await self.check()

    async def beat(self) -> None:
        await record_heartbeats(self.at.store, ["Watchdog"])

    async def last(self) -> PublishedEvent:
        return (await self.at.list_published())[-1]


@pytest.fixture
def relay(at: MonitoredOutbox, clock: Clock) -> Relay:
    return Relay(at, clock)


async def test_one_that_was_never_seen_is_reported_after_its_time_and_once(relay: Relay) -> None:
    assert await relay.check(179) == 0
    assert await relay.check_after(1) == await relay.check(1, 1) == 1
    published, channels = await relay.last()
    assert channels == {"email", "pagerduty"}
    assert published.common_labels == {"alertname": "WatchdogAbsent", "severity": "critical", "watchdog": "Watchdog"}
    assert "Prometheus, Alertmanager or the connection between" in published.common_annotations["description"]
    assert "Watchdog" in published.group_key


async def test_a_heartbeat_that_returns_ends_it_on_whichever_replica_checks_next(
    relay: Relay, at: MonitoredOutbox, clock: Clock
) -> None:
    other = Relay(at, clock)
    await relay.check(180)
    assert await other.check() == 1
    await relay.beat()
    assert await other.check() == await relay.check() == 2
    published, channels = await relay.last()
    assert (published.status, published.remark) == (Status.RESOLVED, "The heartbeats are back.")
    assert channels == {"email", "pagerduty"}


async def test_a_relay_that_was_down_waits_before_it_reports_and_before_it_believes(relay: Relay) -> None:
    await relay.check()
    relay.clock.go(3600)
    relay.start()  # a new process; nothing was seen for an hour, for it was down itself
    assert await relay.check(179) == 0
    assert await relay.check_after(1) == 1
    relay.start()
    assert await relay.check() == 1, "a start is no heartbeat"


@pytest.mark.parametrize(("lives", "away", "restarts"), [((5, 5), 4, 13), ((), 10.5, 18)])
async def test_a_relay_that_is_restarted_more_often_than_expect_every_reports_a_silence_all_the_same(
    relay: Relay, lives: tuple[float, ...], away: float, restarts: int
) -> None:
    await relay.beat()
    for restart in range(1, restarts + 3):
        relay.start()
        assert await relay.check(*lives) == int(restart > restarts)
        relay.clock.go(away)


async def test_of_the_time_that_a_relay_was_away_ten_seconds_count(relay: Relay) -> None:
    await relay.beat()
    await relay.check(100)
    relay.clock.go(60)
    relay.start()
    assert await relay.check(69) == 0
    assert await relay.check_after(1) == 1


async def test_a_heartbeat_starts_the_count_again_across_restarts(relay: Relay) -> None:
    await relay.check(179)
    await relay.beat()
    relay.start()
    assert await relay.check(179) == 0


@pytest.mark.usefixtures("short_lock_wait")
async def test_an_outbox_that_took_no_heartbeats_is_no_absence(relay: Relay, tmp_path: Path) -> None:
    await relay.check()
    relay.clock.go(3600)
    with closing(sqlite3.connect(tmp_path / "relay.db", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        check = asyncio.create_task(relay.monitor.check())
        await asyncio.sleep(0)
        relay.clock.go(3600)  # the look itself waits for the outbox
        with pytest.raises(StoreUnavailableError):
            await check
    assert await relay.check_after(179) == 0
    assert await relay.check_after(1) == 1


async def test_it_checks_again_at_the_next_deadline_and_every_five_seconds_at_least(relay: Relay) -> None:
    waits = []
    for seconds in (0, 177, 3):
        relay.clock.go(seconds)
        waits.append(await relay.monitor.check())
    assert waits == [5, 3, 5]


async def test_one_that_is_no_longer_configured_is_over_at_the_next_start(relay: Relay) -> None:
    relay.start(watch("Other", "180s", "slack"))
    await relay.check(180)
    await relay.at.accept(event(("A", Status.FIRING)))
    relay.start()
    assert await relay.check() == 4
    published, channels = await relay.last()
    assert (published.common_labels["watchdog"], published.status, channels) == ("Other", Status.RESOLVED, {"slack"})
    assert published.remark == "This watchdog is no longer configured."
    relay.configure()
    assert await relay.check() == 5
    assert (await relay.last()).event.common_labels["watchdog"] == "Watchdog"


async def test_a_clock_that_jumps_ahead_is_no_absence(relay: Relay) -> None:
    await relay.check(60)
    await relay.beat()
    relay.clock.now += 86_400  # a wrong clock, or a machine that was suspended
    assert await relay.check_after(5) == await relay.check_after(170) == 0
    assert await relay.check_after(10) == 1


async def test_one_that_is_configured_again_is_awaited_from_then_on(relay: Relay) -> None:
    await relay.check()
    relay.configure()  # a reload without it
    await relay.check_after(5)
    relay.clock.go(3600)
    relay.configure(WATCHDOG)
    assert await relay.check(169) == 0
    assert await relay.check_after(11) == 1
