"""Alertmanager's matchers, and the first route that matches."""

import time

import pytest
import re2
from hypothesis import given
from hypothesis import strategies as st

from services.relay.intake.routing import Matcher, RouteSettings, find_route, parse_matcher
from tests.relay.served_relay import event_of, with_labels

LABELS = {"severity": "warning", "path": 'C:\\a "b"\nc', "env": ""}


@pytest.mark.parametrize(
    ("text", "matches"),
    [
        ('severity="warning"', True),
        ("severity=warning", True),
        (" severity = warning ", True),
        ('severity!="warning"', False),
        ('severity=~"warn|critical"', False),  # the whole value
        ('severity=~"warn.*|critical"', True),
        ("severity=~warn.+", True),
        ('severity!~"crit.*"', True),
        ('"severity"="warning"', True),
        (r'path="C:\\a \"b\"\nc"', True),
        ('missing=""', True),
        ("missing=", True),
        ('missing!=""', False),
        ('missing=~".*"', True),
        ('missing=~".+"', False),
        ('missing!="x"', True),
        ('env=""', True),
        ('severity=~"(?i)WARNING"', True),
        (r'severity=~"\\pL+"', True),
    ],
)
def test_a_matcher_matches_as_alertmanagers_does(text: str, matches: bool) -> None:
    assert parse_matcher(text).matches(LABELS) is matches


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("severity", "expected a matcher"),
        ("", "expected a matcher"),
        ('1abc="x"', "expected a matcher"),
        ('severity=="warning"', "expected one matcher"),
        ('a="b", c="d"', "expected one matcher"),
        ("a=b,c=d", "expected one matcher"),
        ('severity="warning', "expected one matcher"),
        (r'severity="\x"', "expected one matcher"),
        ('severity=~"("', "is not a regular expression"),
        (r'severity=~"\\Z"', "is not a regular expression"),
        ('severity=~"(?=x)"', "is not a regular expression"),
        ('severity=~"a{2000}"', "is not a regular expression"),
        ('severity=~"(\ud800"', "is not a regular expression"),
    ],
)
def test_a_bad_matcher_is_refused_with_what_was_expected(text: str, expected: str) -> None:
    with pytest.raises(ValueError, match=expected):
        parse_matcher(text)


def quoted(value: str) -> str:
    escaped = value.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
    return f'"{escaped}"'


@given(st.text(), st.text())
def test_any_value_can_be_written_and_is_compared_as_it_is(value: str, other: str) -> None:
    equal, unequal = parse_matcher(f"a={quoted(value)}"), parse_matcher(f"a!={quoted(value)}")
    assert equal.value == value
    assert equal.matches({"a": value})
    assert equal.matches({"a": other}) is (value == other)
    assert unequal.matches({"a": other}) is not equal.matches({"a": other})


@given(st.text(), st.text())
def test_a_regular_expression_matches_the_whole_value(value: str, more: str) -> None:
    matcher = parse_matcher(f"a=~{quoted(re2.escape(value))}")
    assert matcher.matches({"a": value})
    assert matcher.matches({"a": value + more}) is (more == "")


def test_no_label_makes_a_regular_expression_slow() -> None:
    matcher = parse_matcher('service=~"(a+)+b"')
    before = time.process_time()
    assert not matcher.matches({"service": "a" * 100_000})
    assert time.process_time() - before < 5  # one that tries every way would take longer than the universe has been


def test_a_bad_regular_expression_is_one_readable_line_and_nothing_goes_past_the_log(
    capfd: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(ValueError, match="of RE2: missing ") as raised:
        parse_matcher(r'severity=~"é(\n"')
    assert str(raised.value).isprintable()
    assert capfd.readouterr() == ("", "")


@given(st.text())
def test_any_text_is_a_matcher_or_a_value_error(text: str) -> None:
    try:
        matcher = parse_matcher(text)
    except ValueError:
        return
    assert isinstance(matcher, Matcher)
    assert matcher.label


def rule(name: str, *matchers: str, receiver: str | None = None) -> RouteSettings:
    return RouteSettings(receiver=receiver, matchers=matchers, channels=(name,))


def test_the_first_route_that_matches_wins() -> None:
    rules = [rule("a", "severity=info"), rule("b", "severity=critical"), rule("c")]
    assert find_route(event_of(), rules) == 1


def test_a_route_matches_if_any_alert_does() -> None:
    event = with_labels(event_of(), {"severity": "info"}, {"severity": "critical"})
    assert find_route(event, [rule("a", "severity=critical")]) == 0


def test_all_matchers_must_hold_for_one_and_the_same_alert() -> None:
    event = with_labels(event_of(), {"a": "1", "b": "2"}, {"a": "2", "b": "1"})
    assert find_route(event, [rule("x", "a=1", "b=1")]) is None


def test_a_receiver_must_be_the_events() -> None:
    event = event_of(receiver="kms-critical")
    rules = [rule("a", receiver="other"), rule("b", receiver="kms-critical")]
    assert find_route(event, rules) == 1
    assert find_route(event, rules[:1]) is None
