"""The promtool tests of the rules, judged by spoilt rules: each plausible mistake must fail one of them."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.ops.rules import ALERTS, RECORDINGS, TEST_FILES, promtool

HEALTH = "kms:crypto_health_status"
RATE = "kms:decryption_error_rate_5m"
UPTIME = "kms:uptime_since_last_crypto_init"
OUTBOX = "relay:outbox_deliveries"
OLDEST = "relay:outbox_oldest_timestamp_seconds"

# One plausible mistake a line: the rule, what stands there, what somebody might write instead.
MISTAKES = [
    (HEALTH, "* min by (env, service) (crypto_backend_up)", ""),
    (HEALTH, "* min by (env, service) (crypto_ready)", ""),
    (HEALTH, "min by (env, service) (crypto_mode)", "max by (env, service) (crypto_mode)"),
    (HEALTH, "last_over_time(crypto_backend_up[1d])", "crypto_backend_up"),
    (HEALTH, "[1d]", "[12h]"),
    (HEALTH, "[1d]", "[2d]"),
    (RATE, "[5m]", "[10m]"),
    (RATE, "sum by", "max by"),
    (RATE, "rate(", "deriv("),
    (UPTIME, "max by", "min by"),
    (UPTIME, " > 0", ""),
    *[
        (alert, old, new)
        for alert in ("KMSCryptoModeNotKMS", "KMSCryptoNotReady")
        for old, new in [
            ("min by (env, service) (\n", "max by (env, service) (\n"),
            ("[15m]", "[10m]"),
            ("[15m]", "[20m]"),
            ("and min by (env, service, instance, replica) (crypto_backend_up) == 0", ""),
            (" == 0", " == 1"),
            (" != 1", " == 1"),
            (", replica", ""),
            (", instance", ""),
            ("env, service", "service"),
            ("env, service", "env"),
            ("or\n  min by (env, service) (last_over_time", "and\n  min by (env, service) (last_over_time"),
        ]
    ],
    ("KMSHealthChecksFailing", "(crypto_backend_up) != 1", "(crypto_backend_up) > 1"),
    ("KMSHealthChecksFailing", "unless", "and"),
    ("KMSHealthChecksFailing", "[1d]", "[12h]"),
    ("KMSHealthChecksFailing", "[1d]", "[2d]"),
    ("KMSHealthChecksFailing", "env, service", "env, service, instance"),
    (
        "KMSHealthChecksFailing",
        "min by (env, service) (crypto_backend_up) !=",
        "max by (env, service) (crypto_backend_up) !=",
    ),
    ("KMSCryptoModeFlapping", "> 2", "> 1"),
    ("KMSCryptoModeFlapping", "> 2", "> 3"),
    ("KMSCryptoModeFlapping", "[1h]", "[30m]"),
    ("KMSCryptoModeFlapping", "[1h]", "[2h]"),
    ("KMSCryptoModeFlapping", "max by", "sum by"),
    ("KMSCryptoModeFlapping", "max by", "min by"),
    ("KMSHighCryptoErrorRate", "> 0.1", ">= 0.1"),
    ("KMSHighCryptoErrorRate", "> 0.1", "> 0.13"),
    ("KMSHighLatency", "0.95", "0.94"),
    ("KMSHighLatency", "0.95", "0.96"),
    ("KMSHighLatency", "> 1", "> 2.5"),
    ("KMSHighLatency", "[5m]", "[15m]"),
    ("KMSHighLatency", "target, ", ""),
    ("KMSHighLatency", "operation, ", ""),
    ("KMSHighLatency", "env, ", ""),
    ("KMSHighLatency", "rate(", "delta("),
    ("KMSDecryptionErrorsBurst", "> 10", "> 11"),
    ("KMSDecryptionErrorsBurst", "> 10", ">= 10"),
    ("KMSDecryptionErrorsBurst", "floor", ""),
    ("KMSDecryptionErrorsBurst", "increase", "delta"),
    ("KMSDecryptionErrorsBurst", "[5m]", "[10m]"),
    ("KMSDecryptionErrorsBurst", "[5m]", "[4m]"),
    ("KMSDecryptionErrorsBurst", "sum by", "max by"),
    (OUTBOX, "max by (env, channel, state) (relay_outbox_deliveries)\nor\n", ""),
    (
        OUTBOX,
        "max by (env, channel, state) (relay_outbox_deliveries)",
        "sum by (env, channel, state) (relay_outbox_deliveries)",
    ),
    (OUTBOX, "channel, state", "channel"),
    (OUTBOX, "channel, state", "state"),
    (OUTBOX, "[15m]", "[10m]"),
    (OUTBOX, "[15m]", "[20m]"),
    (OUTBOX, "on (env)", "on ()"),
    (OUTBOX, "on (env)", "on (env, channel, state)"),
    (OUTBOX, "unless on (env) relay_outbox_deliveries", ""),
    ("RelayDown", 'min by (env) (up{job="keypulse-relay"}) != 1', 'max by (env) (up{job="keypulse-relay"}) != 1'),
    ("RelayDown", "!= 1", "> 1"),
    ("RelayDown", "unless", "and"),
    ("RelayDown", "[1d]", "[12h]"),
    ("RelayDown", "[1d]", "[2d]"),
    ("RelayDown", "by (env)", "by (env, instance)"),
    ("RelayDown", "by (env)", "by ()"),
    ("RelayDown", '{job="keypulse-relay"}', ""),
    ("RelayDown", ") - 1", ")"),
    ("RelayChannelFailing", "min by (env, channel) (relay_channel_up)\n", "max by (env, channel) (relay_channel_up)\n"),
    ("RelayChannelFailing", "[15m]", "[10m]"),
    ("RelayChannelFailing", "[15m]", "[20m]"),
    ("RelayChannelFailing", "on (env)", "on ()"),
    ("RelayChannelFailing", "on (env)", "on (env, channel)"),
    ("RelayChannelFailing", "unless on (env) relay_channel_up", ""),
    ("RelayChannelFailing", "== 0", "== 1"),
    ("RelayChannelFailing", "env, channel", "env"),
    ("RelayChannelFailing", "env, channel", "channel"),
    ("RelayChannelFailing", '{reason!="ok"}', '{reason="timeout"}'),
    ("RelayChannelFailing", '{reason="ok"}', "{}"),
    ("RelayChannelFailing", "[10m]", "[5m]"),
    ("RelayChannelFailing", "[10m]", "[15m]"),
    ("RelayChannelFailing", '{state!="dead"}', ""),
    ("RelayChannelFailing", '{state!="dead"}', '{state="queued"}'),
    ("RelayChannelFailing", '{state!="dead"}) > 0', '{state!="dead"}) >= 0'),
    (OLDEST, "min by (env, channel) (relay_", "max by (env, channel) (relay_"),
    (OLDEST, "env, channel", "env"),
    (OLDEST, "env, channel", "channel"),
    (OLDEST, "[15m]", "[10m]"),
    (OLDEST, "[15m]", "[20m]"),
    (OLDEST, "on (env)", "on ()"),
    (OLDEST, "unless on (env) relay_outbox_deliveries", ""),
    ("RelayOutboxStuck", "> 600", ">= 600"),
    ("RelayOutboxStuck", "> 600", "> 615"),
    ("RelayOutboxStuck", "> 7200", ">= 7200"),
    ("RelayOutboxStuck", "> 7200", "> 7215"),
    ("RelayOutboxStuck", "or\ntime() - relay:outbox_oldest_timestamp_seconds > 7200", ""),
    ("RelayOutboxStuck", "on (env, channel)", "on (env)"),
    ("RelayOutboxStuck", "on (env, channel)", "on (channel)"),
    ("RelayOutboxStuck", "sum by", "min by"),
    ("RelayOutboxStuck", '{outcome="delivered"}', '{outcome=~"delivered|superseded"}'),
    ("RelayOutboxStuck", '{outcome="delivered"}', '{outcome=~"delivered|dead"}'),
    ("RelayOutboxStuck", "[10m]", "[5m]"),
    ("RelayOutboxStuck", "[10m]", "[15m]"),
    ("RelayOutboxStuck", ") > 0", ") >= 0"),
    ("RelayDeadLetters", '{state="dead"}', ""),
    ("RelayDeadLetters", "> 0", ">= 0"),
    ("RelayDeadLetters", "> 0", "> 1"),
    ("RelayDeadLetters", "env, channel", "env"),
    ("RelayDeadLetters", "env, channel", "channel"),
    ("RelayStoreUnavailable", '{code="503"}', '{code=~"5.."}'),
    ("RelayStoreUnavailable", '{code="503"}', ""),
    ("RelayStoreUnavailable", "[2m]", "[1m]"),
    ("RelayStoreUnavailable", "[2m]", "[3m]"),
    ("RelayStoreUnavailable", "increase", "delta"),
    ("RelayStoreUnavailable", "by (env)", "by (env, instance)"),
    ("RelayStoreUnavailable", "by (env)", "by ()"),
    ("RelayStoreUnavailable", '{job="keypulse-relay"}', ""),
    ("RelayStoreUnavailable", "== 1 unless", "unless"),
    ("RelayStoreUnavailable", "on (env, instance)", "on (env)"),
    ("RelayStoreUnavailable", "unless on (env, instance) relay_outbox_deliveries", ""),
    *[("RelayWebhooksRejected", code, "402") for code in ("400", "401", "403", "413", "500")],
    ("RelayWebhooksRejected", "500", "500|503"),
    ("RelayWebhooksRejected", "500", "500|200"),
    ("RelayWebhooksRejected", "500", "500|202"),
    ("RelayWebhooksRejected", "[10m]", "[5m]"),
    ("RelayWebhooksRejected", "[10m]", "[15m]"),
    ("RelayWebhooksRejected", "sum by", "max by"),
    ("RelayWebhooksRejected", "increase", "delta"),
    ("RelayWebhooksRejected", "env, code", "env"),
    ("RelayWebhooksRejected", "env, code", "code"),
    ("RelayWebhooksRejected", "> 0", "> 1.5"),
    ("Watchdog", "vector(1)", "vector(1) > 1"),
    ("Watchdog", "vector(1)", "up"),
    ("Watchdog", "vector(1)", "absent(up)"),
]


TESTS: dict[str, dict[str, Any]] = {file.name: yaml.safe_load(file.read_text()) for file in TEST_FILES}


def noticed(folder: Path, name: str, change: dict[str, str]) -> bool:
    """Whether a promtool test of a rule, or of one that reads it, fails once it is changed.

    The copy holds only those tests, and the rules that they are about: to evaluate the others takes most of the time.
    """
    rules = {**RECORDINGS, **ALERTS}
    rules[name] = {**rules[name], **change}
    judged = {name, *(other for other, rule in rules.items() if name in rule["expr"])}
    read = {recording for recording in RECORDINGS for one in judged if recording in rules[one]["expr"]}
    kept = [rule for key, rule in rules.items() if key in judged | read]
    files = [_write(folder / "rules.yml", {"groups": [{"name": "changed", "rules": kept}]})]
    for file, document in TESTS.items():
        if cases := [case for case in (_about(judged, case) for case in document["tests"]) if case]:
            files.append(_write(folder / file, {**document, "rule_files": ["rules.yml"], "tests": cases}))
    assert files[1:], "no test is about this rule"
    answer = promtool("test", "rules", *files[1:])
    said = answer.stdout + answer.stderr
    assert answer.returncode == 0 or "got:" in said, f"the mistake must still be a rule: {said}"
    return answer.returncode != 0


def _about(judged: set[str], case: dict[str, Any]) -> dict[str, Any] | None:
    """What a test expects of some rules."""
    alerts = [one for one in case.get("alert_rule_test", []) if one["alertname"] in judged]
    values = [one for one in case.get("promql_expr_test", []) if any(name in one["expr"] for name in judged)]
    return {**case, "alert_rule_test": alerts, "promql_expr_test": values} if alerts or values else None


def _write(file: Path, document: dict[str, Any]) -> Path:
    file.write_text(yaml.dump(document, Dumper=yaml.CSafeDumper))
    return file


@pytest.mark.parametrize("rule", [*RECORDINGS, *ALERTS])
def test_a_rule_without_a_mistake_passes_its_tests(rule: str, tmp_path: Path) -> None:
    assert not noticed(tmp_path, rule, {})


@pytest.mark.parametrize(("rule", "right", "wrong"), MISTAKES)
def test_a_mistake_in_an_expression_fails_a_promtool_test(rule: str, right: str, wrong: str, tmp_path: Path) -> None:
    expression = {**RECORDINGS, **ALERTS}[rule]["expr"]
    assert right in expression
    assert noticed(tmp_path, rule, {"expr": expression.replace(right, wrong)})


WAITS_OFF = {
    "2m": ("1m45s", "2m15s"),
    "5m": ("4m45s", "5m15s"),
    "10m": ("9m45s", "10m15s"),
    None: ("15s",),
}


@pytest.mark.parametrize(
    ("alert", "wait"),
    [(alert, wait) for alert, rule in ALERTS.items() for wait in WAITS_OFF[rule.get("for")]],
)
def test_a_wait_that_is_15_seconds_off_fails_a_promtool_test(alert: str, wait: str, tmp_path: Path) -> None:
    assert noticed(tmp_path, alert, {"for": wait})
