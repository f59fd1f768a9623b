"""What Alertmanager no longer knows is over after a while, and a doubt keeps it open."""

from dataclasses import replace

import pytest

from services.relay.model import Status
from services.relay.monitors.reconcile import CLOSED_REMARK
from services.relay.monitors.watchdog import IntakeUptime, WatchdogMonitor
from services.relay.outbox import heartbeats as watchdog_silence
from tests.relay.monitors.monitored_outbox import START, Clock, MonitoredOutbox, event, watch
from tests.relay.monitors.reconciling import Answers, latest, minutes, reconcile

FIRING, RESOLVED = Status.FIRING, Status.RESOLVED


async def test_one_that_is_gone_for_five_minutes_is_reported_as_over_where_it_was_reported(
    at: MonitoredOutbox, clock: Clock, one: Answers
) -> None:
    await at.accept(event(("A", FIRING), ("B", FIRING)), "email", "pagerduty")
    comparing = reconcile(at, clock, one)
    await minutes(5, clock, comparing)
    assert len(await at.list_published()) == 1
    await minutes(1, clock, comparing)
    published, channels = (await at.list_published())[-1]
    assert channels == {"email", "pagerduty"}
    assert {alert.status for alert in published.alerts} == {RESOLVED}
    assert {alert.ends_at.timestamp() for alert in published.alerts if alert.ends_at} == {START + 300}
    assert published.status is RESOLVED
    assert published.remark == CLOSED_REMARK
    assert "Alertmanager no longer has it; it may have ended while silenced or inhibited" in CLOSED_REMARK
    await minutes(10, clock, comparing)
    assert len(await at.list_published()) == 2


async def test_one_of_which_any_alert_is_known_is_left_to_alertmanager(
    at: MonitoredOutbox, clock: Clock, one: Answers
) -> None:
    await at.accept(event(("A", FIRING), ("B", FIRING)))
    one.alerts = {"B"}
    await minutes(10, clock, reconcile(at, clock, one))
    assert len(await at.list_published()) == 1


async def test_an_incident_is_left_open_while_an_alert_of_an_earlier_webhook_still_fires(
    at: MonitoredOutbox, clock: Clock, one: Answers
) -> None:
    await at.accept(event(("C", FIRING)))
    await at.accept(event(("C", RESOLVED)))
    at.duplicate_window = 0  # the last one comes from a twin, so late that it counts as a new event
    for alerts in ([("A", FIRING)], [("A", RESOLVED), ("B", FIRING)], [("A", FIRING)]):
        await at.accept(event(*alerts))
    one.alerts = {"B", "C"}
    comparing = reconcile(at, clock, one)
    await minutes(10, clock, comparing)
    assert len(await at.list_published()) == 5
    one.alerts = {"C"}  # of the episode before
    await minutes(6, clock, comparing)
    assert (await latest(at)).status is RESOLVED


async def test_what_was_reported_resolved_need_not_be_gone(at: MonitoredOutbox, clock: Clock, one: Answers) -> None:
    await at.accept(event(("A", RESOLVED), ("B", FIRING)))
    one.alerts = {"A"}  # it fires again, and Alertmanager will tell of that
    await minutes(6, clock, reconcile(at, clock, one))
    assert [alert.labels["alertname"] for alert in (await latest(at)).alerts] == ["B"]


async def test_the_time_starts_again_where_it_was_there_again(at: MonitoredOutbox, clock: Clock, one: Answers) -> None:
    await at.accept(event(("A", FIRING)))
    comparing = reconcile(at, clock, one)
    await minutes(4, clock, comparing)
    one.alerts = {"A"}
    await minutes(1, clock, comparing)
    one.alerts = set()
    await minutes(5, clock, comparing)
    assert len(await at.list_published()) == 1
    await minutes(1, clock, comparing)
    assert len(await at.list_published()) == 2


async def test_the_time_starts_again_where_alertmanager_reported_it_between_two_rounds(
    at: MonitoredOutbox, clock: Clock, one: Answers
) -> None:
    await at.accept(event(("A", FIRING)))
    comparing = reconcile(at, clock, one)
    await minutes(4, clock, comparing)
    await at.accept(event(("A", FIRING)))
    await minutes(5, clock, comparing)
    assert len(await at.list_published()) == 2
    await minutes(1, clock, comparing)
    assert len(await at.list_published()) == 3


@pytest.mark.parametrize("listed", [FIRING, RESOLVED])
async def test_a_group_whose_alerts_were_cut_off_is_closed_once_nothing_has_its_labels(
    at: MonitoredOutbox, clock: Clock, one: Answers, listed: Status
) -> None:
    await at.accept(replace(event(("A", listed), truncated=1), group_labels={"service": "backend"}))
    one.alerts, one.labels = {"B"}, {"service": "backend", "key": "ledger"}
    comparing = reconcile(at, clock, one)
    await minutes(10, clock, comparing)
    assert len(await at.list_published()) == 1
    one.labels = {"service": "frontend"}
    await minutes(5, clock, comparing)
    assert len(await at.list_published()) == 1
    await minutes(1, clock, comparing)
    published = await latest(at)
    assert (published.status, published.truncated_alerts, [alert.status for alert in published.alerts]) == (
        RESOLVED,
        0,
        [RESOLVED],
    )
    await minutes(10, clock, comparing)
    assert len(await at.list_published()) == 2


async def test_a_group_without_labels_whose_alerts_were_cut_off_is_closed_once_there_is_nothing(
    at: MonitoredOutbox, clock: Clock, one: Answers
) -> None:
    await at.accept(event(("A", FIRING), truncated=1))
    one.alerts = {"B"}
    comparing = reconcile(at, clock, one)
    await minutes(10, clock, comparing)
    assert len(await at.list_published()) == 1
    one.alerts = set()
    await minutes(6, clock, comparing)
    assert len(await at.list_published()) == 2


async def test_the_same_group_of_two_sources_is_closed_in_each(at: MonitoredOutbox, clock: Clock, one: Answers) -> None:
    for source in ("", "eu"):
        await at.accept(event(("A", FIRING), source=source))
    await minutes(6, clock, reconcile(at, clock, one))
    assert [published.event.status for published in await at.list_published()] == [FIRING] * 2 + [RESOLVED] * 2


async def test_the_relays_own_incidents_are_none_of_alertmanagers(
    at: MonitoredOutbox, clock: Clock, one: Answers
) -> None:
    guard = WatchdogMonitor(at.publisher, [watch("Watchdog", "60s", "slack")], IntakeUptime(clock.steady))
    await guard.check()
    clock.go(60)
    await guard.check()
    await minutes(10, clock, reconcile(at, clock, one))
    assert len(await at.list_published()) == 1
    await watchdog_silence.record_heartbeats(at.store, ["Watchdog"])
    await guard.check()
    assert len(await at.list_published()) == 2


async def test_an_end_goes_where_the_routes_lead_if_its_channel_is_gone(
    at: MonitoredOutbox, clock: Clock, one: Answers
) -> None:
    await at.accept(event(("A", FIRING)), "email", "old-name")
    at.route("pagerduty", "unknown")
    await minutes(6, clock, reconcile(at, clock, one))
    assert (await at.list_published())[-1].channels == {"email", "pagerduty"}


async def test_two_replicas_close_it_once(at: MonitoredOutbox, clock: Clock, one: Answers) -> None:
    await at.accept(event(("A", FIRING)))
    await minutes(12, clock, reconcile(at, clock, one), reconcile(at, clock, one))
    assert len(await at.list_published()) == 2


async def test_many_are_closed_in_one_round_each_by_itself(at: MonitoredOutbox, clock: Clock, one: Answers) -> None:
    for number in range(45):
        await at.accept(event((f"A{number}", FIRING), group=str(number)))
    one.alerts = {"A7"}
    await minutes(6, clock, reconcile(at, clock, one))
    over = [published.event.group_key for published in await at.list_published() if published.event.status is RESOLVED]
    assert len(over) == len(set(over)) == 44
    assert event(("A7", FIRING), group="7").group_key not in over
