"""The rule file, judged by promtool, the exporter's metrics and the runbook; its tests, judged by spoilt rules."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client import CollectorRegistry, generate_latest

from services.exporter.metrics import ExporterMetrics
from services.exporter.model import BackendState, Call, Health, Operation, ProbeResult
from shared.contract import CryptoMode
from shared.kms.reason import Reason

ROOT = Path(__file__).parents[2]
PROMETHEUS = ROOT / "ops/prometheus"
RULES = PROMETHEUS / "rules/kms.yml"
TEST_FILES = sorted((PROMETHEUS / "tests").glob("*.yml"))
RUNBOOK = ROOT / "docs/KMS_OPERATIONS.md"

(GROUP,) = yaml.safe_load(RULES.read_text())["groups"]
ALERTS: dict[str, dict[str, Any]] = {rule["alert"]: rule for rule in GROUP["rules"] if "alert" in rule}
RECORDINGS: dict[str, dict[str, Any]] = {rule["record"]: rule for rule in GROUP["rules"] if "record" in rule}

HEALTH = "kms:crypto_health_status"
RATE = "kms:decryption_error_rate_5m"
UPTIME = "kms:uptime_since_last_crypto_init"


def promtool(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["promtool", *arguments], capture_output=True, text=True, timeout=60, check=False)


def test_the_group_holds_the_contracts_alerts_and_recordings() -> None:
    assert GROUP["name"] == "kms_crypto"
    assert {HEALTH, RATE, UPTIME} <= RECORDINGS.keys()
    severities_and_waits = {name: (rule["labels"]["severity"], rule.get("for")) for name, rule in ALERTS.items()}
    assert severities_and_waits == {
        "KMSCryptoModeNotKMS": ("critical", "5m"),
        "KMSCryptoNotReady": ("critical", "5m"),
        "KMSHealthChecksFailing": ("critical", "5m"),
        "KMSCryptoModeFlapping": ("warning", None),
        "KMSHighCryptoErrorRate": ("warning", "5m"),
        "KMSHighLatency": ("warning", "10m"),
        "KMSDecryptionErrorsBurst": ("warning", None),
    }


def test_promtool_accepts_the_rules_and_the_configuration_that_loads_them() -> None:
    for answer in (promtool("check", "rules", RULES), promtool("check", "config", PROMETHEUS / "prometheus.yml")):
        assert answer.returncode == 0, answer.stdout + answer.stderr


@pytest.mark.parametrize("file", TEST_FILES, ids=lambda file: file.name)
def test_the_rules_pass(file: Path) -> None:
    answer = promtool("test", "rules", file)
    assert answer.returncode == 0, answer.stdout + answer.stderr


@pytest.mark.parametrize("alert", ALERTS)
def test_an_alert_is_tested_both_firing_and_silent(alert: str) -> None:
    expectations = [
        bool(expected.get("exp_alerts"))
        for file in TEST_FILES
        for case in yaml.safe_load(file.read_text())["tests"]
        for expected in case.get("alert_rule_test", [])
        if expected["alertname"] == alert
    ]
    assert set(expectations) == {True, False}


@pytest.mark.parametrize("alert", ALERTS)
def test_an_alert_tells_a_person_what_happened_and_what_to_do(alert: str) -> None:
    annotations = ALERTS[alert]["annotations"]
    assert annotations["summary"]
    assert annotations["description"]
    address, anchor = annotations["runbook_url"].split("#")
    assert address == "https://github.com/acme/ops/blob/main/docs/KMS_OPERATIONS.md"
    assert anchor == alert.lower(), "GitHub makes the anchor of a one-word heading by lowering it"

    sections = re.findall(rf"^## {alert}\n(.*?)(?=^## |\Z)", RUNBOOK.read_text(), re.MULTILINE | re.DOTALL)
    assert len(sections) == 1, "GitHub gives the second of two equal headings another anchor"
    parts = re.split(r"^\*\*(\w+)\*\*", sections[0], flags=re.MULTILINE)
    assert parts[1::2] == ["Diagnosis", "Resolution", "Verification"]
    assert all("```" in part for part in parts[2::2]), "each part has a command to run"


def exposed_by_the_exporter() -> set[str]:
    """Names of the samples that the exporter's own code writes after a round trip and the reading of a backend."""
    metrics = ExporterMetrics(CollectorRegistry(), [("ledger", "ledger-kek")])
    call = Call(Operation.ENCRYPT, 0.1)
    metrics.observe(ProbeResult("ledger", "ledger-kek", at=1.0, calls=(call,), key_version=None))
    metrics.show(BackendState("ledger", Health(CryptoMode.KMS, ready=True), init_timestamp=1.0, decryption_errors=0.0))
    lines = generate_latest(metrics.registry).decode().splitlines()
    return {re.split(r"[{ ]", line)[0] for line in lines if not line.startswith("#")}


def metrics_in(expression: str) -> set[str]:
    """The metric names of an expression: what is left without label lists, ranges, functions and operators."""
    bare = re.sub(r"\bby\s*\([^)]*\)|\{[^}]*\}|\[[^\]]*\]", " ", expression)
    return set(re.findall(r"\b[a-z][a-z0-9_:]*\b(?!\s*\()", bare)) - {"or", "and", "unless", "min", "max", "sum"}


@pytest.mark.parametrize("rule", [*RECORDINGS, *ALERTS])
def test_a_rule_reads_only_what_the_exporter_exposes_or_a_rule_records(rule: str) -> None:
    names = metrics_in({**RECORDINGS, **ALERTS}[rule]["expr"])
    assert names, "no metric found in the expression"
    assert names <= exposed_by_the_exporter() | RECORDINGS.keys()


def test_the_runbook_names_only_metrics_that_exist() -> None:
    named = set(re.findall(r"\b(?:crypto|kms)_[a-z_]+\b|\bkms:[a-z0-9_]+\b", RUNBOOK.read_text()))
    assert named <= exposed_by_the_exporter() | RECORDINGS.keys()


def test_the_runbook_explains_every_reason() -> None:
    rows = re.findall(r"^\| (`.*?) \|", RUNBOOK.read_text(), re.MULTILINE)
    assert {name for row in rows for name in re.findall(r"`(\w+)`", row)} == set(Reason)


def test_every_link_within_the_runbook_leads_to_a_heading() -> None:
    text = RUNBOOK.read_text()
    headings = {title.lower().replace(" ", "-") for title in re.findall(r"^#+ (.+)$", text, re.MULTILINE)}
    assert set(re.findall(r"\]\(#([^)]+)\)", text)) <= headings


def test_the_runbooks_commands_are_sound_shell(tmp_path: Path) -> None:
    blocks = re.findall(r"^( *)```bash\n(.*?)^ *```$", RUNBOOK.read_text(), re.MULTILINE | re.DOTALL)
    assert blocks
    script = tmp_path / "runbook.sh"
    script.write_text("\n".join(re.sub(rf"^{indent}", "", commands, flags=re.MULTILINE) for indent, commands in blocks))
    shellcheck = Path(sys.executable).with_name("shellcheck")
    answer = subprocess.run([shellcheck, "-s", "bash", script], capture_output=True, text=True, timeout=60, check=False)
    assert answer.returncode == 0, answer.stdout


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
]


def noticed(folder: Path, name: str, change: dict[str, str]) -> bool:
    """Whether a promtool test fails once a rule is changed, in a copy of the files."""
    document = yaml.safe_load(RULES.read_text())
    for rule in document["groups"][0]["rules"]:
        if name in (rule.get("alert"), rule.get("record")):
            rule.update(change)
    (folder / "rules").mkdir()
    (folder / "rules/kms.yml").write_text(yaml.safe_dump(document))
    assert promtool("check", "rules", folder / "rules/kms.yml").returncode == 0, "the mistake must still be a rule"
    (folder / "tests").mkdir()
    copies = [folder / "tests" / file.name for file in TEST_FILES if name in file.read_text()]
    for copy in copies:
        copy.write_text((PROMETHEUS / "tests" / copy.name).read_text())
    return any(promtool("test", "rules", copy).returncode != 0 for copy in copies)


@pytest.mark.parametrize(("rule", "right", "wrong"), MISTAKES)
def test_a_mistake_in_an_expression_fails_a_promtool_test(rule: str, right: str, wrong: str, tmp_path: Path) -> None:
    expression = {**RECORDINGS, **ALERTS}[rule]["expr"]
    assert right in expression
    assert noticed(tmp_path, rule, {"expr": expression.replace(right, wrong)})


@pytest.mark.parametrize(
    ("alert", "wait"),
    [
        (alert, wait)
        for alert, rule in ALERTS.items()
        for wait in {"5m": ("4m45s", "5m15s"), "10m": ("9m45s", "10m15s"), None: ("15s",)}[rule.get("for")]
    ],
)
def test_a_wait_that_is_15_seconds_off_fails_a_promtool_test(alert: str, wait: str, tmp_path: Path) -> None:
    assert noticed(tmp_path, alert, {"for": wait})
