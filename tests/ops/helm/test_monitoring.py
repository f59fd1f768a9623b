"""What Prometheus, Alertmanager and Grafana get. No schema of Kubernetes knows the operator's resources."""

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

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


def test_the_alerts_and_the_dashboard_lead_to_one_s_own_runbook() -> None:
    values = MATRIX["names of one's own"] | {"prometheusRule": {"enabled": True}}
    objects = rendered(values)

    for rule in of_kind("PrometheusRule", objects).values():
        for alert in (each for group in rule["spec"]["groups"] for each in group["rules"] if "alert" in each):
            assert alert["annotations"]["runbook_url"].startswith("https://wiki.ledger.test/kms#")
    assert EXAMPLE_RUNBOOK not in json.dumps(objects)


def test_the_dashboard_s_links_lead_where_the_values_say() -> None:
    urls = {
        "boardUrl": "https://board.ledger.test/",
        "relayUrl": "https://relay.ledger.test/",
        "prometheusUrl": "https://p.ledger.test",
    }
    text = of_kind("ConfigMap", rendered({"dashboard": urls}))["keypulse-dashboard"]["data"]["kms-health.json"]

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
