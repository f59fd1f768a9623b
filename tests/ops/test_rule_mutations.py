"""The promtool tests of the rules, judged by spoilt rules: each plausible mistake must fail one of them."""

from pathlib import Path

import pytest

from tests.ops import (
    rule_mutants_crypto,
    rule_mutants_data_keys,
    rule_mutants_keys,
    rule_mutants_relay,
    rule_mutants_rotation,
)
from tests.ops.rule_mutations import misled, mistaken, noticed, one_of
from tests.ops.rules import ALERTS, RECORDINGS

MUTATIONS = [
    *rule_mutants_crypto.MUTATIONS,
    *rule_mutants_data_keys.MUTATIONS,
    *rule_mutants_keys.MUTATIONS,
    *rule_mutants_relay.MUTATIONS,
    *rule_mutants_rotation.MUTATIONS,
]


@pytest.mark.parametrize("rule", one_of((rule,) for rule in [*ALERTS, *RECORDINGS]))
def test_a_rule_without_an_error_passes_its_tests(rule: str, tmp_path: Path) -> None:
    assert not noticed(tmp_path, rule, {})


@pytest.mark.parametrize(("rule", "right", "wrong"), one_of(MUTATIONS))
def test_an_error_in_an_expression_fails_a_promtool_test(rule: str, right: str, wrong: str, tmp_path: Path) -> None:
    assert mistaken(tmp_path, rule, right, wrong)


@pytest.mark.played
@pytest.mark.parametrize(
    ("alert", "annotation", "right", "wrong"),
    one_of([*rule_mutants_keys.MISLEADING, *rule_mutants_rotation.MISLEADING]),
)
def test_an_error_in_a_message_fails_a_promtool_test(
    alert: str, annotation: str, right: str, wrong: str, tmp_path: Path
) -> None:
    assert misled(tmp_path, alert, annotation, right, wrong)


@pytest.mark.played
@pytest.mark.parametrize("wait", one_of([("1m45s",), ("2m15s",)]))
def test_an_all_clear_that_comes_15_seconds_off_fails_a_promtool_test(wait: str, tmp_path: Path) -> None:
    assert noticed(tmp_path, "KMSBackendOnEnvWhileKMSHealthy", {"keep_firing_for": wait})


WAITS_OFF = {
    "30s": ("15s", "45s"),
    "1m": ("45s", "1m15s"),
    "2m": ("1m45s", "2m15s"),
    "5m": ("4m45s", "5m15s"),
    "10m": ("9m45s", "10m15s"),
    "30m": ("29m45s", "30m15s"),
    "1d": ("23h", "25h"),
    None: ("15s",),
}
BY_THE_HOUR = "KMSRotationFailed"
"""Its tests are evaluated each hour."""


@pytest.mark.played
@pytest.mark.parametrize(
    ("alert", "wait"),
    one_of(
        [
            (alert, "1h" if alert == BY_THE_HOUR else wait)
            for alert, rule in ALERTS.items()
            for wait in WAITS_OFF[rule.get("for")]
        ]
    ),
)
def test_a_wait_that_is_off_by_one_evaluation_fails_a_promtool_test(alert: str, wait: str, tmp_path: Path) -> None:
    assert noticed(tmp_path, alert, {"for": wait})
