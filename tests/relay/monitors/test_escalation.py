"""The monitor that escalates wakes the channels, counts them, and says which it left out."""

from prometheus_client import CollectorRegistry
from structlog.testing import capture_logs

from services.relay.model import Status
from services.relay.monitors.supervisor import escalate
from services.relay.outbox.incidents import Incident, iterate_open_incidents
from services.relay.outbox.tables import DeliveryState
from tests.relay.monitors.monitored_outbox import Clock, MonitoredOutbox, event
from tests.relay.outbox.actions import claim_one, end_attempt

FIRING, RESOLVED = Status.FIRING, Status.RESOLVED


def value(registry: CollectorRegistry, name: str, **labels: str) -> float | None:
    return registry.get_sample_value(name, labels)


async def publish(at: MonitoredOutbox, status: Status) -> None:
    """The next event of the one incident, from the relay itself, as after a comparison with Alertmanager."""
    (incident,) = [each async for each in iterate_open_incidents(at.store)]
    assert await at.publisher.publish(incident, event(("A", status)))


async def test_what_is_due_wakes_its_channels_and_is_counted(at: MonitoredOutbox, clock: Clock) -> None:
    at.route("slack", escalate=[{"after": "60s", "channels": ["email", "gone"]}])
    await at.accept(event(("A", FIRING)))
    await end_attempt(at.store, await claim_one(at.store, "slack"))
    await publish(at, FIRING)  # with the steps of its route
    clock.go(61)
    at.woken.clear()

    with capture_logs() as logs:
        assert await escalate(at.publisher) == 5
        await escalate(at.publisher)

    assert at.woken == ["email"]
    assert value(at.registry, "relay_escalations_total", channel="email") == 1
    assert value(at.registry, "relay_escalations_total", channel="pagerduty") == 0
    incident = logs[0]["incident_id"]
    assert [(each["event"], each["log_level"], each["channels"]) for each in logs] == [
        ("incident escalated", "info", ("email",)),
        ("escalation skipped a channel that is not configured", "warning", ("gone",)),
    ]
    await publish(at, RESOLVED)
    assert (await claim_one(at.store, "email")).task.incident_id == incident
    assert not [each async for each in iterate_open_incidents(at.store)]


async def test_what_waits_of_an_earlier_episode_is_merged_and_counted(at: MonitoredOutbox, clock: Clock) -> None:
    at.route("slack", escalate=[{"after": "60s", "channels": ["email"]}])
    await at.accept(event(("A", FIRING)), "slack", "email")
    await at.accept(event(("A", RESOLVED)), "slack", "email")
    incident = (await claim_one(at.store, "slack")).task.incident_id
    clock.go(100)
    (begun,) = [Incident(incident, 1, each, event(("A", RESOLVED))) for each in [await at.accept(event(("A", FIRING)))]]
    assert await at.publisher.publish(begun, event(("A", FIRING)))
    merged = await claim_one(at.store, "slack")
    await end_attempt(at.store, merged)
    clock.go(61)
    superseded = value(at.registry, "relay_deliveries_total", channel="email", outcome=DeliveryState.SUPERSEDED)

    await escalate(at.publisher)

    after = value(at.registry, "relay_deliveries_total", channel="email", outcome=DeliveryState.SUPERSEDED)
    assert (superseded, after) == (0, 1)
    claim = await claim_one(at.store, "email")
    assert (claim.task.episode, claim.task.first_event_seq) == (2, 1)
