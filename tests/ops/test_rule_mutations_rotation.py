"""As test_rule_mutations.py, for the alerts about rotation, and for what their messages look up."""

from pathlib import Path

import pytest

from tests.ops.rule_mutations import misled, mistaken, noticed, one_of

LATE, FAILED = "KMSRotationOverdue", "KMSRotationFailed"
SUCCESS = "max by (env, service) (last_over_time(kms_rotation_last_success_timestamp_seconds[1h]))"
LAST_FAILURE = "kms_rotation_last_failure_timestamp_seconds"
MUTATIONS = [
    *[(alert, "(env, service)", wrong) for alert in (LATE, FAILED) for wrong in ("(service)", "(env)")],
    (LATE, f"{SUCCESS} > 35", f"{SUCCESS.replace('max', 'min')} > 35"),
    (LATE, "> 35 * 86400", "> 34 * 86400"),
    (LATE, "> 35 * 86400", "> 36 * 86400"),
    (LATE, "<= 35 * 86400", "<= 33 * 86400"),
    (LATE, "<= 35 * 86400", "<= 37 * 86400"),
    (LATE, "[1h]", "[10m]"),
    (LATE, ', type="rewrap-kek"', ""),
    (LATE, "> 0", ">= 0"),
    (LATE, "unless on (env, service, kek_version)", "and on (env, service, kek_version)"),
    (LATE, "on (env, service, kek_version)", "on (service, kek_version)"),
    (LATE, "on (env, service, kek_version)", "on (env, service)"),
    (LATE, "and on (env, service) last_over_time(kms_key_primary_version_info[1h])\n", ""),
    (FAILED, "last_over_time(kms_rotation_last_failure_timestamp_seconds[1h])", f"{LAST_FAILURE} + 0"),
    (FAILED, ">= on (env, service)", "> on (env, service)"),
    (FAILED, ">= on (env, service)", "< on (env, service)"),
    (FAILED, SUCCESS, SUCCESS.replace("max", "min")),
    (FAILED, "[6h]", "[5h30m]"),
    (FAILED, "min_over_time", "max_over_time"),
    (FAILED, "and on (env, service) last_over_time(kms_rotation_in_progress[1h] offset 6h) == 1", ""),
]  # fmt: skip
MISLEADING = [
    (LATE, "description", "max(last_over_time(kms_rotation", "min(last_over_time(kms_rotation"),
    (LATE, "description", "max by (kek_version, status)", "sum by (kek_version, status)"),
    (LATE, "description", ") > 0", ")"),
    (LATE, "description", "env=%q", "env!=%q"),
    (LATE, "description", "service=%q", "service!=%q"),
    (FAILED, "title", "[1d]", "[1m]"),
    (FAILED, "title", "> 0", ">= 0"),
    (FAILED, "title", "env=%q", "env!=%q"),
    (FAILED, "title", "service=%q", "service!=%q"),
]


@pytest.mark.parametrize(("rule", "right", "wrong"), one_of(MUTATIONS))
def test_an_error_in_an_expression_fails_a_promtool_test(rule: str, right: str, wrong: str, tmp_path: Path) -> None:
    assert mistaken(tmp_path, rule, right, wrong)


@pytest.mark.parametrize(("alert", "annotation", "right", "wrong"), one_of(MISLEADING))
def test_an_error_in_a_message_fails_a_promtool_test(
    alert: str, annotation: str, right: str, wrong: str, tmp_path: Path
) -> None:
    assert misled(tmp_path, alert, annotation, right, wrong)


@pytest.mark.parametrize("wait", one_of([("22h",), ("26h",)]))
def test_a_wait_that_is_hours_off_fails_a_promtool_test(wait: str, tmp_path: Path) -> None:
    assert noticed(tmp_path, LATE, {"for": wait})
