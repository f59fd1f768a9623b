"""What is left of an event within bounds, and that a webhook of one part and of many parts say the same."""

import json
from dataclasses import replace

import pytest

from services.relay.intake import webhook as webhook_parser
from services.relay.intake.routing import RouteSettings
from services.relay.intake.webhook import parse_webhook
from services.relay.model import MAX_ALERTS_SIZE, MAX_TEXT, Status, build_fingerprint, collect_hashes, limit_size
from tests.relay.monitors.monitored_outbox import watch
from tests.relay.served_relay import PAYLOADS, event_of, payload, webhook_of


@pytest.mark.parametrize("file", PAYLOADS, ids=lambda file: file.stem)
def test_what_alertmanager_sends_is_within_them(file: object) -> None:
    event = webhook_parser.parse_whole_event(file.read_bytes(), "")  # type: ignore[attr-defined]
    assert limit_size(event) == event


def test_every_text_is_cut_and_what_links_and_routes_need_is_kept() -> None:
    (alert,) = event_of().alerts
    labels = {f"a{number}": "x" * 100 for number in range(5_000)} | {"severity": "critical", "alertname": "A" * 99_999}
    long = "y" * 9_000_000
    event = limit_size(
        event_of(
            alerts=(replace(alert, labels=labels, annotations={"summary": long}, generator_url=long),),
            common_annotations={"k" * 99_999: long},
            external_url=long,
        )
    )
    (only_alert,) = event.alerts
    assert (only_alert.labels["severity"], len(only_alert.labels["alertname"])) == ("critical", MAX_TEXT)
    assert 100 < len(only_alert.labels) < 1_000
    assert (len(only_alert.annotations["summary"]), only_alert.generator_url, event.external_url) == (MAX_TEXT, "", "")
    assert len(json.dumps(event.common_annotations)) < 3 * MAX_TEXT


def test_a_webhook_in_many_parts_is_parsed_as_one() -> None:
    (alert,) = json.loads(payload(1))["alerts"]
    alerts = [alert | {"fingerprint": f"{number:016x}"} for number in range(3_000)]
    alerts[2_900] |= {"labels": {"severity": "page"}}
    alerts[2_950] |= {"labels": {"alertname": "Watchdog"}}
    body = webhook_of(alerts=alerts)
    assert len(list(webhook_parser.iterate_parts(body, ""))) > 2
    rules = [RouteSettings(matchers=(f"severity={name}",), channels=(name,)) for name in ("info", "page", "critical")]
    heartbeats = [watch("Watchdog", "60s", "slack")]
    parsed = parse_webhook(body, "", heartbeats, rules)
    assert parsed.incoming is not None
    assert (parsed.heartbeats, parsed.route) == (frozenset({"Watchdog"}), rules[1])
    whole = webhook_parser.parse_whole_event(body, "")
    rest = replace(whole, alerts=tuple(each for each in whole.alerts if each.labels.get("alertname") != "Watchdog"))
    assert collect_hashes(parsed.incoming.event) == collect_hashes(rest)
    assert parsed.incoming.fingerprint == build_fingerprint(rest)
    assert parsed.incoming.event.status is Status.FIRING
    assert sum(len(str(each.labels)) for each in parsed.incoming.event.alerts) < MAX_ALERTS_SIZE
