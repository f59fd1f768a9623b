import hashlib
import json
import re
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings

from ops.demo.stand_ins.app import StandIns
from ops.demo.stand_ins.pagerduty import find_event_errors
from ops.demo.stand_ins.provider_faults import FaultKind, Provider, ProviderFault
from services.relay.channels.pagerduty import MAX_DETAILS_BYTES, MAX_LINKS, build_dedup_key, build_event
from services.relay.channels.port import Channel, DeliveryLeaseLostError, Progress, SendReason, SendScope
from services.relay.model import ExcerptBlock, Links, Message, RunbookExcerpt
from tests.iterations import LONG
from tests.relay.channels.conftest import OpenChannel, WebServer
from tests.relay.channels.examples import (
    DASHBOARD,
    HUGE,
    INCIDENT,
    RUNBOOK,
    SECRET,
    TITLE,
    change,
    critical,
    detailed,
    example,
    message,
    messages,
    rotate,
    titled,
    with_text,
)
from tests.relay.channels.recording_attempt import Recorded, refuse, send

ACKNOWLEDGEMENT = "2026-01-01T12:00:00+00:00"


@pytest.fixture
def values(secret_file: Path, stand_ins: StandIns) -> dict[str, Any]:
    return example("pagerduty", secret_file, stand_ins.http)


@pytest.fixture
def channel(open_channel: OpenChannel, values: dict[str, Any]) -> Channel:
    return open_channel(values)


def sent(stand_ins: StandIns) -> list[str]:
    return [event["event_action"] for event in stand_ins.pagerduty.events]


def acknowledged(given: Message, *, is_repeat: bool = False) -> Message:
    return replace(given, task=given.task._replace(acknowledgement=ACKNOWLEDGEMENT, is_repeat=is_repeat))


def actions(payload: str) -> list[str]:
    return [json.loads(line)["event_action"] for line in payload.split("\n")]


def size(event: dict[str, object]) -> int:
    return len(json.dumps({"routing_key": SECRET, **event}, ensure_ascii=False).encode())


@given(messages())
@hypothesis_settings(max_examples=200 if LONG else 50)
def test_no_message_passes_pagerdutys_limits(any_message: Message) -> None:
    event = build_event(any_message, "trigger")
    assert size(event) < 512_000
    assert not list(find_event_errors({"routing_key": SECRET, **event}, frozenset({SECRET})))
    assert "\n" not in event["payload"]["summary"]
    json.dumps(event, ensure_ascii=False).encode()  # half a character would be an error


def test_what_does_not_fit_is_left_out_in_the_order_of_its_worth() -> None:
    event = build_event(detailed(critical(with_text("é" * 20_000, 3)), "🔥" * 20_000), "trigger")
    assert size(event) < 512_000
    everything = critical(detailed(message(contacts={"owner": "#team"})))
    whole = build_event(everything, "trigger")["payload"]["custom_details"]
    assert list(whole) == ["fix", "alerts", "escalate_to", "context", "listed", "runbook"]
    labels = {f"label{number}": "é" * 500 for number in range(64)}
    large = message("05-firing-3").event
    alerts = tuple(
        replace(large.alerts[0], fingerprint=str(n), labels={**labels, "alertname": f"rule {n}"}) for n in range(100)
    )
    of = detailed(message(replace(large, alerts=alerts), links=message("05-firing-3").links[:1] * 100))
    long_runbook = RunbookExcerpt("KMSProbeFailing", (ExcerptBlock("step", "🔥" * 2_000),) * 60, is_truncated=False)
    details = build_event(replace(of, excerpt=long_runbook), "trigger")["payload"]["custom_details"]
    assert len(json.dumps(details, ensure_ascii=False).encode()) <= MAX_DETAILS_BYTES
    assert 1 <= len(details["listed"]) < 100
    assert details["listed_left_out"] == 100 - len(details["listed"])
    assert details["fix"] == whole["fix"]
    assert details["context"]["How often"] == whole["context"]["How often"]


def test_the_summary_says_what_was_over_before_anybody_heard() -> None:
    late = change(titled(message("03-resolved-1")), firing_undelivered=True)
    summary = f"Fired and resolved within 8 s: {TITLE} (already resolved) · KMSCryptoModeNotKMS · production / backend"
    assert build_event(late, "trigger")["payload"]["summary"] == summary


def test_a_picture_is_shown_from_an_allowed_host_over_https_only() -> None:
    of = message()
    for image, expected in (
        ("https://img.example.org/1.png", True),
        ("http://img.example.org/1.png", False),
        (None, False),
    ):
        event = build_event(replace(of, links=(Links(None, None, image=image),)), "trigger")
        assert [picture["src"] for picture in event.get("images", [])] == ([image] if expected else [])


@pytest.mark.parametrize("text", HUGE)
def test_alerts_that_do_not_fit_are_counted(text: str) -> None:
    event = build_event(critical(with_text(text, 300)), "trigger")
    details = event["payload"]["custom_details"]
    assert size(event) < 512_000
    (table,) = details["listed"]
    assert len(table["rows"]) == 100
    assert table["more"] == "… and 200 more firing"
    assert details["alerts"] == "300 firing"


async def test_an_incident_opens_and_resolves_under_alertmanagers_own_key(
    channel: Channel, stand_ins: StandIns
) -> None:
    firing, resolved = message("01-firing-1"), message("03-resolved-1")
    key = hashlib.sha256(firing.event.group_key.encode()).hexdigest()
    assert await send(channel, firing) == {"dedup_key": key, "status": "success"}
    assert [incident.status for incident in stand_ins.pagerduty.incidents] == ["triggered"]
    assert await send(channel, resolved) == {"dedup_key": key, "status": "success"}
    (incident,) = stand_ins.pagerduty.incidents
    assert (incident.status, incident.dedup_key, incident.severity) == ("resolved", key, "critical")
    assert incident.summary == "KMSCryptoModeNotKMS · production / backend: KMSCryptoModeNotKMS on backend"
    assert [link["href"] for link in incident.links][:2] == [RUNBOOK, DASHBOARD]


async def test_the_same_group_of_two_alertmanagers_is_two_incidents(channel: Channel, stand_ins: StandIns) -> None:
    for source, payload in (("a", "01-firing-1"), ("b", "01-firing-1"), ("b", "03-resolved-1")):
        await send(channel, message(replace(message(payload).event, source=source)))
    key = hashlib.sha256(f"a\0{message().event.group_key}".encode()).hexdigest()
    assert {incident.dedup_key: incident.status for incident in stand_ins.pagerduty.incidents}.get(key) == "triggered"
    assert sorted(incident.status for incident in stand_ins.pagerduty.incidents) == ["resolved", "triggered"]


def test_a_group_key_with_a_zero_byte_names_no_incident_of_another_source() -> None:
    own = replace(message().event, source="keypulse", group_key="group")
    forged = replace(own, source="", group_key="keypulse\0group")
    assert len({build_dedup_key(each) for each in (own, forged, replace(forged, source="keypulse"))}) == 3


def test_the_event_of_many_alerts_leads_to_the_incidents_page_too() -> None:
    event = build_event(replace(with_text("https://x.example.org", 30), incident_url=INCIDENT), "trigger")
    assert (event["client_url"], len(event["links"])) == (INCIDENT, MAX_LINKS)


def test_the_time_of_an_event_is_that_of_its_first_alert() -> None:
    event = message("05-firing-3").event
    early, *others = event.alerts
    first = replace(early, starts_at=early.starts_at - timedelta(minutes=7))
    for alerts in ((first, *others), (*others, first)):
        assert (
            build_event(message(replace(event, alerts=alerts)), "trigger")["payload"]["timestamp"]
            == first.starts_at.isoformat()
        )


def test_a_list_that_was_cut_resolves_nothing(channel: Channel) -> None:
    event = replace(message("03-resolved-1").event, truncated_alerts=1)
    assert actions(channel.render_payload(message(event, firing_undelivered=True))) == ["trigger"]


@pytest.mark.parametrize(
    ("label", "severity"),
    [
        ("critical", "critical"),
        ("page", "critical"),
        ("error", "error"),
        ("Warning", "warning"),
        ("info", "info"),
        ("none", "info"),
        ("sev-1", "error"),
        ("", "error"),
    ],
)
def test_a_severity_becomes_one_of_pagerdutys_four(label: str, severity: str) -> None:
    event = message().event
    (alert,) = event.alerts
    changed = replace(event, alerts=(replace(alert, labels={**alert.labels, "severity": label}),))
    assert build_event(message(changed), "trigger")["payload"]["severity"] == severity


async def test_a_rotated_key_is_used_at_the_next_send(channel: Channel, secret_file: Path, stand_ins: StandIns) -> None:
    for wrong in ("1" * 32, "short"):  # of other lengths, one after the other: the clock of files may stand still
        rotate(secret_file, wrong)
        refused = await refuse(channel)
        assert (refused.reason, refused.scope) == (SendReason.UNAUTHORIZED, SendScope.CHANNEL)
        assert wrong not in str(refused)
    rotate(secret_file, SECRET)
    await send(channel, message())
    assert len(stand_ins.pagerduty.events) == 1


@pytest.mark.parametrize("error", ["links[0].text names an invalid routing key", "Invalid routing key"])
async def test_one_event_that_is_refused_stops_no_channel_whatever_the_error_says(
    error: str, channel: Channel, stand_ins: StandIns
) -> None:
    stand_ins.faults.add(ProviderFault(provider=Provider.PAGERDUTY, kind=FaultKind.ERROR, error=error, count=1))
    attempt = Recorded(message())
    raised = await refuse(channel, attempt)
    assert re.search("routing key", str(raised))
    assert (raised.reason, raised.scope) == (SendReason.REJECTED, SendScope.MESSAGE)
    assert len(attempt.payloads) == len(attempt.answers) == 1
    (request,) = stand_ins.pagerduty.events  # whether it takes the key, with nothing of the message
    assert (request["event_action"], request["payload"], request["links"]) == ("resolve", {}, [])
    assert not stand_ins.pagerduty.incidents


async def test_where_pagerduty_does_not_say_whether_it_takes_the_key_the_message_is_retried(
    channel: Channel, stand_ins: StandIns
) -> None:
    for fault in (
        {"kind": FaultKind.ERROR, "error": "Invalid routing key"},
        {"kind": FaultKind.RATE_LIMIT, "seconds": 7},
    ):
        stand_ins.faults.add(ProviderFault.model_validate({"provider": Provider.PAGERDUTY, "count": 1, **fault}))
    raised = await refuse(channel)
    assert (raised.reason, raised.scope) == (SendReason.RATE_LIMITED, SendScope.ATTEMPT)
    assert raised.retry_after == 7.0
    await send(channel, message())


async def test_an_accepted_event_is_delivered_whatever_the_answer_says(
    open_channel: OpenChannel, secret_file: Path, website: WebServer
) -> None:
    receipt = await send(open_channel(example("pagerduty", secret_file, await website(202, "Accepted"))), message())
    assert len(receipt["dedup_key"]) == 64


async def test_what_was_over_before_anybody_heard_calls_and_then_resolves(
    channel: Channel, stand_ins: StandIns
) -> None:
    attempt = Recorded(message("03-resolved-1", firing_undelivered=True))
    receipt = await channel.send(attempt)
    assert sent(stand_ins) == ["trigger", "resolve"]
    (incident,) = stand_ins.pagerduty.incidents
    assert (incident.status, incident.dedup_key) == ("resolved", receipt["dedup_key"])
    assert incident.summary.startswith("KMSCryptoModeNotKMS · production / backend (already resolved): ")
    assert attempt.saved == [{"triggered": "yes"}]
    assert "\n".join(attempt.payloads) == channel.render_payload(attempt.message)
    assert [json.loads(payload)["routing_key"] for payload in attempt.payloads] == ["[secret]"] * 2


async def test_what_has_called_already_only_resolves(channel: Channel, stand_ins: StandIns) -> None:
    over = message("03-resolved-1", firing_undelivered=True)
    first = Recorded(over)
    stand_ins.faults.add(ProviderFault(provider=Provider.PAGERDUTY, kind=FaultKind.LOST_ANSWER, count=1))
    lost = await refuse(channel, first)
    assert (lost.maybe_arrived, first.saved) == (True, [])

    class Cut(Recorded):
        """Its process ends between the two events."""

        async def save_progress(self, progress: Progress) -> None:
            await super().save_progress(progress)
            self.lease_lost = True

    second = Cut(over, maybe_sent=True)
    with pytest.raises(DeliveryLeaseLostError):
        await channel.send(second)
    await channel.send(Recorded(over, progress=second.saved[-1], maybe_sent=True))
    assert sent(stand_ins) == ["trigger", "trigger", "resolve"]
    assert [incident.status for incident in stand_ins.pagerduty.incidents] == ["resolved"]


async def test_a_person_may_choose_not_to_be_called_for_what_is_over(
    open_channel: OpenChannel, values: dict[str, Any], stand_ins: StandIns
) -> None:
    channel = open_channel({**values, "page_resolved": False})
    await send(channel, message("03-resolved-1", firing_undelivered=True))
    assert sent(stand_ins) == ["resolve"]
    assert not stand_ins.pagerduty.incidents


async def test_an_acknowledgement_follows_the_trigger_and_is_in_the_receipt(
    channel: Channel, stand_ins: StandIns
) -> None:
    firing = acknowledged(message("01-firing-1"))
    receipt = await send(channel, firing)
    key = hashlib.sha256(firing.event.group_key.encode()).hexdigest()
    assert receipt == {"dedup_key": key, "status": "success", "acknowledged": ACKNOWLEDGEMENT}
    assert sent(stand_ins) == ["trigger", "acknowledge"]
    assert [incident.status for incident in stand_ins.pagerduty.incidents] == ["acknowledged"]

    await send(channel, acknowledged(firing, is_repeat=True))  # PagerDuty has everything else
    assert sent(stand_ins)[2:] == ["acknowledge"]
    assert "acknowledged" not in await send(channel, message("01-firing-1"))  # a repeat of the alert
    assert sent(stand_ins)[3:] == ["trigger"]
    assert "acknowledged" not in await send(channel, acknowledged(message("03-resolved-1")))
    assert sent(stand_ins)[4:] == ["resolve"]


async def test_an_earlier_episode_that_may_be_open_is_resolved_before_the_next_is_triggered(
    channel: Channel, stand_ins: StandIns
) -> None:
    await send(channel, acknowledged(message("01-firing-1")))
    restarted = message("01-firing-1", resolves_earlier=True)
    attempt = Recorded(acknowledged(restarted))
    await channel.send(attempt)
    assert sent(stand_ins)[2:] == ["resolve", "trigger", "acknowledge"]
    assert [incident.status for incident in stand_ins.pagerduty.incidents] == ["resolved", "acknowledged"]
    assert attempt.saved == [{"earlier_resolved": "yes"}, {"triggered": "yes"}]
    assert json.loads(attempt.payloads[0]).keys() == {"routing_key", "event_action", "dedup_key"}
    assert "\n".join(attempt.payloads) == channel.render_payload(attempt.message)

    await channel.send(Recorded(restarted, progress=attempt.saved[0]))
    assert sent(stand_ins)[5:] == ["trigger"]
    await channel.send(Recorded(attempt.message, progress=attempt.saved[1]))
    assert sent(stand_ins)[6:] == ["acknowledge"]
    late = Recorded(message("03-resolved-1", resolves_earlier=True, firing_undelivered=True))
    await channel.send(late)
    assert sent(stand_ins)[7:] == ["resolve", "trigger", "resolve"]
    assert ["payload" in json.loads(payload) for payload in late.payloads] == [False, True, True]
    await send(channel, message("03-resolved-1", resolves_earlier=True))
    assert sent(stand_ins)[10:] == ["resolve"]


async def test_an_acknowledgement_that_was_cut_off_is_resent_without_the_trigger(
    channel: Channel, stand_ins: StandIns
) -> None:

    class Cut(Recorded):
        """PagerDuty fails between the two events."""

        async def save_progress(self, progress: Progress) -> None:
            await super().save_progress(progress)
            stand_ins.faults.add(ProviderFault(provider=Provider.PAGERDUTY, kind=FaultKind.LOST_ANSWER, count=1))

    first = Cut(acknowledged(message("01-firing-1")))
    raised = await refuse(channel, first)
    await channel.send(first.create_retry(raised))
    assert sent(stand_ins) == ["trigger", "acknowledge", "acknowledge"]
    assert json.loads(first.payloads[1]).keys() == {"routing_key", "event_action", "dedup_key"}
    assert "\n".join(first.payloads) == channel.render_payload(first.message)
