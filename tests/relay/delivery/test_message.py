"""What a claim makes a message of: every alert of its events in its last state, and how old it is."""

import time
from dataclasses import replace
from pathlib import Path

from services.relay import text
from services.relay.delivery.message import merge_events
from services.relay.model import Alert, Event, Status, collect_hashes, encode_event, limit_size
from tests.relay.delivery.worker_harness import broken, rig
from tests.relay.served_relay import Scripted, event_of


def of(**alerts: str) -> Event:
    """An event of these alerts; it fires where one of them does."""
    (like,) = event_of().alerts
    alert_list = tuple(_alert(like, name, status) for name, status in alerts.items())
    status = Status.FIRING if any(alert.status is Status.FIRING for alert in alert_list) else Status.RESOLVED
    shared = dict(like.labels) if len(alert_list) > 1 else {**like.labels, "key": alert_list[0].fingerprint}
    return replace(event_of(status.value), alerts=alert_list, common_labels=shared)


def _alert(like: Alert, name: str, status: str) -> Alert:
    return replace(like, fingerprint=name, status=Status(status), labels={**like.labels, "key": name})


def states(event: Event) -> dict[str, str]:
    return {alert.fingerprint: alert.status.value for alert in event.alerts}


def test_an_alert_that_only_an_unreported_event_speaks_of_is_reported_in_its_last_state() -> None:
    merged = merge_events(merge_events(of(a="firing", b="firing"), of(a="resolved", b="firing")), of(b="firing"))
    assert states(merged) == {"a": "resolved", "b": "firing"}
    assert merged.status is Status.FIRING


def test_of_an_alert_that_several_speak_of_the_last_state_counts() -> None:
    assert states(merge_events(of(a="resolved", b="firing"), of(a="firing"))) == {"a": "firing", "b": "firing"}


def test_what_all_its_alerts_share_is_what_a_merged_event_shares() -> None:
    merged = merge_events(of(a="resolved"), of(b="firing"))
    assert "key" not in merged.common_labels
    assert merged.common_labels["alertname"] == of(b="firing").common_labels["alertname"]


def test_alerts_that_have_no_space_are_merged_as_those_that_are_listed() -> None:
    limited = limit_size(of(**{f"alert-{number}": "firing" for number in range(6_000)}, ends="firing", gone="firing"))
    assert limited.unlisted_firing
    newer = limit_size(
        of(**{f"alert-{number}": "firing" for number in range(5_999, -1, -1)}, ends="resolved", new="firing")
    )
    merged = merge_events(limited, newer)
    assert text.format_counts(merged) == "6002 firing, 1 resolved"  # `gone` stays as it was last told of
    assert collect_hashes(merged) == collect_hashes(limited) | collect_hashes(newer)
    assert merge_events(newer, limited).unlisted_count + len(merge_events(newer, limited).alerts) == 6_003
    assert len(encode_event(merged)) < 3_000_000
    assert merge_events(merged, of(ends="firing")).unlisted_count > 0


async def test_all_that_waited_is_in_the_message(tmp_path: Path) -> None:
    channel = Scripted(broken())
    async with rig(tmp_path, a=channel) as it:
        for event in of(a="firing", b="firing"), of(a="resolved", b="firing"), of(b="firing"):
            await it.accept_events(event.status.value, alerts=event.alerts)
        await it.finished()
    last_reported: dict[str, str] = {}
    for message in channel.sent:
        last_reported |= states(message.event)
    assert last_reported == {"a": "resolved", "b": "firing"}
    assert all(message.contacts == {"service owner": "#ledger-team"} for message in channel.sent)


async def test_a_message_that_is_retried_is_as_old_as_its_event(tmp_path: Path) -> None:
    ahead = 0.0

    async def fail_late() -> None:
        nonlocal ahead
        ahead += 15
        raise broken()

    channel = Scripted(fail_late)
    async with rig(tmp_path, clock=lambda: time.time() + ahead, a=channel) as it:
        await it.accept_events("firing")
        await it.finished()
    ages = [message.task.age for _, message in channel.attempted]
    assert ages[0] < 15 <= ages[1]
