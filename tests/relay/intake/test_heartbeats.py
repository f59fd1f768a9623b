"""The alerts of watchdogs are taken out of an event; the rest goes on as it is."""

from services.relay.intake.routing import split_heartbeats
from services.relay.model import Event, Status
from tests.relay.monitors.monitored_outbox import event, watch

FIRING, RESOLVED = Status.FIRING, Status.RESOLVED
WATCHDOG = watch("Watchdog", "60s", "slack")


def names(event: Event | None) -> list[str]:
    return [alert.labels["alertname"] for alert in event.alerts] if event else []


def test_what_comes_with_a_heartbeat_goes_on() -> None:
    left, heartbeats = split_heartbeats(event(("A", FIRING), ("Watchdog", FIRING), ("B", RESOLVED)), [WATCHDOG])
    assert names(left) == ["A", "B"]
    assert heartbeats == {"Watchdog"}
    assert left == event(("A", FIRING), ("B", RESOLVED))


def test_the_status_of_the_rest_is_its_own() -> None:
    left, _ = split_heartbeats(event(("A", RESOLVED), ("Watchdog", FIRING)), [WATCHDOG])
    assert left is not None
    assert left.status is RESOLVED


def test_a_resolved_watchdog_is_no_sign_of_life_and_no_new_event() -> None:
    assert split_heartbeats(event(("Watchdog", RESOLVED)), [WATCHDOG]) == (None, frozenset())
    left, heartbeats = split_heartbeats(event(("A", FIRING), ("Watchdog", RESOLVED)), [WATCHDOG])
    assert (names(left), heartbeats) == (["A"], frozenset())
