"""Labels in each form that a person may paste."""

import json
import time
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.relay.routes.explanation import parse_labels
from shared.http.json_api import RefusedError

X = {"alertname": "X", "severity": "critical"}


@pytest.mark.parametrize(
    ("text", "labels"),
    [
        ('alertname="X", severity="critical"', X),
        (' {alertname="X",severity="critical",} ', X),
        ("alertname=X\nseverity=critical\n", X),
        ('alertname="X",\r\nseverity="critical",\r\n', X),
        ('{"alertname": "X", "severity": "critical"}', X),
        ('{"alertname"="X", "severity"="critical"}', X),
        ('summary="a, b=\\"c\\""', {"summary": 'a, b="c"'}),
        ('summary = a, b "c"\nalertname=X', {"summary": 'a, b "c"', "alertname": "X"}),
        ("empty=", {"empty": ""}),
        ('{"a b": "=c"}', {"a b": "=c"}),
    ],
)
def test_three_forms_are_read(text: str, labels: dict[str, str]) -> None:
    assert parse_labels(text) == labels


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("", "expected alertname="),
        ("{}", "expected alertname="),
        ("critical", "expected alertname="),
        ('alertname="X', "expected alertname="),
        ('alertname="', "expected alertname="),
        ("a=b c, d=e", "expected alertname="),
        ('a="b" c="d"', "expected alertname="),
        ('severity=~"critical"', 'severity=~"critical": expected the value of a label, with ='),
        ("a!=b", "a!=b: expected"),
        ('{"a": 1}', "expected text, not a whole number; expected an object of texts"),
        ('{"a": "b"', "it ends too early; expected an object"),
        ("a" * 20_001, "at most 20000 characters"),
        ("\n".join(f"a{n}=b" for n in range(201)), "at most 200 labels"),
    ],
)
def test_anything_else_is_refused_with_what_was_expected(text: str, error: str) -> None:
    with pytest.raises(RefusedError, match=error):
        parse_labels(text)


@pytest.mark.parametrize("text", ['"' + '\\"' * 9_990, '{"' + '\\"' * 9_990, f"a=x{' ' * 19_990}y"])
def test_no_text_of_the_longest_length_takes_seconds_of_the_event_loop(text: str) -> None:
    began = time.thread_time()
    with suppress(RefusedError):
        parse_labels(text)
    assert time.thread_time() - began < 0.5  # each took over 3 s where every quote or space was a new beginning


@given(st.dictionaries(st.text(min_size=1, max_size=9), st.text(max_size=20), min_size=1, max_size=3))
def test_json_represents_any_label(labels: dict[str, str]) -> None:
    expected = {
        key.encode(errors="replace").decode(): value.encode(errors="replace").decode() for key, value in labels.items()
    }
    assert parse_labels(json.dumps(labels, ensure_ascii=False)) == expected


@given(st.text())
def test_any_text_is_labels_or_a_value_error(text: str) -> None:
    with suppress(RefusedError):
        assert parse_labels(text)
