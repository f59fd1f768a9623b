from dataclasses import replace
from datetime import UTC, datetime, timedelta
from urllib.parse import parse_qs, urlsplit
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given

from services.relay.model import Links, Status
from services.relay.text import (
    MAX_URL,
    Link,
    Severity,
    clean_text,
    find_worst_severity,
    format_counts,
    format_headline,
    format_period,
    format_remark,
    format_state,
    format_time,
    is_resolved,
    list_alerts,
    list_fixes,
    list_group_links,
    sanitize_url,
)
from services.relay.text.strings import format_short_time
from services.relay.text.title import MAX_REMARK
from tests import memory_kms
from tests.relay.channels.examples import ALERTS_URL, SILENCE_URL, message, strange


@given(strange)
def test_readable_text_can_be_encoded_and_contains_nothing_invisible(text: str) -> None:
    readable = clean_text(text)
    readable.encode()
    assert not set(readable) & set("\x00\x07\x1b\r\x7f\x85\u2028\u202e\u2066\ud800\ufeff")
    assert clean_text(readable) == readable


def test_what_a_person_sees_stays_as_it_was() -> None:
    text = "naïve ✓ 👩\N{ZERO WIDTH JOINER}🚒 עברית crypto_mode == 0\n\tsecond line"
    assert clean_text(text) == text


@pytest.mark.parametrize(
    "url",
    [
        None,
        "",
        "javascript:alert(1)",
        "JavaScript:alert(1)",
        "data:text/html,x",
        "//example.org/",
        "/relative",
        "https://",
        "https:///path",
        "http://[::1",
        "https://example.org/\nSet-Cookie: x",
        "https://example.org/a b",
        "https://example.org/\u202egnp",
        "https:\\\\example.org",
        "https://user:password@example.org/",
        "https://example.org@evil.example/",
        "https://@example.org/",
        "https://example.org/" + "a" * MAX_URL,
        " https://example.org",
    ],
)
def test_a_link_that_is_not_plainly_http_is_dropped(url: str | None) -> None:
    assert sanitize_url(url) is None


def test_nothing_in_a_link_can_end_it() -> None:
    url = 'https://example.org/a|b<c>"d`{e}?x=%20&y=é#f'
    assert sanitize_url(url) == "https://example.org/a%7Cb%3Cc%3E%22d%60%7Be%7D?x=%20&y=%C3%A9#f"


@given(strange)
def test_a_link_survives_unchanged_or_is_safe_everywhere(text: str) -> None:
    url = sanitize_url(f"https://example.org/{text}")
    assert url is None or (url.isascii() and not set(url) & set('<>|"`\\ \r\n'))


def test_the_state_says_what_a_person_has_not_heard_and_a_cut_list_is_never_over() -> None:
    over = message("03-resolved-1")
    cut = replace(over.event, truncated_alerts=1)
    heard, unheard = over, message("03-resolved-1", firing_undelivered=True)
    firing = message("01-firing-1", firing_undelivered=True)
    states = [format_state(each) for each in (heard, unheard, firing, message(cut))]
    assert states == ["Resolved", "Fired and resolved", "Firing", "Firing"]
    assert (is_resolved(over.event), is_resolved(cut)) == (True, False)
    assert format_counts(cut) == "1 resolved, 1 not listed"


def test_the_relays_own_remark_stands_on_one_short_line() -> None:
    event = replace(message().event, remark="Ended\nwhile silenced.")
    assert format_remark(message(event, remark=" Slack is down. ")) == "Slack is down. Ended while silenced."
    assert format_remark(message()) == ""
    assert len(format_remark(message(event, remark="w" * 20_000))) == MAX_REMARK


def test_the_severity_is_that_of_the_alerts_that_still_fire() -> None:
    event = message("07-firing-3").event
    over, *firing = event.alerts
    critical = replace(over, labels={**over.labels, "severity": "critical"})
    assert find_worst_severity(replace(event, alerts=(critical, *firing))) is Severity.WARNING
    assert find_worst_severity(replace(event, alerts=(critical,))) is Severity.CRITICAL


def test_the_headline_is_the_same_for_every_event_of_a_group() -> None:
    headlines = {format_headline(message(name).event) for name in ("01-firing-1", "02-firing-1", "03-resolved-1")}
    assert headlines == {"KMSCryptoModeNotKMS · production / backend"}


def test_alerts_that_still_fire_come_first_and_a_link_comes_once() -> None:
    listed = list_alerts(message("07-firing-3"))
    assert [alert.status for alert, _ in listed] == [Status.FIRING, Status.FIRING, Status.RESOLVED]
    assert [len(links) for _, links in listed] == [3, 0, 0]


def test_an_alert_with_a_runbook_of_its_own_shows_it() -> None:
    given_links = (Links("https://a.example.org/", None), Links("https://b.example.org/", None), Links(None, "ftp://c"))
    listed = list_alerts(message("05-firing-3", links=given_links))
    runbooks = [link.url for _, found in listed for link in found if link.text == "Runbook"]
    assert runbooks == ["https://a.example.org/", "https://b.example.org/"]


@pytest.mark.parametrize(
    "labels",
    [{}, {"alertname": 'a"b'}, {"alertname": "a\\b"}, {"alertname": "a\nb"}, {"job.name": "x"}, {"a": "x" * 600}],
)
def test_a_group_that_alertmanagers_page_would_misread_has_no_link_to_a_silence(labels: dict[str, str]) -> None:
    event = replace(message("01-firing-1").event, group_labels=labels)
    assert list_group_links(event) == [
        Link("Alertmanager", "http://alertmanager:9093/#/alerts?receiver=kms-critical")
    ], "a silence of more than the group would hide other alerts"


def test_a_group_leads_to_its_alerts_and_to_a_silence_of_exactly_its_labels() -> None:
    links = list_group_links(message("01-firing-1").event)
    assert links == [Link("Alertmanager", ALERTS_URL), Link("Silence", SILENCE_URL)]
    matchers = parse_qs(urlsplit(SILENCE_URL).fragment.partition("?")[2])["filter"]
    assert matchers == ['{alertname="KMSCryptoModeNotKMS",env="production",service="backend"}']
    assert list_group_links(replace(message("01-firing-1").event, external_url="javascript:x")) == []


def test_alerts_that_fire_have_the_commands_that_fix_them_each_once() -> None:
    fired = message("01-firing-1")
    (alert,) = fired.event.alerts
    key = "projects/demo/locations/global/keyRings/app/cryptoKeys/ledger"
    annotations = {
        "kms_provider": "gcp",
        "kms_key": key,
        "kms_reason": "permission_denied",
        "kms_cause": "role_missing",
    }
    denied = replace(alert, annotations=annotations)
    unknown = replace(alert, annotations={**annotations, "kms_reason": "; id"})
    over = replace(
        alert, status=Status.RESOLVED, annotations={**annotations, "kms_reason": "key_disabled", "kms_cause": ""}
    )
    alerts = (denied, unknown, over, denied)
    fixes = list_fixes(replace(fired, event=replace(fired.event, alerts=alerts)))
    assert [fix.title for fix in fixes] == ["See who changed IAM in the last hour", "Grant the role"]
    assert "keys add-iam-policy-binding ledger --project=demo " in fixes[1].command
    resolved = replace(fired.event, status=Status.RESOLVED, alerts=alerts)
    assert list_fixes(replace(fired, event=resolved)) == []


def test_an_alert_of_a_second_provider_has_the_commands_of_that_provider() -> None:
    fired = message("01-firing-1")
    annotations = {"kms_provider": "memory", "kms_key": "ledger", "kms_reason": "key_disabled", "kms_version": "spring"}
    alerts = (replace(fired.event.alerts[0], annotations=annotations),)
    disabled = replace(fired, event=replace(fired.event, alerts=alerts))
    assert list_fixes(disabled) == []
    with memory_kms.registered():
        assert list_fixes(disabled) == [("Enable the version", "memory-kms enable ledger spring")]


def test_the_time_of_an_alert_says_how_long_it_lasted() -> None:
    (alert,) = message("03-resolved-1").event.alerts
    assert format_period(alert) == "resolved; fired from 2026-11-24 22:46:10 UTC to 2026-11-24 22:46:18 UTC (8 s)"
    assert format_period(replace(alert, ends_at=None)) == "resolved; fired from 2026-11-24 22:46:10 UTC"
    (alert,) = message("01-firing-1").event.alerts
    assert format_period(alert) == "firing since 2026-11-24 22:46:10 UTC"


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        (-5, "0 s"),
        (0, "0 s"),
        (59.6, "1 min"),
        (61, "1 min 1 s"),
        (605, "10 min"),
        (7_380, "2 h 3 min"),
        (90_061, "1 d 1 h"),
    ],
)
def test_a_duration_is_reported_in_its_two_largest_units(seconds: float, expected: str) -> None:
    start = datetime(2026, 11, 24, tzinfo=UTC)
    (alert,) = message("03-resolved-1").event.alerts
    changed = replace(alert, starts_at=start, ends_at=start + timedelta(seconds=seconds))
    assert format_period(changed).endswith(f"({expected})")


@pytest.mark.parametrize(
    ("zone", "text"),
    [
        ("Europe/Berlin", "2026-11-24 23:46:10 CET (22:46:10 UTC)"),
        ("Asia/Kathmandu", "2026-11-25 04:31:10 UTC+0545 (2026-11-24 22:46:10 UTC)"),
        ("Europe/London", "2026-11-24 22:46:10 UTC"),
    ],
)
def test_a_time_is_in_the_readers_zone_and_in_utc(zone: str, text: str) -> None:
    moment = datetime(2026, 11, 24, 22, 46, 10, tzinfo=UTC)
    assert format_time(moment, ZoneInfo(zone)) == text
    assert format_short_time(moment, ZoneInfo(zone)) == text.replace(":10", "")


@pytest.mark.parametrize("moment", [datetime(1, 1, 1, tzinfo=UTC), datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC)])
def test_a_time_at_the_edge_of_the_calendar_is_no_error(moment: datetime) -> None:
    for zone in ("America/Los_Angeles", "Asia/Tokyo"):
        assert format_time(moment, ZoneInfo(zone)).count(":") >= 2
        assert format_short_time(moment, ZoneInfo(zone)).count(":") in {1, 2}
