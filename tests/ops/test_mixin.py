"""mixin.libsonnet: as it is, it gives the shipped files; each value of `_config` changes what it names alone."""

import json
import re
from functools import cache
from pathlib import Path
from typing import Any

import _gojsonnet
import pytest
import yaml

from tests.ops.rules import ALERTS, FILES, GROUPS, PROMETHEUS, ROOT, promtool

DOCUMENT = PROMETHEUS.parents[1] / "docs/rules.md"
THRESHOLDS: dict[str, dict[str, Any]] = yaml.safe_load((PROMETHEUS / "thresholds.yml").read_text())


def evaluate(expression: str) -> Any:
    """An expression about the mixin, `m`."""
    code = f"local m = import '{PROMETHEUS}/mixin.libsonnet'; {expression}"
    return json.loads(_gojsonnet.evaluate_snippet("test", code))


@cache
def render(config: str = "") -> dict[str, Any]:
    """What the mixin gives with these fields of `_config`, by the fields' names."""
    fields = ("prometheusFiles", "prometheusAlerts", "prometheusRules", "grafanaDashboards")
    shown = ", ".join(f"{field}: own.{field}" for field in fields)
    rendered: dict[str, Any] = evaluate(f"local own = m + {{_config+:: {{{config}}}}}; {{{shown}}}")
    return rendered


def list_rules(groups: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return {rule.get("alert") or rule["record"]: rule for group in groups for rule in group["rules"]}


def parse_rules(files: dict[str, str]) -> dict[str, dict[str, Any]]:
    texts = [text for file, text in files.items() if file.startswith("rules/")]
    return list_rules([group for text in texts for group in yaml.load(text, yaml.CSafeLoader)["groups"]])


def test_an_unchanged_config_gives_the_shipped_files_byte_for_byte_and_every_rule_and_dashboard() -> None:
    shipped = [*FILES, *(PROMETHEUS / "slo").glob("*.yml")]
    assert render()["prometheusFiles"] == {
        file.relative_to(PROMETHEUS).as_posix(): file.read_text() for file in shipped
    }
    assert render()["prometheusAlerts"]["groups"] == GROUPS
    assert render()["prometheusRules"]["groups"] == []
    dashboards = PROMETHEUS.parent / "grafana/dashboards"
    assert render()["grafanaDashboards"] == {
        file.name: json.loads(file.read_text()) for file in dashboards.glob("*.json")
    }


def test_a_threshold_changes_the_expression_and_the_limit_in_the_message_of_its_own_alert() -> None:
    changed = evaluate(
        "{[name]: (m + {_config+:: {thresholds+: {[name]: if name == 'rotationHours' then 377 else 0.375}}})"
        ".prometheusFiles for name in std.objectFields(m._config.thresholds)}"
    )
    text, rules = "".join(render()["prometheusFiles"].values()), parse_rules(render()["prometheusFiles"])
    for name, threshold in THRESHOLDS.items():
        places = [place.replace("{}", f"{threshold['default']:g}") for place in threshold["places"]]
        assert {place: text.count(place) for place in places} == dict.fromkeys(places, 1)
        number = "377" if name == "rotationHours" else "0.375"
        assert "".join(changed[name].values()).count(number) == len(places)
        different = {rule for rule, changed_rule in parse_rules(changed[name]).items() if changed_rule != rules[rule]}
        assert different == {threshold["alert"]}
        assert number in parse_rules(changed[name])[threshold["alert"]]["expr"]


def test_other_names_of_jobs_another_runbook_and_other_thresholds_are_rules_that_promtool_takes(tmp_path: Path) -> None:
    numbers = ", ".join(f"{name}: {spec['default'] * 2}" for name, spec in THRESHOLDS.items())
    changed = render(
        "exporterJob: 'kms/exporter', relaySelector: 'job=\"relay\", cluster=\"eu\"', env: 'staging', "
        f"runbookURL: 'https://wiki.example.org/kms', disabled: ['Watchdog'], thresholds+: {{{numbers}}}"
    )
    left = r"job=~?\\*\"keypulse-exporter|job=\\*\"keypulse-relay|acme|env=\\*\"production"
    assert re.findall(left, json.dumps(changed)) == []
    assert yaml.safe_load(changed["prometheusFiles"]["slo/sloth.yml"])["labels"] == {"env": "staging"}
    rules = list_rules(changed["prometheusAlerts"]["groups"])
    assert 'up{job="relay", cluster="eu"}' in rules["RelayDown"]["expr"]
    assert {name: rule["annotations"]["runbook_url"] for name, rule in rules.items() if "alert" in rule} == {
        name: f"https://wiki.example.org/kms#{name.lower()}" for name in ALERTS if name != "Watchdog"
    }
    (tmp_path / "rules.yml").write_text(yaml.dump(changed["prometheusAlerts"], Dumper=yaml.CSafeDumper))
    answer = promtool("check", "rules", tmp_path / "rules.yml")
    assert answer.returncode == 0, answer.stdout + answer.stderr


def test_the_page_on_tuning_has_each_threshold_with_its_alert_and_its_default() -> None:
    page = (ROOT / "docs/thresholds.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+)` \| (\w+) \| ([\d.]+) \|", page, re.MULTILINE)
    documented = {name: (alert, float(default)) for name, alert, default in rows}
    assert documented == {name: (each["alert"], each["default"]) for name, each in THRESHOLDS.items()}


def test_the_documented_jsonnet_gives_files_that_prometheus_and_grafana_load(tmp_path: Path) -> None:
    """As jsonnet-bundler lays the folder `ops` under `vendor`."""
    (snippet,) = re.findall(r"cat > keypulse\.jsonnet <<'END'\n(.*?)END\n", DOCUMENT.read_text(), re.DOTALL)
    vendor = tmp_path / "github.com/acme/keypulse"
    vendor.mkdir(parents=True)
    (vendor / "ops").symlink_to(PROMETHEUS.parent)
    files = json.loads(_gojsonnet.evaluate_snippet("keypulse.jsonnet", snippet, jpathdir=[str(tmp_path)]))
    assert files.keys() == {"keypulse-alerts.json", *render()["grafanaDashboards"]}
    (tmp_path / "keypulse-alerts.json").write_text(json.dumps(files["keypulse-alerts.json"]))
    answer = promtool("check", "rules", tmp_path / "keypulse-alerts.json")
    assert answer.returncode == 0, answer.stdout + answer.stderr
    assert "monitoring/keypulse-exporter" in json.dumps(files)


def test_every_field_of_the_config_is_documented() -> None:
    table = DOCUMENT.read_text().partition("| `_config` |")[2].partition("\n\n")[0]
    first_cells = re.findall(r"^\| (.*?) \|", table, re.MULTILINE)
    assert set(re.findall(r"`(\w+)`", " ".join(first_cells))) == set(evaluate("std.objectFields(m._config)"))


@pytest.mark.parametrize(
    ("config", "error"),
    [
        ("thresholds+: {latencySecond: 2}", "no threshold has the name latencySecond"),
        ("disabled: ['KMSHighLatency', 'KMSHigh']", "no alert has the name KMSHigh"),
        ("thresholds+: {latencySeconds: '0.5'}", 'latencySeconds: expected a number over 0, got "0.5"'),
        ("thresholds+: {latencySeconds: -1}", "latencySeconds: expected a number over 0, got -1"),
        ("thresholds+: {errorBurst: 1000000}", "errorBurst: expected at most 999999, got 1000000"),
        ("thresholds+: {probeFailureRatio: 20}", "probeFailureRatio: expected at most 1, got 20"),
        ("thresholds+: {rotationHours: 1.5}", "rotationHours: expected a whole number, got 1.5"),
    ],
)
def test_a_name_that_does_not_exist_and_a_number_that_makes_no_rule_are_errors(config: str, error: str) -> None:
    with pytest.raises(RuntimeError, match=rf"{re.escape(error)}(?!\w)"):
        render(config)
