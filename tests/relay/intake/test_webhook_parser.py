"""Bodies → events: real ones, odd ones, and bodies that are no webhook."""

import json
import tracemalloc
from datetime import UTC
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.relay.intake import webhook as webhook_parser
from services.relay.model import Status
from tests.relay.served_relay import PAYLOADS, payload, webhook_of


@pytest.mark.parametrize("file", PAYLOADS, ids=lambda file: file.stem)
def test_a_real_webhook_keeps_all_that_it_says(file: Any) -> None:
    wire = json.loads(file.read_bytes())
    event = webhook_parser.parse_whole_event(file.read_bytes(), "eu")
    assert (event.source, event.receiver, event.group_key) == ("eu", wire["receiver"], wire["groupKey"])
    assert event.status == wire["status"]
    assert event.truncated_alerts == wire["truncatedAlerts"]
    assert event.group_labels == wire["groupLabels"]
    assert event.common_annotations == wire["commonAnnotations"]
    assert [(a.status, a.labels, a.annotations, a.fingerprint) for a in event.alerts] == [
        (a["status"], a["labels"], a["annotations"], a["fingerprint"]) for a in wire["alerts"]
    ]
    assert all(alert.starts_at.tzinfo is UTC for alert in event.alerts)


def test_only_a_resolved_alert_has_an_end() -> None:
    alerts = webhook_parser.parse_whole_event(payload(7), "").alerts
    assert {alert.status for alert in alerts} == {Status.FIRING, Status.RESOLVED}
    assert all((alert.ends_at is not None) == (alert.status is Status.RESOLVED) for alert in alerts)


def test_fields_of_newer_alertmanagers_and_of_grafana_are_no_error() -> None:
    body = webhook_of(notification_reason="new alerts added", routeLabels={"a": "b"}, orgId=1, commonAnnotations=None)
    assert webhook_parser.parse_whole_event(body, "").common_annotations == {}


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (b"", "invalid JSON: it ends too early"),
        (b"\xff\xfe", "invalid JSON: invalid character (byte 0)"),
        (webhook_of().replace(b"kms-critical", b"\xff"), "invalid JSON: it is not UTF-8"),
        (b"\xef\xbb\xbf" + webhook_of(), "invalid JSON: invalid character (byte 0)"),  # a byte order mark
        (b"[]", "expected an object, not a list"),
        (b'{"x":' + b"[" * 100_000, "invalid JSON: it is nested too deeply"),
        (b"{}", "version: missing; expected '4', as Alertmanager's webhooks have it"),
        (webhook_of(alerts=[{}]), "alerts.0.status: missing; expected 'firing' or 'resolved'"),
        (webhook_of(version="3"), "version: expected '4', as Alertmanager's webhooks have it"),
        (webhook_of(version=4), "version: expected '4', as Alertmanager's webhooks have it, not a whole number"),
        (webhook_of(alerts=[]), "alerts: expected a list of length >= 1"),
        (webhook_of(groupKey=""), "groupKey: expected text of length >= 1"),
        (webhook_of(groupKey="k" * 65_537), "groupKey: expected text of length <= 65536"),
        (webhook_of(status="pending"), "status: expected 'firing' or 'resolved'"),
        (webhook_of(truncatedAlerts=-1), "truncatedAlerts: expected a whole number >= 0"),
        (webhook_of().replace(b"kms-critical", b"\\ud800"), "invalid JSON: "),  # half a character
        (webhook_of().replace(b'"2026-11-24T22:46:10.178815Z"', b"5"), "alerts.0.startsAt: "),
        (webhook_of().replace(b"2026-11-24T22:46:10.178815Z", b"yesterday"), "alerts.0.startsAt: "),
        (webhook_of().replace(b"2026-11-24T22:46:10.178815Z", b"0001-01-01T00:00:00+05:00"), "alerts.0.startsAt: "),
    ],
)
def test_what_is_no_webhook_is_named_with_its_position(body: bytes, expected: str) -> None:
    with pytest.raises(webhook_parser.MalformedWebhookError) as raised:
        webhook_parser.parse_whole_event(body, "")
    assert str(raised.value).startswith(expected)


def test_a_reason_repeats_nothing_of_the_body() -> None:
    alert = json.loads(payload(1))["alerts"][0]
    for body, field in (
        (webhook_of(status="a-password"), "status: "),
        (webhook_of(groupLabels={"a-password": 1}), "groupLabels: "),
        (webhook_of(alerts=[alert | {"labels": {"a-password": 1}}]), "alerts.0.labels: "),
        (webhook_of(alerts=[alert | {"annotations": {"a-password": None}}]), "alerts.0.annotations: "),
    ):
        with pytest.raises(webhook_parser.MalformedWebhookError) as raised:
            webhook_parser.parse_whole_event(body, "")
        assert str(raised.value).startswith(field)
        assert "a-password" not in str(raised.value)


@pytest.mark.parametrize("kind", ["alerts", "labels", "annotations", "groupLabels"])
def test_a_body_of_nothing_but_errors_costs_a_few_times_its_own_size_and_no_more(kind: str) -> None:
    document = json.loads(webhook_of())
    wrong = dict.fromkeys(map(str, range(300_000)), 0)
    if kind in ("labels", "annotations"):
        document["alerts"][0][kind] = wrong
    else:
        document[kind] = wrong if kind == "groupLabels" else [0] * 1_000_000
    body = json.dumps(document).encode()
    tracemalloc.start()
    try:
        with pytest.raises((webhook_parser.MalformedWebhookError, webhook_parser.TooManyTextsError)):
            webhook_parser.parse_whole_event(body, "")
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 10 * len(body)  # an error for each mistake would be fifty times as much at least


@given(st.binary() | st.recursive(st.none() | st.text() | st.integers(), st.lists).map(json.dumps).map(str.encode))
def test_no_body_raises_anything_else(body: bytes) -> None:
    with pytest.raises(webhook_parser.MalformedWebhookError):
        webhook_parser.parse_whole_event(body, "")
