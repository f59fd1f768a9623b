"""What is drawn of an expression is what it compares; brackets, strings and other operators are no comparison."""

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from services.relay.delivery.charts import split_comparison
from tests.ops.rules import FILES

SPLIT = {
    "a > 1": ("a", "> 1"),
    "((a) > (1))": ("(a)", "> (1)"),
    "1 < a": ("a", "> 1"),
    "a == -1": ("a", "== -1"),
    "a > bool 2e3": ("a", "> 2e3"),
    "a >= on (x, y) group_left b / 2": ("a", ">= b / 2"),
    "a > 1 < 5": ("a", "> 1, < 5"),
    'a{x=~"> 1 or", y!=`<`} > 2': ('a{x=~"> 1 or", y!=`<`}', "> 2"),
    "rate(a[5m:1m] offset 1h) / b > 0.5 # a > 9": ("rate(a[5m:1m] offset 1h) / b", "> 0.5"),
    "a > 1 and on (x) b < 2": ("a", "> 1"),
    "a > 1 unless b": ("a", "> 1"),
    "(a > 1 unless b) and c": ("a", "> 1"),
    "a > 1 or b == 0": ("(a) or (b)", "> 1, == 0"),
    "a > 1 OR a > 7 and b": ("a", "> 1, > 7"),
    "a > 1 or b": ("(a) or (b)", "> 1"),
    "a unless b > 0": ("a unless b > 0", ""),
    "sum by (x) (a > 1)": ("sum by (x) (a > 1)", ""),
    "vector(1)": ("vector(1)", ""),
    "count(a == 0) by (x) > 3": ("count(a == 0) by (x)", "> 3"),
}


@pytest.mark.parametrize("expression", SPLIT)
def test_what_is_compared_is_distinguished_from_what_it_is_compared_with(expression: str) -> None:
    found = split_comparison(expression)
    thresholds = ", ".join(f"{each.operator} {each.expression}" for each in found.thresholds)
    assert (found.left, thresholds) == SPLIT[expression]


def test_nearly_all_of_our_own_rules_have_a_left_side() -> None:
    rules = [rule for file in FILES for group in yaml.safe_load(file.read_text())["groups"] for rule in group["rules"]]
    alerts = {rule["alert"]: split_comparison(rule["expr"]) for rule in rules if "alert" in rule}
    assert len(alerts) > 30
    whole = {name for name, found in alerts.items() if not found.thresholds}
    assert whole <= {"KMSCanaryLost", "KMSCredentialExpiring", "KMSKeyVersionDestroyScheduled", "Watchdog"}


@given(st.text(alphabet="()[]{}\"'`\\<>=! abor1#\n"))
def test_no_text_breaks_it(text: str) -> None:
    split_comparison(text)
