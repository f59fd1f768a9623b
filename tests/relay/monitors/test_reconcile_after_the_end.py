"""After the relay closed an incident: it fires again, or Alertmanager tells of its end itself after all."""

from services.relay.model import Status
from services.relay.monitors.reconcile import CLOSED_REMARK, REFIRED_REMARK
from tests.relay.monitors.monitored_outbox import Clock, MonitoredOutbox, event
from tests.relay.monitors.reconciling import REFIRED_AT, Answers, closed, latest, minutes, reconcile
from tests.relay.outbox.actions import claim_some, read_event

FIRING, RESOLVED = Status.FIRING, Status.RESOLVED


async def test_what_the_relay_closed_is_reported_where_it_fires_again(
    at: MonitoredOutbox, clock: Clock, one: Answers
) -> None:
    comparing = reconcile(at, clock, one)
    await closed(at, clock, comparing)
    one.alerts = {"A"}
    await minutes(1, clock, comparing)
    assert len(await at.list_published()) == 2, "Alertmanager has a minute to tell of it, or to inhibit it"
    await minutes(5, clock, comparing)
    assert len(await at.list_published()) == 3
    published, channels = (await at.list_published())[-1]
    assert channels == {"email", "pagerduty"}
    assert (published.status, published.remark) == (FIRING, REFIRED_REMARK)
    (alert,) = published.alerts
    assert (alert.labels["alertname"], alert.starts_at, alert.ends_at) == ("A", REFIRED_AT, None)
    one.alerts = set()
    await minutes(6, clock, comparing)
    assert (await latest(at)).remark == CLOSED_REMARK


async def test_it_is_not_reported_again_where_alertmanager_does_so(
    at: MonitoredOutbox, clock: Clock, one: Answers
) -> None:
    comparing = reconcile(at, clock, one)
    await closed(at, clock, comparing)
    one.alerts = {"A"}
    await minutes(1, clock, comparing)
    await at.accept(event(("A", FIRING)))
    await minutes(5, clock, comparing)
    assert len(await at.list_published()) == 3
    assert (await latest(at)).remark == ""


async def test_what_fires_again_muted_or_to_another_receiver_or_for_a_moment_is_not_reported(
    at: MonitoredOutbox, clock: Clock, one: Answers
) -> None:
    comparing = reconcile(at, clock, one)
    await closed(at, clock, comparing)
    one.alerts = one.muted = {"A"}
    await minutes(5, clock, comparing)
    one.alerts, one.muted, one.receiver = {"A"}, set(), "another"
    await minutes(5, clock, comparing)
    one.receiver = "kms-critical"
    for alerts in ({"A"}, set(), {"B"}, set()):
        one.alerts = alerts
        await minutes(1, clock, comparing)
    assert len(await at.list_published()) == 2


async def test_what_alertmanager_closed_is_its_own_to_report_again(
    at: MonitoredOutbox, clock: Clock, one: Answers
) -> None:
    await at.accept(event(("A", FIRING)))
    await at.accept(event(("A", RESOLVED)))
    one.alerts = {"A"}
    await minutes(5, clock, reconcile(at, clock, one))
    assert len(await at.list_published()) == 2


async def test_alertmanagers_own_end_is_not_reported_after_ours_however_late_it_comes(
    at: MonitoredOutbox, clock: Clock, one: Answers
) -> None:
    await closed(at, clock, reconcile(at, clock, one))
    ours = await at.accept(event(("A", RESOLVED), ("B", RESOLVED)), "email", "pagerduty")
    clock.go(7200)
    assert await at.accept(event(("B", RESOLVED), ("A", RESOLVED)), "slack") == ours
    assert len(await at.list_published()) == 2
    await at.accept(event(("A", FIRING)))
    assert (len(await at.list_published()), (await latest(at)).status) == (3, FIRING)


async def test_an_end_that_reports_one_more_alert_is_reported_after_ours(
    at: MonitoredOutbox, clock: Clock, one: Answers
) -> None:
    await closed(at, clock, reconcile(at, clock, one))
    await at.accept(event(("A", RESOLVED), ("B", RESOLVED), ("C", RESOLVED)))
    assert len(await at.list_published()) == 3


async def test_what_waits_while_alertmanagers_own_end_comes_is_merged_as_it_was_reported(
    at: MonitoredOutbox, clock: Clock, one: Answers
) -> None:
    await closed(at, clock, reconcile(at, clock, one))
    await at.accept(event(("A", RESOLVED), ("B", RESOLVED)), "email")
    await at.accept(event(("A", FIRING)), "email")
    (claim,) = (await claim_some(at.store, "email", limit=9)).claims
    published = await read_event(at.store, claim)
    assert {alert.labels["alertname"]: alert.status for alert in published.alerts} == {"A": FIRING, "B": RESOLVED}
    (end,) = (await claim_some(at.store, "pagerduty", limit=9)).claims
    published = await read_event(at.store, end)
    assert [alert.status for alert in published.alerts] == [RESOLVED, RESOLVED]


async def test_an_end_that_alertmanager_reported_itself_is_reported_again_where_it_sends_it_again(
    at: MonitoredOutbox, clock: Clock
) -> None:
    for status in (FIRING, RESOLVED):
        await at.accept(event(("A", status)))
    clock.go(61)
    await at.accept(event(("A", RESOLVED)))
    assert len(await at.list_published()) == 3
