"""The rules for a Prometheus without anything else of keypulse: their form, and that they fire and are quiet."""

import re
from pathlib import Path
from typing import Any

import yaml
from prometheus_client.metrics_core import Metric

from tests.ops import exposed_metrics
from tests.ops.rules import PROMETHEUS, promtool
from tests.ops.test_rules import metrics_in

DOCUMENT = PROMETHEUS.parents[1] / "docs/rules.md"
FILE = PROMETHEUS / "portable/rules.yml"
RULES: list[dict[str, Any]] = [
    rule
    for group in yaml.safe_load(FILE.read_text())["groups"]
    for service in group["services"]
    for exporter in service["exporters"]
    for rule in exporter["rules"]
]
FIELDS = ["name", "description", "query", "severity", "for", "comments"]
KEY = 'instance="a:9911", service="ledger", target="kek"'
SERVICE = 'instance="a:9911", service="ledger"'
CALLS = f'{KEY}, operation="encrypt"'
SERIES = {
    # series: while it is well, and while it is not, each minute
    f"kms_probe_success{{{KEY}}}": ("1x30", "0x30"),
    f'kms_canary_success{{{KEY}, version="3", reason="key_disabled"}}': ("_x30", "0x30"),
    f"crypto_ready{{{SERVICE}}}": ("1x30", "0x30"),
    f"crypto_mode{{{SERVICE}}}": ("1x30", "0x30"),
    f"crypto_backend_up{{{SERVICE}}}": ("1x30", "0x30"),
    f'kms_probe_failures_total{{{CALLS}, reason="timeout"}}': ("0+1x30", "0+3x30"),
    f"kms_probes_total{{{KEY}}}": ("0+10x30", "0+10x30"),
    f'kms_operation_duration_seconds_bucket{{{CALLS}, le="1"}}': ("0+10x30", "0+0x30"),
    f'kms_operation_duration_seconds_bucket{{{CALLS}, le="2.5"}}': ("0+10x30", "0+10x30"),
    f'kms_operation_duration_seconds_bucket{{{CALLS}, le="+Inf"}}': ("0+10x30", "0+10x30"),
    f'kms_key_version_destroy_timestamp_seconds{{{KEY}, version="2"}}': ("_x30", "88200x30"),
}
OWN = {"instance": "a:9911", "service": "ledger"}
LABELS = {
    "KMS ciphertexts unreadable": {"target": "kek", "version": "3", "reason": "key_disabled"},
    "KMS data keys unavailable": {},
    "KMS bypassed": {},
    "KMS client health check failing": {},
    "KMS high latency (p95 > 1s)": {"target": "kek", "operation": "encrypt"},
    "KMS key version scheduled for destruction": {"target": "kek", "version": "2"},
}
"""Beside its own; the others have the target."""
DESCRIPTIONS = {
    "KMS key unusable": "Encrypting and decrypting with the KMS key kek of ledger fails (instance a:9911)",
    "KMS ciphertexts unreadable": (
        "The KMS key kek no longer decrypts what its version 3 encrypted (key_disabled): data of ledger cannot be read"
    ),
    "KMS data keys unavailable": (
        "ledger can neither encrypt nor decrypt: it has no usable data key (instance a:9911)"
    ),
    "KMS bypassed": "ledger wraps new data keys with its local key, not with KMS (instance a:9911)",
    "KMS client health check failing": (
        "ledger does not answer its health check, so nobody knows whether it can decrypt (instance a:9911)"
    ),
    "KMS high error rate (> 20%)": "30% of the round trips with the KMS key kek of ledger fail (instance a:9911)",
    "KMS high latency (p95 > 1s)": (
        "The p95 of encrypt with the KMS key kek of ledger is 2.425s (instance a:9911)"
    ),
    "KMS key version scheduled for destruction": (
        "Version 2 of the KMS key kek will be destroyed in 1d 0h 0m 0s: ledger loses what it encrypted"
    ),
}  # fmt: skip


def build_rule(rule: dict[str, Any]) -> dict[str, Any]:
    """As awesome-prometheus-alerts renders it."""
    alert = "".join(word[:1].upper() + word[1:] for word in re.findall(r"\w+", rule["name"].partition(" (")[0]))
    return {
        "alert": alert,
        "expr": rule["query"],
        "for": rule.get("for", "0m"),
        "labels": {"severity": rule["severity"]},
        "annotations": {"description": rule["description"]},
    }


def test_each_rule_has_the_form_of_awesome_prometheus_alerts_and_reads_what_the_exporter_exposes() -> None:
    assert [[field for field in FIELDS if field in rule] for rule in RULES] == [list(rule) for rule in RULES]
    assert [rule["name"] for rule in RULES] == list(DESCRIPTIONS)
    documented = re.findall(r"^\| (KMS [\w ]+) \| .* \| (\w*) ?\| (\w+) \|$", DOCUMENT.read_text(), re.MULTILINE)
    assert documented == [(r["name"].partition(" (")[0], r.get("for", ""), r["severity"]) for r in RULES]
    assert {rule["severity"] for rule in RULES} <= {"critical", "warning", "info"}
    exposed: list[Metric] = [*exposed_metrics.by_the_exporter()]
    read = {name for rule in RULES for name in metrics_in(rule["query"])}
    assert read <= exposed_metrics.names(exposed)


def test_each_rule_fires_with_its_description_and_is_quiet_while_all_is_well(tmp_path: Path) -> None:
    rules = [build_rule(rule) for rule in RULES]
    (tmp_path / "rules.yml").write_text(yaml.safe_dump({"groups": [{"name": "portable", "rules": rules}]}))
    checked = promtool("check", "rules", tmp_path / "rules.yml")
    assert checked.returncode == 0, checked.stdout + checked.stderr
    for column, is_firing in enumerate((False, True)):
        expected = [
            {
                "eval_time": "30m",
                "alertname": built["alert"],
                "exp_alerts": [
                    {
                        "exp_labels": OWN | LABELS.get(rule["name"], {"target": "kek"}) | built["labels"],
                        "exp_annotations": {"description": DESCRIPTIONS[rule["name"]]},
                    }
                ][: int(is_firing)],
            }
            for rule, built in zip(RULES, rules, strict=True)
        ]
        series = [{"series": name, "values": values[column]} for name, values in SERIES.items()]
        case = {"interval": "1m", "input_series": series, "alert_rule_test": expected}
        test = {"rule_files": ["rules.yml"], "evaluation_interval": "1m", "tests": [case]}
        (tmp_path / "test.yml").write_text(yaml.safe_dump(test))
        answer = promtool("test", "rules", tmp_path / "test.yml")
        assert answer.returncode == 0, answer.stdout + answer.stderr
