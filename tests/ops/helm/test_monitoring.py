"""What Prometheus, Alertmanager and Grafana get. No schema of Kubernetes knows the operator's resources."""

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from ops.helm.values import list_values
from tests.ops.helm.matrix import MATRIX
from tests.ops.helm.rendering import OWN_RUNBOOK, Object, of_kind, rendered

OPS = Path(__file__).parents[3] / "ops"
EXAMPLE_RUNBOOK = "https://github.com/acme/ops/blob/main/docs/KMS_OPERATIONS.md"
# https://github.com/prometheus-operator/prometheus-operator/blob/main/Documentation/api-reference/api.md
ENDPOINT = {"port", "scheme", "interval", "relabelings", "basicAuth", "tlsConfig"}


@pytest.mark.parametrize("part", ["exporter", "relay"])
def test_a_service_monitor_finds_its_service_by_labels_and_by_the_port_s_name(part: str) -> None:
    objects = rendered(MATRIX["everything on"])
    monitor = of_kind("ServiceMonitor", objects)[f"keypulse-{part}"]
    service = of_kind("Service", objects)[f"keypulse-{part}"]

    assert monitor["apiVersion"] == "monitoring.coreos.com/v1"
    assert set(monitor["spec"]) == {"selector", "endpoints"}
    assert monitor["spec"]["selector"]["matchLabels"].items() <= service["metadata"]["labels"].items()
    (endpoint,) = monitor["spec"]["endpoints"]
    assert set(endpoint) <= ENDPOINT
    assert endpoint["port"] in {port["name"] for port in service["spec"]["ports"]}
    assert monitor["metadata"]["labels"]["release"] == "kube-prometheus-stack"


@pytest.mark.parametrize("part", ["exporter", "relay"])
def test_what_is_scraped_has_env_the_job_that_the_rules_select_and_its_own_service_label(
    part: str,
) -> None:
    """As Prometheus would relabel what the operator found."""
    values = MATRIX["everything on"] | {"env": "staging"}
    monitor = of_kind("ServiceMonitor", rendered(values))[f"keypulse-{part}"]
    labels = {"job": "keypulse-exporter-svc", "service": "keypulse-exporter-svc", "namespace": "ops"}

    for rule in monitor["spec"]["endpoints"][0]["relabelings"]:
        if rule.get("action") == "labeldrop":
            labels.pop(rule["regex"])
        else:
            labels[rule["targetLabel"]] = rule["replacement"]

    assert labels == {"job": f"keypulse-{part}", "env": "staging", "namespace": "ops"}
    assert f'job="keypulse-{part}"' in "".join(file.read_text() for file in (OPS / "prometheus/rules").iterdir())


def test_a_part_with_tls_is_scraped_by_https_with_what_the_values_say() -> None:
    credentials = {"basicAuth": {"username": {"name": "web", "key": "user"}}}
    monitored = {"enabled": True, "interval": "20s", "endpoint": credentials}
    values = MATRIX["TLS and users"] | {"serviceMonitor": monitored}

    for monitor in of_kind("ServiceMonitor", rendered(values)).values():
        (endpoint,) = monitor["spec"]["endpoints"]
        assert (endpoint["port"], endpoint["scheme"]) == ("https", "https")
        assert endpoint["basicAuth"] == credentials["basicAuth"]
        assert endpoint["interval"] == "20s"


def test_the_operator_gets_the_groups_of_each_file_of_rules_as_they_are() -> None:
    rules = of_kind("PrometheusRule", rendered(MATRIX["everything on"]))

    assert rules
    assert {name: rule["spec"] for name, rule in rules.items()} == {
        f"keypulse-{file.stem}": yaml.safe_load(file.read_text().replace(EXAMPLE_RUNBOOK, OWN_RUNBOOK))
        for file in (OPS / "prometheus/rules").iterdir()
    }
    assert all(rule["metadata"]["labels"]["release"] == "kube-prometheus-stack" for rule in rules.values())


THRESHOLDS = yaml.safe_load((OPS / "prometheus/thresholds.yml").read_text())


def test_the_thresholds_of_the_values_are_those_of_the_rules_with_the_same_explanations() -> None:
    values = {path.rpartition(".")[2]: (default, comment) for path, default, comment in list_values(_read_values())}
    comments = {path: comment for path, _, comment in list_values((OPS / "prometheus/thresholds.yml").read_text())}
    expected = {
        name: (threshold["default"], f"{threshold['alert']}: {comments[name][0].lower()}{comments[name][1:]}")
        for name, threshold in THRESHOLDS.items()
    }
    assert {name: values.get(name) for name in expected} == expected
    assert yaml.safe_load(_read_values())["prometheusRule"]["thresholds"].keys() == expected.keys()


def _read_values() -> str:
    return (OPS / "helm/keypulse/values.yaml").read_text(encoding="utf-8")


def test_a_threshold_is_set_wherever_the_rules_have_it_and_prometheus_takes_them(tmp_path: Path) -> None:
    numbers = {name: 0.77 if name == "probeFailureRatio" else 401 + n for n, name in enumerate(THRESHOLDS)}
    rules = of_kind("PrometheusRule", rendered({"prometheusRule": {"enabled": True, "thresholds": numbers}}))
    for name, rule in rules.items():
        (tmp_path / f"{name}.yml").write_text(yaml.safe_dump(rule["spec"]))
    subprocess.run(["promtool", "check", "rules", *tmp_path.iterdir()], check=True, capture_output=True)
    text = " ".join(each for rule in rules.values() for each in _list_texts(rule["spec"]))

    for name, threshold in THRESHOLDS.items():
        for place in threshold["places"]:
            for number, count in ((numbers[name], 1), (threshold["default"], 0)):
                assert text.count(" ".join(place.replace("{}", f"{number:g}").split())) == count, place


def _list_texts(node: Any) -> Iterator[str]:
    """The texts of rules, with a blank for each space, since a place may be of two lines."""
    if isinstance(node, dict | list):
        for value in node.values() if isinstance(node, dict) else node:
            yield from _list_texts(value)
    else:
        yield " ".join(str(node).split())


def test_an_alert_that_is_off_is_left_out_alone_and_the_smoke_test_does_not_miss_it() -> None:
    values = MATRIX["everything on"]
    left_out = ["KMSHighLatency", "RelayDeadLetters"]
    changed = rendered(values | {"prometheusRule": {"enabled": True, "disabled": left_out}})

    def list_rules(objects: list[Object]) -> list[Object]:
        rules = of_kind("PrometheusRule", objects).values()
        return [each for rule in rules for group in rule["spec"]["groups"] for each in group["rules"]]

    assert list_rules(changed) == [each for each in list_rules(rendered(values)) if each.get("alert") not in left_out]
    arguments = of_kind("Pod", changed)["keypulse-smoke"]["spec"]["containers"][0]["args"]
    assert [each for each in arguments if "without" in each] == [f"--without-alert={name}" for name in left_out]


def test_the_alerts_and_the_dashboard_lead_to_one_s_own_runbook() -> None:
    values = MATRIX["names of one's own"] | {"prometheusRule": {"enabled": True}}
    objects = rendered(values)

    for rule in of_kind("PrometheusRule", objects).values():
        for alert in (each for group in rule["spec"]["groups"] for each in group["rules"] if "alert" in each):
            assert alert["annotations"]["runbook_url"].startswith("https://wiki.ledger.test/kms#")
    assert EXAMPLE_RUNBOOK not in json.dumps(objects)


def test_the_links_of_both_dashboards_lead_where_the_values_say() -> None:
    urls = {
        "boardUrl": "https://board.ledger.test/",
        "relayUrl": "https://relay.ledger.test/",
        "prometheusUrl": "https://p.ledger.test",
    }
    data = of_kind("ConfigMap", rendered({"dashboard": urls}))["keypulse-dashboard"]["data"]

    assert set(data) == {"kms-health.json", "kms-on-call.json"}
    for text in data.values():
        assert "127.0.0.1" not in text
        constants = {
            each["name"]: each["query"] for each in json.loads(text)["templating"]["list"] if each["type"] == "constant"
        }
        assert set(urls.values()) <= set(constants.values())


def _snippet(values: dict[str, Any] | None = None) -> Object:
    text = of_kind("ConfigMap", rendered(values))["keypulse-alertmanager-snippet"]["data"]["alertmanager.yml"]
    return dict(yaml.safe_load(text))


def test_alertmanager_takes_the_snippet_and_sends_to_the_relay_s_service(tmp_path: Path) -> None:
    snippet = _snippet()
    (tmp_path / "alertmanager.yml").write_text(yaml.safe_dump(snippet))

    subprocess.run(["amtool", "check-config", tmp_path / "alertmanager.yml"], check=True, capture_output=True)
    webhooks = [webhook for receiver in snippet["receivers"] for webhook in receiver.get("webhook_configs", [])]
    assert {webhook["url"] for webhook in webhooks} == {"http://keypulse-relay.ops.svc:9912/alerts"}
    assert {webhook["http_config"]["authorization"]["credentials_file"] for webhook in webhooks} == {
        "/etc/alertmanager/secrets/keypulse-alertmanager/relay_token"
    }
    assert snippet["route"] == yaml.safe_load((OPS / "alertmanager/alertmanager.yml").read_text())["route"]
