"""Values that only change one thing: what they make of which object. Kubernetes has no schema of an HTTPRoute here."""

from functools import reduce
from typing import Any

import pytest

from tests.ops.helm.matrix import MATRIX
from tests.ops.helm.rendering import Object, of_kind, pods, render_notes, rendered

INGRESS, GATEWAY = MATRIX["behind an Ingress"], MATRIX["the README's Ingress and Gateway"]
RELAY = ("Deployment", "keypulse-relay", "spec.template.spec")
HOST_IP = {"fieldRef": {"fieldPath": "status.hostIP"}}
BACKEND = {"service": {"name": "keypulse-relay", "port": {"name": "http"}}}
OPTIONS: dict[str, tuple[dict[str, Any], str, str, str, Any]] = {
    "a type of Service": (INGRESS, "Service", "keypulse-exporter", "spec.type", "LoadBalancer"),
    "a Service by itself": ({}, "Service", "keypulse-relay", "spec.type", "ClusterIP"),
    "annotations of a Service": (INGRESS, "Service", "keypulse-exporter", "metadata.annotations", {"a": "b"}),
    "an Ingress's class": (INGRESS, "Ingress", "keypulse-relay", "spec.ingressClassName", "nginx"),
    "the default class": (INGRESS, "Ingress", "keypulse-exporter", "spec.ingressClassName", None),
    "the certificate of an Ingress": (
        *(INGRESS, "Ingress", "keypulse-relay", "spec.tls"),
        [{"hosts": ["tools.ledger.test"], "secretName": "relay-tls"}],
    ),
    "no certificate of an address without TLS": (INGRESS, "Ingress", "keypulse-exporter", "spec.tls", None),
    "the controller's own certificate": (
        {**INGRESS, "relay": {**INGRESS["relay"], "ingress": {"enabled": True}}},
        *("Ingress", "keypulse-relay", "spec.tls"),
        [{"hosts": ["tools.ledger.test"]}],
    ),
    "a path below a host": (
        *(INGRESS, "Ingress", "keypulse-relay", "spec.rules"),
        [
            {
                "host": "tools.ledger.test",
                "http": {"paths": [{"path": "/relay", "pathType": "Prefix", "backend": BACKEND}]},
            }
        ],
    ),
    "annotations of an Ingress": (INGRESS, "Ingress", "keypulse-exporter", "metadata.annotations", {"a": "b"}),
    "the size of a webhook": (
        *(INGRESS, "Ingress", "keypulse-relay", "metadata.annotations"),
        {"nginx.ingress.kubernetes.io/proxy-body-size": "16m"},
    ),
    "an HTTPRoute": (
        *(GATEWAY, "HTTPRoute", "keypulse-relay", "spec"),
        {
            "parentRefs": [{"name": "public", "namespace": "gateways"}],
            "hostnames": ["kms-relay.ledger.test"],
            "rules": [
                {
                    "matches": [{"path": {"type": "PathPrefix", "value": "/"}}],
                    "backendRefs": [{"name": "keypulse-relay", "port": 9912}],
                }
            ],
        },
    ),
    "a label of everything": (INGRESS, "ConfigMap", "keypulse-dashboard", "metadata.labels.team", "security"),
    "a label that an object has itself": (INGRESS, "ServiceMonitor", "keypulse-relay", "metadata.labels.team", "ops"),
    "where a ServiceMonitor stands": (INGRESS, "ServiceMonitor", "keypulse-relay", "metadata.namespace", "monitoring"),
    "where its Service stands": (
        *(INGRESS, "ServiceMonitor", "keypulse-relay", "spec.namespaceSelector"),
        {"matchNames": ["ops"]},
    ),
    "where the rules stand": (INGRESS, "PrometheusRule", "keypulse-kms", "metadata.namespace", "monitoring"),
    "where the dashboard stands": (INGRESS, "ConfigMap", "keypulse-dashboard", "metadata.namespace", "grafana"),
    "a class of priority": (MATRIX["placed by hand"], *RELAY[:2], f"{RELAY[2]}.priorityClassName", "ops"),
    "a label of a pod": (
        *(MATRIX["placed by hand"], *RELAY[:2]),
        *("spec.template.metadata.labels.azure@workload@identity/use", "true"),
    ),
    "a variable of a field": (
        {"relay": {"env": {"A": "b", "HOST_IP": HOST_IP}}},
        *(*RELAY[:2], f"{RELAY[2]}.containers.0.env"),
        [{"name": "A", "value": "b"}, {"name": "HOST_IP", "valueFrom": HOST_IP}],
    ),
}


def _dig(found: Object, path: str) -> Any:
    """What is at a path; `@` stands for a dot of a name. None if there is nothing."""

    def step(value: Any, key: str) -> Any:
        return value[int(key)] if isinstance(value, list) else (value or {}).get(key.replace("@", "."))

    return reduce(step, path.split("."), found)


@pytest.mark.parametrize(("values", "kind", "name", "path", "expected"), OPTIONS.values(), ids=OPTIONS)
def test_a_value_changes_what_its_comment_says(
    values: dict[str, Any], kind: str, name: str, path: str, expected: Any
) -> None:
    assert _dig(of_kind(kind, rendered(values))[name], path) == expected


def test_names_and_labels_follow_the_overrides_and_no_label_of_a_value_is_selected_by() -> None:
    objects = rendered({"nameOverride": "kms", "commonLabels": {"team": "ops"}})
    relay = of_kind("Deployment", objects)["keypulse-kms-relay"]

    assert relay["metadata"]["labels"]["team"] == relay["spec"]["template"]["metadata"]["labels"]["team"] == "ops"
    selected = relay["spec"]["selector"]["matchLabels"]
    assert selected == of_kind("Service", objects)["keypulse-kms-relay"]["spec"]["selector"]
    assert selected["app.kubernetes.io/name"] == "kms"
    assert "team" not in selected


def test_every_container_of_a_part_has_its_further_volumes() -> None:
    for name, pod in pods(rendered(MATRIX["placed by hand"])):
        assert {"name": "ca", "configMap": {"name": "keypulse-exporter"}} in pod["spec"]["volumes"], name
        for container in [*pod["spec"].get("initContainers", []), *pod["spec"]["containers"]]:
            assert {"name": "ca", "mountPath": "/etc/ca", "readOnly": True} in container["volumeMounts"], name


def test_only_a_part_with_an_ingress_or_a_route_is_reached_from_where_the_controller_runs() -> None:
    def reached(values: dict[str, Any]) -> set[str]:
        policies = of_kind("NetworkPolicy", rendered(values))
        return {name for name, policy in policies.items() if "ingress-nginx" in str(policy["spec"]["ingress"])}

    assert reached({}) == set()
    assert reached(INGRESS) == reached(GATEWAY) == {"keypulse-exporter", "keypulse-relay"}
    assert of_kind("Ingress", rendered()) == of_kind("HTTPRoute", rendered()) == {}


def test_relabelling_of_ones_own_comes_after_the_chart_s_and_a_time_limit_is_the_scrape_s() -> None:
    own, dropped = {"targetLabel": "cluster", "replacement": "a"}, {"action": "drop", "regex": "x"}
    values = {"relabelings": [own], "metricRelabelings": [dropped], "scrapeTimeout": "10s"}
    monitors = of_kind("ServiceMonitor", rendered({"serviceMonitor": {"enabled": True, **values}}))

    for monitor in monitors.values():
        (endpoint,) = monitor["spec"]["endpoints"]
        assert len(endpoint["relabelings"]) == 4
        assert endpoint["relabelings"][-1] == own
        assert (endpoint["metricRelabelings"], endpoint["scrapeTimeout"]) == ([dropped], "10s")


def test_dashboard_and_notes_lead_to_the_addresses_that_an_ingress_serves() -> None:
    data = of_kind("ConfigMap", rendered(INGRESS))["keypulse-dashboard"]["data"]["kms-health.json"]

    assert '"http://board.ledger.test/"' in data
    assert '"https://tools.ledger.test/relay/"' in data
    assert "2. The board: http://board.ledger.test/ with the admin token" in render_notes(INGRESS)
    assert "   The console: https://tools.ledger.test/relay/ with the token relay_admin" in render_notes(INGRESS)
