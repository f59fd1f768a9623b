"""A watchdog that stays away is told once, and its return too; a relay that could not have seen it says nothing."""

import asyncio
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from services.relay.intake.routing import WatchdogSettings
from services.relay.model import Status
from services.relay.monitors.watchdog import IntakeUptime, WatchdogMonitor
from services.relay.outbox import heartbeats as watchdog_silence
from services.relay.outbox.store import StoreUnavailableError
from tests.relay.monitors.monitored_outbox import Clock, MonitoredOutbox, event, watch

WATCHDOG = watch("Watchdog", "180s", "email", "pagerduty")


def started(at: MonitoredOutbox, clock: Clock, *others: WatchdogSettings) -> WatchdogMonitor:
    return WatchdogMonitor(at.publisher, [WATCHDOG, *others], IntakeUptime(clock.steady))


async def check_after(seconds: float, guard: WatchdogMonitor, clock: Clock) -> float:
    clock.go(seconds)
    return await guard.check()


async def test_one_that_was_never_seen_is_reported_after_its_time_and_once(at: MonitoredOutbox, clock: Clock) -> None:
    guard = started(at, clock)
    await guard.check()
    await check_after(179, guard, clock)
    assert await at.list_published() == []
    for _ in range(3):
        await check_after(1, guard, clock)
    ((published, channels),) = await at.list_published()
    assert channels == {"email", "pagerduty"}
    assert published.common_labels == {"alertname": "WatchdogAbsent", "severity": "critical", "watchdog": "Watchdog"}
    assert "Prometheus, Alertmanager or the connection between" in published.common_annotations["description"]
    assert "Watchdog" in published.group_key


async def test_a_heartbeat_that_returns_ends_it_on_whichever_replica_checks_next(
    at: MonitoredOutbox, clock: Clock
) -> None:
    guard, other = started(at, clock), started(at, clock)
    await check_after(180, guard, clock)  # the first look begins to wait for it
    await check_after(180, guard, clock)
    await other.check()
    await watchdog_silence.record_heartbeats(at.store, ["Watchdog"])
    await other.check()
    await guard.check()
    all_published = await at.list_published()
    assert [published.event.status for published in all_published] == [Status.FIRING, Status.RESOLVED]
    assert all_published[-1].channels == {"email", "pagerduty"}
    assert all_published[-1].event.remark == "The heartbeats are back."


async def test_a_relay_that_was_down_waits_before_it_reports_and_before_it_believes(
    at: MonitoredOutbox, clock: Clock
) -> None:
    await started(at, clock).check()
    clock.go(3600)
    guard = started(at, clock)  # a new process; nothing was seen for an hour, for it was down itself
    await guard.check()
    await check_after(179, guard, clock)
    assert await at.list_published() == []
    await check_after(1, guard, clock)
    assert len(await at.list_published()) == 1

    restarted = started(at, clock)
    await restarted.check()
    assert len(await at.list_published()) == 1, "a start is no heartbeat"


async def test_a_relay_that_is_restarted_more_often_than_expect_every_reports_a_silence_all_the_same(
    at: MonitoredOutbox, clock: Clock
) -> None:
    await watchdog_silence.record_heartbeats(at.store, ["Watchdog"])
    for restart in range(1, 16):  # each process lives for 10 s, and 4 s pass until the next one looks
        guard = started(at, clock)
        await guard.check()
        await check_after(5, guard, clock)
        await check_after(5, guard, clock)
        assert len(await at.list_published()) == (1 if 14 * restart - 4 >= 180 else 0)
        clock.go(4)


async def test_a_relay_that_is_repeatedly_killed_before_its_second_check_reports_a_silence_too(
    at: MonitoredOutbox, clock: Clock
) -> None:
    await watchdog_silence.record_heartbeats(at.store, ["Watchdog"])
    for _ in range(20):  # each process lives for 4.5 s, and 6 s pass until the next one looks
        await started(at, clock).check()
        clock.go(10.5)
    assert len(await at.list_published()) == 1


async def test_of_the_time_that_a_relay_was_away_ten_seconds_count(at: MonitoredOutbox, clock: Clock) -> None:
    await watchdog_silence.record_heartbeats(at.store, ["Watchdog"])
    guard = started(at, clock)
    await guard.check()
    await check_after(100, guard, clock)
    clock.go(60)
    guard = started(at, clock)
    await guard.check()
    await check_after(69, guard, clock)
    assert await at.list_published() == []
    await check_after(1, guard, clock)
    assert len(await at.list_published()) == 1


async def test_a_heartbeat_starts_the_count_again_across_restarts(at: MonitoredOutbox, clock: Clock) -> None:
    guard = started(at, clock)
    await guard.check()
    await check_after(179, guard, clock)
    await watchdog_silence.record_heartbeats(at.store, ["Watchdog"])
    guard = started(at, clock)
    await guard.check()
    await check_after(179, guard, clock)
    assert await at.list_published() == []


async def test_an_outbox_that_took_no_heartbeats_is_no_absence(
    at: MonitoredOutbox, clock: Clock, tmp_path: Path
) -> None:
    guard = started(at, clock)
    await guard.check()
    clock.go(3600)
    with closing(sqlite3.connect(tmp_path / "relay.db", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        check = asyncio.create_task(guard.check())
        await asyncio.sleep(0)
        clock.go(3600)  # the look itself waits for the outbox
        with pytest.raises(StoreUnavailableError):
            await check
    await check_after(179, guard, clock)
    assert await at.list_published() == []
    await check_after(1, guard, clock)
    assert len(await at.list_published()) == 1


async def test_it_checks_again_at_the_next_deadline_and_every_five_seconds_at_least(
    at: MonitoredOutbox, clock: Clock
) -> None:
    guard = started(at, clock)
    assert await guard.check() == 5
    assert await check_after(177, guard, clock) == 3
    assert await check_after(3, guard, clock) == 5


async def test_one_that_is_no_longer_configured_is_over_at_the_next_start(at: MonitoredOutbox, clock: Clock) -> None:
    guard = started(at, clock, watch("Other", "180s", "slack"))
    await guard.check()
    await check_after(180, guard, clock)
    await at.accept(event(("A", Status.FIRING)))
    assert len(await at.list_published()) == 3
    await started(at, clock).check()
    published, channels = (await at.list_published())[-1]
    assert (published.common_labels["watchdog"], published.status, channels) == ("Other", Status.RESOLVED, {"slack"})
    assert published.remark == "This watchdog is no longer configured."
    await WatchdogMonitor(at.publisher, [], IntakeUptime(clock.steady)).check()
    assert (await at.list_published())[-1].event.common_labels["watchdog"] == "Watchdog"
    assert len(await at.list_published()) == 5


async def test_a_clock_that_jumps_ahead_is_no_absence(at: MonitoredOutbox, clock: Clock) -> None:
    guard = started(at, clock)
    await guard.check()
    for _ in range(50):
        await check_after(60, guard, clock)
        await watchdog_silence.record_heartbeats(at.store, ["Watchdog"])
    clock.now += 86_400  # a wrong clock, or a machine that was suspended
    await check_after(5, guard, clock)
    assert await at.list_published() == []
    await check_after(170, guard, clock)
    assert await at.list_published() == []
    await check_after(10, guard, clock)
    assert len(await at.list_published()) == 1


async def test_one_that_is_configured_again_is_awaited_from_then_on(at: MonitoredOutbox, clock: Clock) -> None:
    able = IntakeUptime(clock.steady)
    await WatchdogMonitor(at.publisher, [WATCHDOG], able).check()
    others = WatchdogMonitor(at.publisher, [], able)  # a reload without it
    await check_after(5, others, clock)
    clock.go(3600)
    guard = WatchdogMonitor(at.publisher, [WATCHDOG], able)
    await guard.check()
    await check_after(169, guard, clock)
    assert await at.list_published() == []
    await check_after(11, guard, clock)
    assert len(await at.list_published()) == 1
