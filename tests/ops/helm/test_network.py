"""Who may reach a pod of the chart, and what it may reach."""

from typing import Any

import pytest

from tests.ops.helm.matrix import DRIVER, KEY, MATRIX
from tests.ops.helm.rendering import Object, of_kind, pods, rendered


def _policy(part: str, values: dict[str, Any]) -> Object:
    return dict(of_kind("NetworkPolicy", rendered(values))[f"keypulse-{part}"]["spec"])


def _reached(policy: Object) -> set[int]:
    """The ports of the rule that names no peers: what the configuration needs."""
    return {port["port"] for rule in policy["egress"] if "to" not in rule for port in rule["ports"]}


@pytest.mark.parametrize("values", MATRIX.values(), ids=MATRIX)
def test_every_pod_is_under_a_policy_of_both_directions_and_nobody_else_is(values: dict[str, Any]) -> None:
    objects = rendered(values)
    policies = of_kind("NetworkPolicy", objects)
    found = dict(pods(objects))

    assert set(policies) == (set() if values.get("networkPolicy", {}).get("enabled") is False else set(found))
    for name, policy in policies.items():
        assert policy["spec"]["policyTypes"] == ["Ingress", "Egress"]
        chosen = policy["spec"]["podSelector"]["matchLabels"]
        assert [other for other, pod in found.items() if chosen.items() <= pod["metadata"]["labels"].items()] == [name]


@pytest.mark.parametrize(
    "values", [*MATRIX.values(), {"networkPolicy": {"prometheus": []}}], ids=[*MATRIX, "no Prometheus"]
)
def test_no_rule_lets_everybody_in(values: dict[str, Any]) -> None:
    """An empty `from` would."""
    for policy in of_kind("NetworkPolicy", rendered(values)).values():
        for rule in policy["spec"]["ingress"]:
            assert rule["from"]
            assert rule["ports"]


def test_prometheus_scrapes_alertmanager_sends_and_nobody_calls_the_rotator() -> None:
    prometheus = [{"podSelector": {"matchLabels": {"app": "prometheus"}}}]
    alertmanager = [{"podSelector": {"matchLabels": {"app": "alertmanager"}}}]
    values = MATRIX["everything on"] | {"networkPolicy": {"prometheus": prometheus, "alertmanager": alertmanager}}

    def callers(part: str) -> list[Object]:
        return [peer for rule in _policy(part, values)["ingress"] for peer in rule["from"]]

    def of(part: str) -> Object:
        labels = {"app.kubernetes.io/name": "keypulse", "app.kubernetes.io/instance": "keypulse"}
        return {"podSelector": {"matchLabels": labels | {"app.kubernetes.io/component": part}}}

    assert callers("exporter") == [*prometheus, of("relay")], "which asks the board for the fault of an incident"
    assert callers("relay") == [*prometheus, *alertmanager, of("smoke")]
    assert callers("backend") == [of("exporter"), of("rotator"), of("smoke")]
    assert callers("rotator") == callers("smoke") == []


def test_the_exporter_reaches_kms_and_the_backends_that_are_not_beside_it() -> None:
    def exporter(**config: Any) -> set[int]:
        return _reached(_policy("exporter", {"exporter": {"config": config}}))

    target = {"name": "a", "key": KEY}
    assert exporter() == set()
    assert exporter(targets=[target]) == {443}
    assert exporter(targets=[target | {"endpoint": "kms.ledger.test:8443"}]) == {8443}
    transit = {
        "name": "b",
        "provider": "transit",
        "address": "https://bao:8200",
        "key": "a",
        "auth": {"token_file": "x"},
    }
    assert exporter(targets=[target, transit]) == {443, 8200}
    assert exporter(targets=[transit | {"address": "https://bao"}]) == {443}
    assert exporter(backends=[{"health_url": "http://127.0.0.1:8000/healthz"}]) == set()
    assert exporter(backends=[{"health_url": "http://localhost:8000/healthz"}]) == set()
    backend = {"health_url": "http://ledger/healthz", "metrics_url": "https://ledger:9000/metrics"}
    assert exporter(backends=[backend]) == {80, 9000}
    assert exporter(targets=[target | {"proxy": "http://proxy:3128"}]) == {443, 3128}
    assert exporter(targets=[target | {"proxy": "none"}]) == {443}


def test_the_relay_reaches_its_channels_its_database_and_alertmanager() -> None:
    def relay(**config: Any) -> set[int]:
        return _reached(_policy("relay", {"relay": {"config": config}}))

    def channel(**settings: Any) -> set[int]:
        return relay(channels={"a": settings})

    mail = {"kind": "email", "host": "smtp.ledger.test", "from": "a@ledger.test", "to": ["b@ledger.test"]}
    assert relay() == set(), "its log needs no way"
    assert channel(kind="slack", channel="#a", token_file="/t") == {443}
    assert channel(kind="pagerduty", routing_key_file="/k") == {443}
    assert channel(kind="pagerduty", routing_key_file="/k", proxy="http://proxy:3128") == {443, 3128}
    assert relay(alertmanager={"urls": ["https://am:9093"], "proxy": "http://proxy:3128"}) == {9093, 3128}
    assert channel(kind="webhook", url="https://hook.ledger.test:8443/x") == {8443}
    assert channel(kind="webhook", url_file="/u") == {443}
    assert channel(**mail) == {587}
    assert channel(**mail, tls="implicit") == {465}
    assert channel(**mail, tls="none", allow_remote_insecure=True) == {25}
    assert channel(**mail, port=2525) == {2525}
    assert relay(database="postgresql://relay@postgres/relay") == {5432}
    assert relay(database="postgresql://relay@postgres:6432/relay") == {6432}
    assert relay(database="postgresql://relay@one:6432,two:6433/relay") == {6432, 6433}
    assert relay(alertmanager={"urls": ["http://alertmanager.monitoring.svc:9093"]}) == {9093}
    watchdog = {"matchers": ['alertname="Watchdog"'], "expect_every": "5m", "channels": ["log"]}
    assert relay(watchdogs=[watchdog | {"ping_url_file": "/p"}]) == {443}


def test_the_relay_reaches_what_its_console_asks() -> None:
    def relay(**config: Any) -> set[int]:
        return _reached(_policy("relay", {"relay": {"config": config}}))

    oidc = {"issuer": "https://login.ledger.test:8443/realms/ops", "client_id": "k", "roles": {"sre": "viewer"}}
    auth = {"public_url": "https://relay.ledger.test", "oidc": oidc | {"client_secret_file": "/s"}}
    prometheus = "http://prometheus.monitoring.svc:9090"
    assert relay(messages={"prometheus_url": prometheus}) == {9090}
    assert relay(messages={"board_url": "http://keypulse-exporter:9911"}) == {9911}
    assert relay(messages={"runbook": "https://wiki.ledger.test/kms.md"}) == {443}
    assert relay(messages={"prometheus_url": prometheus, "proxy": "http://proxy:3128"}) == {9090, 3128}
    assert relay(auth=auth) == {8443}
    assert relay(interactive={"app_token_file": "/a"}) == {443}


def test_the_rotator_reaches_kms_and_its_driver_s_side() -> None:
    def rotator(driver: Object) -> set[int]:
        return _reached(_policy("rotator", {"rotator": {"config": {"driver": driver, "kms": {"key": KEY}}}}))

    assert rotator(DRIVER | {"url": "https://ledger:8443"}) == {443, 8443}
    assert rotator({"kind": "sql", "database": "postgresql://rotator@postgres/ledger"}) == {443, 5432}


def test_the_smoke_test_reaches_what_it_checks() -> None:
    own = {"baseUrl": "https://service.ledger.test", "grafanaUrl": "http://grafana.monitoring.svc"}

    assert _reached(_policy("smoke", MATRIX["everything on"])) == {8000, 9912, 9090, 9093}
    assert _reached(_policy("smoke", {"smokeTest": own})) == {443, 80, 9912}


def test_only_what_asks_kms_reaches_google_s_metadata_server() -> None:
    policies = of_kind("NetworkPolicy", rendered(MATRIX["everything on"]))

    reach = {name for name, policy in policies.items() if "169.254.169.254/32" in str(policy["spec"]["egress"])}
    assert reach == {"keypulse-exporter", "keypulse-rotator", "keypulse-backend"}
    for name in reach:
        blocks = {
            (peer["ipBlock"]["cidr"], port["port"])
            for rule in policies[name]["spec"]["egress"]
            for peer in rule.get("to", [])
            for port in rule["ports"]
            if "ipBlock" in peer
        }
        assert blocks == {("169.254.20.10/32", 53), ("169.254.169.254/32", 80), ("169.254.169.252/32", 988)}


def test_names_are_resolved_where_kubernetes_and_openshift_answer_and_nowhere_else() -> None:
    def namespace(name: str) -> Object:
        return {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": name}}}

    dns = namespace("kube-system") | {"podSelector": {"matchLabels": {"k8s-app": "kube-dns"}}}
    node = {"ipBlock": {"cidr": "169.254.20.10/32"}}
    for policy in of_kind("NetworkPolicy", rendered(MATRIX["everything on"])).values():
        rules = [each for each in policy["spec"]["egress"] if any("protocol" in port for port in each["ports"])]
        assert [(rule["to"], {port["port"] for port in rule["ports"]}) for rule in rules] == [
            ([dns, node], {53}),
            ([namespace("openshift-dns")], {5353}),
        ]
