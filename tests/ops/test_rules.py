"""The rule files, judged by promtool and by the metrics that their rules read."""

import re

import pytest
import yaml
from prometheus_client.metrics_core import Metric

from ops.prometheus.build import build_files, select_exporter_job
from tests.ops import exposed_metrics
from tests.ops.rules import ALERTS, FILES, GROUPS, PROMETHEUS, RECORDINGS, REFERENCE, RULES, TESTS, promtool

SEVERITIES_AND_WAITS: dict[str, dict[str, tuple[str, str | None]]] = {
    "kms_crypto": {
        "KMSCryptoModeNotKMS": ("critical", "5m"),
        "KMSCryptoNotReady": ("critical", "5m"),
        "KMSCryptoDownOnLocalKey": ("critical", "5m"),
        "KMSHealthChecksFailing": ("critical", "5m"),
        "KMSCryptoModeFlapping": ("warning", None),
        "KMSHighCryptoErrorRate": ("warning", "5m"),
        "KMSHighLatency": ("warning", "10m"),
        "KMSDecryptionErrorsBurst": ("warning", None),
        "KMSBackendMetricsUnreadable": ("warning", "5m"),
        "KMSDataKeysUnusable": ("critical", "1m"),
        "KMSDataKeysMissing": ("critical", "2m"),
        "KMSKeyringRowsUnreadable": ("warning", "5m"),
        "KMSLocalKeyMissing": ("warning", "5m"),
    },
    "kms_keys": {
        "KMSProbeFailing": ("critical", "30s"),
        "KMSProbeFlapping": ("critical", None),
        "KMSCanaryLost": ("critical", "2m"),
        "KMSWrongAADAccepted": ("critical", None),
        "KMSKeyVersionDestroyScheduled": ("warning", None),
        "KMSHsmInstanceExpiring": ("warning", None),
        "KMSPermissionMissing": ("warning", "5m"),
        "KMSBackendOnEnvWhileKMSHealthy": ("warning", "2m"),
        "KMSRotationOverdue": ("warning", "1d"),
        "KMSRotationFailed": ("warning", None),
    },
    "keypulse_exporter": {
        "KMSExporterAbsent": ("critical", "2m"),
        "KMSKeyProblems": ("warning", "30m"),
        "KMSConfigReloadFailed": ("warning", "5m"),
        "KMSCredentialExpiring": ("warning", "2m"),
    },
    "keypulse_relay": {
        "RelayDown": ("critical", "2m"),
        "RelayChannelFailing": ("critical", "5m"),
        "RelayOutboxStuck": ("critical", "2m"),
        "RelayDeadLetters": ("warning", None),
        "RelayStoreUnavailable": ("critical", "2m"),
        "RelayWebhooksRejected": ("warning", None),
        "RelayConfigReloadFailed": ("warning", "5m"),
        "Watchdog": ("none", None),
    },
    "keypulse_path_proof": {"KMSPathProof": ("none", None), "KMSPathUnproven": ("warning", "5m")},
}


def test_the_groups_hold_the_contracts_alerts_and_recordings() -> None:
    assert {
        group["name"]: {
            rule["alert"]: (rule["labels"]["severity"], rule.get("for")) for rule in group["rules"] if "alert" in rule
        }
        for group in GROUPS
    } == SEVERITIES_AND_WAITS
    assert len(ALERTS) + len(RECORDINGS) == len(RULES), "each rule has a name of its own"
    assert {
        "kms:crypto_health_status",
        "kms:decryption_error_rate_5m",
        "kms:uptime_since_last_crypto_init",
    } <= RECORDINGS.keys()


def test_the_reference_lists_every_alert_with_its_wait_and_severity() -> None:
    rows = re.findall(r"^\| `(\w+)` \| .+ \| (\w*) ?\| (\w+) \|$", REFERENCE.read_text(), re.MULTILINE)
    listed = {name: (severity, wait or None) for name, wait, severity in rows if name in ALERTS}
    assert listed == {name: spec for group in SEVERITIES_AND_WAITS.values() for name, spec in group.items()}


def test_promtool_accepts_the_rules_and_the_configuration_that_loads_them() -> None:
    for answer in (promtool("check", "rules", *FILES), promtool("check", "config", PROMETHEUS / "prometheus.yml")):
        assert answer.returncode == 0, answer.stdout + answer.stderr


@pytest.fixture(scope="module")
def metrics(tmp_path_factory: pytest.TempPathFactory) -> list[Metric]:
    relay = exposed_metrics.by_a_relay(tmp_path_factory.mktemp("relay"))
    return [*exposed_metrics.by_the_exporter(), *relay, *exposed_metrics.by_every_server()]


NAME = r"\b(?:crypto|kms|keypulse|relay)_[a-z_]+\b|\b(?:kms|relay):[a-z0-9_]+\b"


def metrics_in(expression: str) -> set[str]:
    """The metric names of an expression, or the alerts that it compares.

    That is what is left without label lists, ranges, texts, functions and operators.
    """
    alerts = set(re.findall(r"\bALERTS(?:_FOR_STATE)?\{alertname=\"(\w+)\"\}", expression))
    bare = re.sub(
        r"\b(?:by|on|group_left|ignoring|without)\s*\([^)]*\)|\{[^}]*\}|\[[^\]]*\]|\"[^\"]*\"|\boffset \w+",
        " ",
        expression,
    )
    return (
        set(re.findall(r"\b[a-z][a-z0-9_:]*\b(?!\s*\()", bare)) - {"or", "and", "unless", "min", "max", "sum"} | alerts
    )


@pytest.mark.parametrize("rule", [name for name in [*RECORDINGS, *ALERTS] if name != "Watchdog"])
def test_a_rule_reads_only_what_is_exposed_or_a_rule_records(rule: str, metrics: list[Metric]) -> None:
    names = metrics_in({**RECORDINGS, **ALERTS}[rule]["expr"])
    assert names, "no metric found in the expression"
    assert names <= exposed_metrics.names(metrics) | RECORDINGS.keys() | ALERTS.keys() | {"up"}


@pytest.mark.parametrize("alert", ALERTS)
def test_a_message_queries_only_what_is_exposed_or_a_rule_records(alert: str, metrics: list[Metric]) -> None:
    texts = "\n".join(ALERTS[alert]["annotations"].values())
    queried = {name for query in re.findall(r"`([^`]*)`", texts) for name in re.findall(NAME, query)}
    assert queried <= exposed_metrics.names(metrics) | RECORDINGS.keys()


def test_every_rule_has_a_title_of_one_line_a_summary_a_description_and_a_runbook() -> None:
    required = {"title", "summary", "description", "runbook_url"}
    assert [alert for alert, rule in ALERTS.items() if not required <= rule["annotations"].keys()] == []
    expected = [
        alert["exp_annotations"]
        for document in TESTS.values()
        for case in document["tests"]
        for one in case.get("alert_rule_test", [])
        for alert in one.get("exp_alerts", [])
    ]
    assert [texts for texts in expected if any(not texts[name] or "\n" in texts[name] for name in required)] == []


def test_every_label_value_that_a_rule_selects_is_exposed(metrics: list[Metric]) -> None:
    exposed_labels: dict[str, list[dict[str, str]]] = {}
    for family in metrics:
        for sample in family.samples:
            exposed_labels.setdefault(sample.name, []).append(sample.labels)
    for name, rule in RECORDINGS.items():
        for label, value in re.findall(r'label_replace\(.+, "(\w+)", "(\w+)", "", ""\)', rule["expr"]):
            exposed_labels.setdefault(name, []).append({label: value})
    selected = [
        (name.replace("relay:", "relay_"), label, value)  # a recording keeps the labels of what it is made from
        for rule in RULES
        for name, label, values in re.findall(r'\b([a-z_:]+)\{(\w+)[!=~]+"([^"]*)"\}', rule["expr"])
        if name != "up" and label != "job"  # Prometheus adds it
        for value in values.split("|")
    ]
    assert selected
    assert [
        (name, label, value)
        for name, label, value in selected
        if value not in {labels.get(label) for labels in exposed_labels[name]}
    ] == []


def test_what_a_service_may_expose_itself_selects_the_exporter_s_job_everywhere() -> None:
    assert build_files() == {file: file.read_text(encoding="utf-8") for file in FILES}
    assert select_exporter_job('sum(rate(kms_data_keys{job=~"another|", status="x"}[5m]))') == (
        'sum(rate(kms_data_keys{job=~"keypulse-exporter|", status="x"}[5m]))'
    )
    assert select_exporter_job("kms_data_keys_ratio and kms:crypto_mode") == "kms_data_keys_ratio and kms:crypto_mode"


def test_the_job_that_a_rule_selects_is_scraped() -> None:
    jobs = {job["job_name"] for job in yaml.safe_load((PROMETHEUS / "prometheus.yml").read_text())["scrape_configs"]}
    selected = {job for rule in RULES for job in re.findall(r'\{job="([^"]*)"\}', rule["expr"])}
    assert selected
    assert selected <= jobs


def test_the_exporter_s_job_says_itself_how_often_so_that_one_failure_is_no_outage_elsewhere() -> None:
    jobs = yaml.safe_load((PROMETHEUS / "prometheus.yml").read_text())["scrape_configs"]
    assert {job.get("scrape_interval") for job in jobs if job["job_name"] == "keypulse-exporter"} == {"10s"}
