"""The alerts of watchdogs are taken out of an event; the rest goes on as it is."""

from dataclasses import replace

import pytest

from services.relay.intake.routing import WatchdogSettings, split_heartbeats
from services.relay.model import Event, Status
from tests.relay.monitors.monitored_outbox import event, watch

FIRING, RESOLVED = Status.FIRING, Status.RESOLVED
WATCHDOG = watch("Watchdog", "60s", "slack")


def names(event: Event | None) -> list[str]:
    return [alert.labels["alertname"] for alert in event.alerts] if event else []


def test_an_event_without_a_heartbeat_goes_on_as_it_is() -> None:
    mixed = event(("A", FIRING), ("B", RESOLVED))
    assert split_heartbeats(mixed, [WATCHDOG]) == (mixed, frozenset())
    assert split_heartbeats(mixed, []) == (mixed, frozenset())


def test_of_nothing_but_heartbeats_nothing_is_left() -> None:
    assert split_heartbeats(event(("Watchdog", FIRING)), [WATCHDOG]) == (None, frozenset({"Watchdog"}))


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


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        ({"alertname": "Watchdog", "cluster": "eu"}, {"Watchdog{cluster=eu}"}),
        ({"alertname": "Watchdog", "cluster": "us"}, {"Watchdog{cluster=us}"}),
        ({"alertname": "Watchdog", "cluster": "ap"}, set()),
        ({"alertname": "Other", "cluster": "eu"}, set()),
    ],
)
def test_every_matcher_of_a_watchdog_must_hold(labels: dict[str, str], expected: set[str]) -> None:
    watchdogs = [
        WatchdogSettings(matchers=("alertname=Watchdog", f"cluster={cluster}"), expect_every="60s", channels=("slack",))
        for cluster in ("eu", "us")
    ]
    plain = event(("Watchdog", FIRING))
    sent = replace(plain, alerts=(replace(plain.alerts[0], labels=labels),))
    _, heartbeats = split_heartbeats(sent, watchdogs)
    assert heartbeats == expected


def test_one_alert_may_be_the_heartbeat_of_two_watchdogs() -> None:
    second = WatchdogSettings(matchers=("alertname=~.+",), expect_every="60s", channels=("slack",))
    assert split_heartbeats(event(("Watchdog", FIRING)), [WATCHDOG, second]) == (
        None,
        frozenset({"Watchdog", "alertname=~.+"}),
    )
