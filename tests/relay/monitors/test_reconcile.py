"""What Alertmanager no longer knows is over after a while, and a doubt keeps it open."""

from collections.abc import AsyncIterator
from dataclasses import replace

import pytest
from structlog.testing import capture_logs

from services.relay.model import Status
from services.relay.monitors import reconcile
from services.relay.monitors.reconcile import CLOSED_REMARK, REFIRED_REMARK
from services.relay.monitors.watchdog import IntakeUptime, WatchdogMonitor
from services.relay.outbox import heartbeats as watchdog_silence
from services.relay.outbox.incidents import Incident, iterate_open_incidents
from services.relay.outbox.store import Store
from tests.relay.monitors.monitored_outbox import START, event, watch
from tests.relay.monitors.reconciling import LONG_AGO, REFIRED_AT, Comparison
from tests.relay.outbox.actions import claim_some, read_event

FIRING, RESOLVED = "firing", "resolved"
CLOSED = [FIRING, RESOLVED]


async def test_one_that_is_gone_for_five_minutes_is_reported_as_over_where_it_was_reported(it: Comparison) -> None:
    await it.accept("email", "pagerduty", A=FIRING, B=FIRING)
    assert await it.after(5) == [FIRING]
    assert await it.after(1) == CLOSED
    published, channels = await it.last()
    assert channels == {"email", "pagerduty"}
    assert {alert.status for alert in published.alerts} == {RESOLVED}
    assert {alert.ends_at.timestamp() for alert in published.alerts if alert.ends_at} == {START + 300}
    assert published.remark == CLOSED_REMARK
    assert "Alertmanager no longer has it; it may have ended while silenced or inhibited" in CLOSED_REMARK
    assert await it.after(10) == CLOSED


async def test_one_of_which_any_alert_is_known_is_left_to_alertmanager(it: Comparison) -> None:
    await it.accept(A=FIRING, B=FIRING)
    it.one.alerts = {"B"}
    assert await it.after(10) == [FIRING]


async def test_an_incident_is_left_open_while_an_alert_of_an_earlier_webhook_still_fires(it: Comparison) -> None:
    await it.accept(C=FIRING)
    await it.accept(C=RESOLVED)
    it.at.duplicate_window = 0  # the last one comes from a twin, so late that it counts as a new event
    for alerts in ({"A": FIRING}, {"A": RESOLVED, "B": FIRING}, {"A": FIRING}):
        await it.accept(**alerts)
    it.one.alerts = {"B", "C"}
    assert len(await it.after(10)) == 5
    it.one.alerts = {"C"}  # of the episode before
    assert (await it.after(6))[5:] == [RESOLVED]


async def test_what_was_reported_resolved_need_not_be_gone(it: Comparison) -> None:
    await it.accept(A=RESOLVED, B=FIRING)
    it.one.alerts = {"A"}  # it fires again, and Alertmanager will tell of that
    await it.after(6)
    assert [alert.labels["alertname"] for alert in (await it.latest()).alerts] == ["B"]


async def test_the_time_starts_again_where_it_was_there_again_or_was_reported_between_two_rounds(
    it: Comparison,
) -> None:
    await it.accept(A=FIRING)
    await it.after(4)
    it.one.alerts = {"A"}
    await it.after(1)
    it.one.alerts = set()
    assert await it.after(4) == [FIRING]
    await it.accept(A=FIRING)
    assert await it.after(5) == [FIRING] * 2
    assert await it.after(1) == [FIRING, *CLOSED]


async def test_one_whose_next_episode_begins_during_the_round_stays_open(
    it: Comparison, monkeypatch: pytest.MonkeyPatch
) -> None:
    await it.accept(A=FIRING)
    await it.after(5)

    async def iterate(store: Store) -> AsyncIterator[Incident]:
        async for incident in iterate_open_incidents(store):
            yield incident
            if incident.episode == 1:
                await it.accept(A=RESOLVED)
                await it.accept(A=FIRING)

    monkeypatch.setattr(reconcile, "iterate_open_incidents", iterate)
    assert await it.after(1) == [*CLOSED, FIRING]


@pytest.mark.parametrize("listed", CLOSED)
async def test_a_group_whose_alerts_were_cut_off_is_closed_once_nothing_has_its_labels(
    it: Comparison, listed: str
) -> None:
    cut = replace(event(("A", Status(listed)), truncated=1), group_labels={"service": "backend"})
    await it.at.accept(cut)
    it.one.alerts, it.one.labels = {"B"}, {"service": "backend", "key": "ledger"}
    assert len(await it.after(10)) == 1
    it.one.labels = {"service": "frontend"}
    assert len(await it.after(5)) == 1
    assert len(await it.after(1)) == 2
    over = await it.latest()
    assert (over.status, over.truncated_alerts, [alert.status for alert in over.alerts]) == (RESOLVED, 0, [RESOLVED])
    assert len(await it.after(10)) == 2


async def test_a_group_without_labels_whose_alerts_were_cut_off_is_closed_once_there_is_nothing(
    it: Comparison,
) -> None:
    await it.at.accept(event(("A", Status.FIRING), truncated=1))
    it.one.alerts = {"B"}
    assert await it.after(10) == [FIRING]
    it.one.alerts = set()
    assert await it.after(6) == CLOSED


async def test_the_same_group_of_two_sources_is_closed_in_each(it: Comparison) -> None:
    for source in ("", "eu"):
        await it.accept(A=FIRING, source=source)
    assert await it.after(6) == [FIRING] * 2 + [RESOLVED] * 2


async def test_the_relays_own_incidents_are_none_of_alertmanagers(it: Comparison) -> None:
    guard = WatchdogMonitor(it.at.publisher, [watch("Watchdog", "60s", "slack")], IntakeUptime(it.clock.steady))
    await guard.check()
    it.clock.go(60)
    await guard.check()
    assert await it.after(10) == [FIRING]
    await watchdog_silence.record_heartbeats(it.at.store, ["Watchdog"])
    await guard.check()
    assert await it.after(0) == CLOSED


async def test_an_end_goes_where_the_routes_lead_if_its_channel_is_gone(it: Comparison) -> None:
    await it.accept("email", "old-name", A=FIRING)
    it.at.route("pagerduty", "unknown")
    await it.after(6)
    assert (await it.last()).channels == {"email", "pagerduty"}


async def test_many_are_closed_in_one_round_each_by_itself_and_by_one_of_two_replicas(it: Comparison) -> None:
    it.rounds.append(it.build(it.one))
    for number in range(45):
        await it.accept(group=str(number), **{f"A{number}": FIRING})
    it.one.alerts = {"A7"}
    await it.after(7)
    over = [each.event.group_key for each in await it.at.list_published() if each.event.status == RESOLVED]
    assert len(over) == len(set(over)) == 44
    assert event(group="7").group_key not in over


@pytest.mark.parametrize("problem", ["young", "silent"])
async def test_a_round_in_which_no_peer_counts_closes_nothing_and_starts_again(problem: str, it: Comparison) -> None:
    await it.accept(A=FIRING)
    await it.after(5)
    if problem == "young":
        it.one.since = it.clock.now - 299
    else:
        it.one.problem = "no connection"
    await it.after(1)
    it.one.problem, it.one.since = None, LONG_AGO
    assert await it.after(5) == [FIRING]
    assert await it.after(1) == CLOSED


async def test_what_hinders_is_logged_when_it_starts_and_when_it_ends(it: Comparison) -> None:
    with capture_logs() as logs:
        for problem, since in ((None, 0.0), ("no connection", 0.0), (None, it.clock.now + 300), (None, LONG_AGO)):
            it.one.problem, it.one.since = problem, since
            await it.after(2)
    assert [line.get("error") for line in logs] == ["no connection", "it started less than 300 s ago", None]


@pytest.mark.parametrize("is_cut", [False, True])
async def test_a_peer_that_never_had_it_closes_nothing_while_another_is_silent(it: Comparison, is_cut: bool) -> None:
    it.rounds = [it.build(it.one, it.two)]
    it.two.alerts, it.two.labels = {"A"}, {"service": "backend"}
    fired = event(("A", Status.FIRING), truncated=int(is_cut))
    await it.at.accept(replace(fired, group_labels={"service": "backend"}))
    assert await it.after(1) == [FIRING]
    it.two.problem, it.two.alerts = "no connection", set()
    assert await it.after(10) == [FIRING]
    it.two.problem = None
    assert await it.after(5) == [FIRING]
    assert await it.after(1) == CLOSED


async def test_one_peer_that_had_it_is_enough_to_close_and_any_peer_to_keep(it: Comparison) -> None:
    it.rounds = [it.build(it.one, it.two)]
    await it.accept(A=FIRING)
    it.one.alerts = it.two.alerts = {"A"}
    await it.after(1)
    it.one.alerts, it.two.since = set(), it.clock.now + 3600  # too young to count, yet it knows
    assert await it.after(10) == [FIRING]
    it.two.problem = "no connection"
    assert await it.after(6) == CLOSED


async def test_what_a_peer_had_before_its_restart_or_an_episode_ago_says_nothing(it: Comparison) -> None:
    it.rounds = [it.build(it.one, it.two)]
    it.one.alerts = {"A"}
    await it.accept(A=FIRING)
    await it.after(1)
    it.one.alerts, it.one.since, it.two.problem = set(), it.clock.now - 300, "no connection"
    assert await it.after(10) == [FIRING]
    it.one.alerts = {"A"}
    await it.after(1)
    it.one.alerts = set()
    await it.accept(A=RESOLVED)
    await it.accept(A=FIRING)
    assert await it.after(10) == [*CLOSED, FIRING]


async def test_with_a_source_every_peer_must_count(it: Comparison) -> None:
    it.rounds = [it.build(it.one, it.two)]
    await it.accept(A=FIRING, source="eu")
    it.two.problem = "no connection"
    assert await it.after(10) == [FIRING]
    it.two.problem = None
    assert await it.after(5) == [FIRING]
    assert await it.after(1) == CLOSED


async def test_what_the_relay_closed_is_reported_where_it_fires_again(it: Comparison) -> None:
    await it.close()
    it.one.alerts = {"A"}
    assert await it.after(1) == CLOSED, "Alertmanager has a minute to tell of it, or to inhibit it"
    assert await it.after(5) == [*CLOSED, FIRING]
    published, channels = await it.last()
    assert channels == {"email", "pagerduty"}
    assert published.remark == REFIRED_REMARK
    (alert,) = published.alerts
    assert (alert.labels["alertname"], alert.starts_at, alert.ends_at) == ("A", REFIRED_AT, None)
    it.one.alerts = set()
    await it.after(6)
    assert (await it.latest()).remark == CLOSED_REMARK


async def test_it_is_not_reported_again_where_alertmanager_does_so(it: Comparison) -> None:
    await it.close()
    it.one.alerts = {"A"}
    await it.after(1)
    await it.accept(A=FIRING)
    assert len(await it.after(5)) == 3
    assert (await it.latest()).remark == ""


async def test_what_fires_again_muted_or_to_another_receiver_or_for_a_moment_is_not_reported(it: Comparison) -> None:
    await it.close()
    it.one.alerts = it.one.muted = {"A"}
    await it.after(5)
    it.one.alerts, it.one.muted, it.one.receiver = {"A"}, set(), "another"
    await it.after(5)
    it.one.receiver = "kms-critical"
    for alerts in ({"A"}, set(), {"B"}, set()):
        it.one.alerts = alerts
        assert await it.after(1) == CLOSED


async def test_what_alertmanager_closed_is_its_own_to_report_again(it: Comparison) -> None:
    await it.accept(A=FIRING)
    await it.accept(A=RESOLVED)
    it.one.alerts = {"A"}
    assert await it.after(5) == CLOSED
    it.clock.go(61)
    await it.accept(A=RESOLVED)
    assert len(await it.after(0)) == 3, "and its end, where it sends that again"


async def test_alertmanagers_own_end_is_not_reported_after_ours_however_late_it_comes(it: Comparison) -> None:
    await it.close()
    ours = await it.accept("email", "pagerduty", A=RESOLVED, B=RESOLVED)
    it.clock.go(7200)
    assert await it.accept("slack", B=RESOLVED, A=RESOLVED) == ours
    assert await it.after(0) == CLOSED
    await it.accept(A=FIRING)
    assert await it.after(0) == [*CLOSED, FIRING]


async def test_an_end_that_reports_one_more_alert_is_reported_after_ours(it: Comparison) -> None:
    await it.close()
    await it.accept(A=RESOLVED, B=RESOLVED, C=RESOLVED)
    assert len(await it.after(0)) == 3


async def test_what_waits_while_alertmanagers_own_end_comes_is_merged_as_it_was_reported(it: Comparison) -> None:
    await it.close()
    await it.accept("email", A=RESOLVED, B=RESOLVED)
    await it.accept("email", A=FIRING)
    for channel, expected in (("email", {"A": FIRING, "B": RESOLVED}), ("pagerduty", {"A": RESOLVED, "B": RESOLVED})):
        (claim,) = (await claim_some(it.at.store, channel, limit=9)).claims
        published = await read_event(it.at.store, claim)
        assert {alert.labels["alertname"]: alert.status for alert in published.alerts} == expected
