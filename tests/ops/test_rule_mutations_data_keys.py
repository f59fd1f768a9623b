"""As test_rule_mutations.py, for the alerts about data keys that cannot be unwrapped, and what else ails a keyring."""

from pathlib import Path

import pytest

from tests.ops.rule_mutations import mistaken, noticed, one_of

ALERT = "KMSDataKeysUnusable"
JOINED = "on (env, service, instance, replica)"
MUTATIONS = [
    ("max by", "sum by"),
    ("max by", "min by"),
    ("max by (env, service)", "max by (service)"),
    ("max by (env, service)", "max by (env)"),
    ("> 0", "> 1"),
    ("> 0", ">= 0"),
    ("== 0", "== 1"),
    ("== 0", ">= 0"),
    ("unless", "and"),
    (JOINED, "on (service, instance, replica)"),
    (JOINED, "on (env, instance, replica)"),
    (JOINED, "on (env, service, replica)"),
    (JOINED, "on (env, service, instance)"),
    ("last_over_time(kms_data_keys_unusable[5m])", "kms_data_keys_unusable"),
    ("last_over_time(crypto_mode[5m])", "crypto_mode"),
    ("[5m]", "[4m]"),
    ("[5m]", "[6m]"),
]
AILING = ["KMSKeyringRowsUnreadable", "KMSLocalKeyMissing"]
OF_AILING = [
    ("max by", "min by"),
    ("env, service", "service"),
    ("env, service", "env"),
    ("> 0", "> 1"),
    ("> 0", ">= 0"),
    ("[5m]", "[4m]"),
    ("[5m]", "[6m]"),
]


@pytest.mark.parametrize(("alert", "right", "wrong"), one_of((ALERT, *mutation) for mutation in MUTATIONS))
def test_an_error_in_the_expression_fails_a_promtool_test(alert: str, right: str, wrong: str, tmp_path: Path) -> None:
    assert mistaken(tmp_path, alert, right, wrong)


@pytest.mark.parametrize("wait", one_of([("45s",), ("75s",)]))
def test_a_wait_that_is_a_scrape_off_fails_a_promtool_test(wait: str, tmp_path: Path) -> None:
    assert noticed(tmp_path, ALERT, {"for": wait})


@pytest.mark.parametrize(
    ("alert", "right", "wrong"), one_of((alert, *mutation) for alert in AILING for mutation in OF_AILING)
)
def test_an_error_in_the_expression_of_another_alert_fails_a_promtool_test(
    alert: str, right: str, wrong: str, tmp_path: Path
) -> None:
    assert mistaken(tmp_path, alert, right, wrong)


def test_a_number_of_rows_that_each_instance_adds_to_fails_a_promtool_test(tmp_path: Path) -> None:
    assert mistaken(tmp_path, "KMSKeyringRowsUnreadable", "max by", "sum by")


@pytest.mark.parametrize(("alert", "wait"), one_of((alert, wait) for alert in AILING for wait in ("4m45s", "5m15s")))
def test_a_wait_of_another_alert_that_is_off_fails_a_promtool_test(alert: str, wait: str, tmp_path: Path) -> None:
    assert noticed(tmp_path, alert, {"for": wait})
