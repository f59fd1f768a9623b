"""Values that are wrong are refused before anything is installed, and the sentence says where and why."""

from typing import Any

import helm_python as helm
import pytest
import yaml

from tests.ops.helm.matrix import KEY, MATRIX, PRODUCTION_EXAMPLE
from tests.ops.helm.rendering import OWN_IMAGES, rendered, texts_as_they_are
from tests.relay.channels.examples import OWN_KINDS

TRANSIT = {
    "name": "a",
    "provider": "transit",
    "address": "https://bao.ledger.test:8200",
    "key": "ledger",
    "auth": {"token_file": "/run/secrets/keypulse/bao_token"},
}
SLACK = {"kind": "slack", "channel": "#ops", "token_file": "/run/secrets/keypulse/slack_token"}
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "a part that is none": ({"exportr": {}}, "at '': additional properties 'exportr' not allowed"),
    "a typo in a part": ({"relay": {"replica": 2}}, "at '/relay': additional properties 'replica' not allowed"),
    "a typo in a volume": (
        {"relay": {"persistence": {"sise": "1Gi"}}},
        "at '/relay/persistence': additional properties 'sise' not allowed",
    ),
    "a typo in resources": (
        {"relay": {"resources": {"limit": {}}}},
        "at '/relay/resources': additional properties 'limit' not allowed",
    ),
    "a typo in the exporter's configuration": (
        {"exporter": {"config": {"targts": []}}},
        "at '/exporter/config': additional properties 'targts' not allowed",
    ),
    "a typo in a target": (
        {"exporter": {"config": {"targets": [{"name": "a", "key": KEY, "canarydir": "/x"}]}}},
        "at '/exporter/config/targets/0': additional properties 'canarydir' not allowed",
    ),
    "a target without its key": (
        {"exporter": {"config": {"targets": [{"name": "a"}]}}},
        "at '/exporter/config/targets/0': missing property 'key'",
    ),
    "a key of another provider's target": (
        {"exporter": {"config": {"targets": [{**TRANSIT, "endpoint": "bao:8200"}]}}},
        "at '/exporter/config/targets/0': additional properties 'endpoint' not allowed",
    ),
    "a backend's key without its server": (
        {"backend": {"config": {"kms": {"provider": "transit", "key": "ledger", "auth": {"token_file": "/x"}}}}},
        "at '/backend/config/kms': missing property 'address'",
    ),
    "a channel of no kind that is known": (
        {"relay": {"config": {"channels": {"a": SLACK | {"kind": "slak"}}}}},
        (
            "at '/relay/config/channels/a/kind': "
            f"value must be one of {', '.join(sorted(repr(kind) for kind in OWN_KINDS if kind != 'slack_webhook'))}"
        ),
    ),
    "a typo in a channel": (
        {"relay": {"config": {"channels": {"a": SLACK | {"mentoin": "here"}}}}},
        "at '/relay/config/channels/a': additional properties 'mentoin' not allowed",
    ),
    "a driver with another's key": (
        {"rotator": {"config": {"driver": {"kind": "command", "argv": ["ssh"], "url": "https://x"}}}},
        "at '/rotator/config/driver': additional properties 'url' not allowed",
    ),
    "an address to listen on": (
        {"relay": {"config": {"listen": "0.0.0.0:80"}}},
        "at '/relay/config': additional properties 'listen' not allowed",
    ),
    "a number that has to be text": ({"image": {"tag": 1.0}}, "at '/image/tag': got number, want string"),
    "text that has to be a truth": (
        {"rotator": {"suspend": "false"}},
        "at '/rotator/suspend': got string, want boolean",
    ),
    "no Secret": ({"relay": {"existingSecret": ""}}, "at '/relay/existingSecret': minLength: got 0, want 1"),
    "root": (
        {"podSecurityContext": {"runAsUser": 0}},
        "at '/podSecurityContext/runAsUser': minimum: got 0, want 1",
    ),
    "an unknown mode": (
        {"exporter": {"mode": "daemonset"}},
        "at '/exporter/mode': value must be one of 'deployment', 'sidecar', 'off'",
    ),
    "no environment": ({"env": ""}, "at '/env': minLength: got 0, want 1"),
    "a rule of a part that is none": (
        {"networkPolicy": {"ingress": {"prometheus": []}}},
        "at '/networkPolicy/ingress': additional properties 'prometheus' not allowed",
    ),
    "relays that share no database": (
        {"relay": {"replicas": 2}},
        "more than 1 replica needs a database that they share; expected relay.config.database to be postgresql://",
    ),
    "a rotation without a driver": (
        {"rotator": {"suspend": False, "config": {"kms": {"key": KEY}}}},
        "rotator.config.driver: required once rotator.suspend is false",
    ),
    "a rotation without a key": (
        {"rotator": {"suspend": False, "config": {"driver": {"kind": "command", "argv": ["ssh"]}}}},
        "rotator.config.kms: required once rotator.suspend is false",
    ),
    "a sidecar of nobody": (
        {"exporter": {"mode": "sidecar"}},
        "exporter.sidecarSelector: with exporter.mode `sidecar`, expected the labels of the pods",
    ),
    "a sidecar that watches nothing": (
        {"exporter": {"mode": "sidecar", "sidecarSelector": {"app": "ledger"}}},
        "exporter.config: nothing to watch; expected targets or backends",
    ),
    "a password in the relay's database": (
        {"relay": {"config": {"database": "postgresql://relay:hunter2@postgres/relay"}}},
        "relay.config: a password would stand in a ConfigMap; expected it in the Secret relay.postgres.existingSecret",
    ),
    "a password in the rotator's database": (
        {"rotator": {"config": {"driver": {"kind": "sql", "database": "postgresql://a:b@postgres/ledger"}}}},
        "rotator.config: a password would stand in a ConfigMap; expected it in the Secret rotator.postgres",
    ),
    "a backend without a key": (
        {"backend": {"enabled": True}},
        "backend.config.kms.key: expected the key's full name, projects/…/cryptoKeys/…",
    ),
    "a test alert that goes nowhere": (
        {"smokeTest": {"testAlert": "warning"}},
        "smokeTest.testAlert: expected smokeTest.alertmanagerUrl, which it is posted to, and relay.enabled",
    ),
    "a test that could read the relay as an admin only": (
        {"smokeTest": {"baseUrl": "http://ledger.ledger.svc:8000"}, "relay": {"config": {"auth": {"tokens": []}}}},
        "relay.config.auth.tokens: expected one of the role viewer, by which `helm test` reads the relay",
    ),
    "another password in the relay's database": (
        {"relay": {"config": {"database": "postgresql://relay@postgres/relay?sslmode=require&password=hunter2"}}},
        "relay.config: a password would stand in a ConfigMap",
    ),
    "a password of a health check": (
        {"exporter": {"config": {"backends": [{"service": "a", "health_url": "https://a:hunter2@ledger/healthz"}]}}},
        "exporter.config: a URL with a secret in it would stand where many may read it; expected the URL without, or",
    ),
    "a token of a link": (
        {"relay": {"config": {"links": {"dashboard": "https://grafana.example.org/d/x?auth_token=hunter2"}}}},
        "relay.config: a URL with a secret in it would stand",
    ),
    "an address that anybody may post to": (
        {
            "relay": {
                "config": {
                    "channels": {"a": {"kind": "webhook", "url": "https://hooks.slack.com/services/T/B/hunter2"}}
                }
            }
        },
        "relay.config: a URL with a secret in it would stand",
    ),
    "a password of a proxy": (
        {"relay": {"env": {"HTTPS_PROXY": "http://a:hunter2@proxy:3128"}}},
        "relay.env: a URL with a secret in it would stand",
    ),
    "a password of the smoke test's address": (
        {"smokeTest": {"baseUrl": "https://a:hunter2@ledger.example.org"}},
        "smokeTest: a URL with a secret in it would stand where many may read it",
    ),
    "TLS by nothing": (
        {"relay": {"web": {"tls": True}}},
        "relay.web.tls: without relay.web.existingSecret, whose web.yml has the TLS, the part would speak none",
    ),
    "a relabelling that would take the place of env": (
        {"serviceMonitor": {"enabled": True, "endpoint": {"relabelings": []}}},
        "at '/serviceMonitor/endpoint': additional properties 'relabelings' not allowed",
    ),
    "a label by which the chart selects": (
        {"commonLabels": {"app.kubernetes.io/name": "x"}},
        "at '/commonLabels/app.kubernetes.io~1name': false schema",
    ),
    "a Service of no type that is known": (
        {"relay": {"service": {"type": "ExternalName"}}},
        "at '/relay/service/type': value must be one of 'ClusterIP', 'NodePort', 'LoadBalancer'",
    ),
    "a namespace that is none": ({"dashboard": {"namespace": "My_ns"}}, "at '/dashboard/namespace': 'My_ns'"),
    "a time limit without its unit": (
        {"serviceMonitor": {"scrapeTimeout": "10"}},
        "at '/serviceMonitor/scrapeTimeout'",
    ),
    "a number as a variable": ({"relay": {"env": {"A": 1}}}, "at '/relay/env/A': got number, want string or object"),
    "a name that is too long for a label": (
        {"nameOverride": "a" * 64},
        "at '/nameOverride': maxLength: got 64, want 63",
    ),
    "an alert that is none": (
        {"prometheusRule": {"disabled": ["KMSTypo"]}},
        "at '/prometheusRule/disabled/0': value must be one of 'KMSExporterAbsent'",
    ),
    "a threshold that is none": (
        {"prometheusRule": {"thresholds": {"latency": 1}}},
        "at '/prometheusRule/thresholds': additional properties 'latency' not allowed",
    ),
    "a threshold in words": (
        {"prometheusRule": {"thresholds": {"latencySeconds": "1s"}}},
        "at '/prometheusRule/thresholds/latencySeconds': got string, want number",
    ),
    "a threshold of nothing": (
        {"prometheusRule": {"thresholds": {"errorBurst": 0}}},
        "at '/prometheusRule/thresholds/errorBurst': exclusiveMinimum: got 0, want 0",
    ),
    "a part that is more than the whole": (
        {"prometheusRule": {"thresholds": {"probeFailureRatio": 20}}},
        "at '/prometheusRule/thresholds/probeFailureRatio': maximum: got 20, want 1",
    ),
    "a number that PromQL takes for no time": (
        {"prometheusRule": {"thresholds": {"rotationHours": 1_000_000}}},
        "at '/prometheusRule/thresholds/rotationHours': maximum: got",
    ),
    "a part of an hour": (
        {"prometheusRule": {"thresholds": {"rotationHours": 1.5}}},
        "at '/prometheusRule/thresholds/rotationHours': got number, want integer",
    ),
    "a volume without its name": (
        {"relay": {"extraVolumes": [{"emptyDir": {}}]}},
        "at '/relay/extraVolumes/0': missing property 'name'",
    ),
    "a label that Kubernetes does not take": (
        {"commonLabels": {"team": "security & ops"}},
        "at '/commonLabels/team': 'security & ops' does not match pattern",
    ),
    "a name of a label that is none": (
        {"relay": {"podLabels": {"the team": "ops"}}},
        "'the team' does not match pattern",
    ),
    "a label that is too long": (
        {"commonLabels": {"team": "a" * 64}},
        "at '/commonLabels/team': maxLength: got 64, want 63",
    ),
    "an Ingress of a host that is none": (
        {"exporter": {"publicUrl": "https://kms..ledger.test", "ingress": {"enabled": True}}},
        "exporter.publicUrl: Ingress and HTTPRoute serve its host and path; expected a name in it",
    ),
    "a path that the relay refuses": (
        {
            "relay": {
                "config": {"auth": {"public_url": "https://tools.ledger.test/a b"}},
                "httpRoute": {"enabled": True, "parentRefs": [{"name": "public"}]},
            }
        },
        "relay.config.auth.public_url: expected a path of letters, digits and -._~ such as /keypulse",
    ),
    "a path that Kubernetes refuses": (
        {"relay": {"config": {"auth": {"public_url": "https://tools.ledger.test//a"}}, "ingress": {"enabled": True}}},
        "relay.config.auth.public_url: expected a path of letters, digits and -._~ such as /keypulse",
    ),
    "an Ingress without an address": (
        {"relay": {"ingress": {"enabled": True}}},
        "relay.config.auth.public_url: Ingress and HTTPRoute serve its host and path; expected a name in it, such as",
    ),
    "an Ingress of an address without a name": (
        {"exporter": {"ingress": {"enabled": True}, "publicUrl": "http://192.0.2.1:8080"}},
        "exporter.publicUrl: Ingress and HTTPRoute serve its host and path; expected a name in it, such as https://exp",
    ),
    "an Ingress of a path that the board does not know": (
        {"exporter": {"ingress": {"enabled": True}, "publicUrl": "https://tools.ledger.test/board"}},
        "exporter.publicUrl: Ingress and HTTPRoute leave its path in, and the board knows none; expected a host of its",
    ),
    "a route without a Gateway": (
        {"exporter": {"httpRoute": {"enabled": True}, "publicUrl": "https://board.ledger.test"}},
        "exporter.httpRoute.parentRefs: empty; expected the Gateway, such as {name: public, namespace: gateways}",
    ),
    "a password in the board's address": (
        {"exporter": {"publicUrl": "https://a:hunter2@board.ledger.test"}},
        "exporter.publicUrl: a URL with a secret in it would stand where many may read it",
    ),
    "an interval without its unit": ({"serviceMonitor": {"interval": "15"}}, "at '/serviceMonitor/interval': '15'"),
    "a runbook that is no address": ({"runbookUrl": "wiki: kms"}, "at '/runbookUrl': 'wiki: kms' does not match"),
    "a board without its slash": (
        {"dashboard": {"boardUrl": "https://board.example"}},
        "at '/dashboard/boardUrl': 'https://board.example' does not match",
    ),
    "a name that YAML would read otherwise": (
        {"relay": {"env": {"A: b": "c"}}},
        "invalid propertyName 'A: b'",
    ),
    "a folder of two words": ({"alertmanager": {"secretsPath": "/a b"}}, "at '/alertmanager/secretsPath': '/a b'"),
    "a name that no Service may have": ({"fullnameOverride": "Key_Pulse"}, "at '/fullnameOverride': 'Key_Pulse'"),
    "a typo in the snippet": (
        {"alertmanager": {"secretPath": "/x"}},
        "at '/alertmanager': additional properties 'secretPath' not allowed",
    ),
}


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        pytest.param(*case, id=name, marks=[pytest.mark.played] * (number % 8 > 0))
        for number, (name, case) in enumerate(REFUSED.items())
    ],
)
def test_it_is_refused(values: dict[str, Any], sentence: str) -> None:
    with pytest.raises(helm.HelmError) as refusal:
        rendered(values)

    assert sentence in str(refusal.value)
    assert "hunter2" not in str(refusal.value)


@pytest.mark.parametrize(
    "url",
    [
        "https://hunter2@alerts.example.org",
        "HTTPS://a:hunter2@alerts.example.org",
        "https://alerts.example.org/?Token=hunter2",
        "https://alerts.example.org/?a=b&sig=hunter2",
        "https://alerts.example.org/?key=hunter2",
        "https://alerts.example.org/?private_token=hunter2",
        "https://alerts.example.org/?X-Amz-Signature=hunter2",
        "https://acme.webhook.office.com/webhookb2/a/IncomingWebhook/hunter2/b",
    ],
)
def test_a_url_with_a_secret_is_refused_however_it_is_written(url: str) -> None:
    with pytest.raises(helm.HelmError) as refusal:
        rendered({"relay": {"config": {"alertmanager": {"urls": [url]}}}})

    assert "relay.config: a URL with a secret in it would stand" in str(refusal.value)
    assert "hunter2" not in str(refusal.value)


REQUIRED = "{}: empty, or a placeholder of an example; expected an address of your own where env is production"


def test_a_chart_without_a_runbook_and_images_of_ones_own_installs_nothing_in_production() -> None:
    with pytest.raises(helm.HelmError) as refusal:
        texts_as_they_are({})
    assert REQUIRED.format("image.repository, runbookUrl") in str(refusal.value)

    texts_as_they_are({"env": "staging"})
    without_dashboard = {"image": {"repository": OWN_IMAGES}, "dashboard": {"enabled": False}}
    texts_as_they_are(without_dashboard)  # nothing leads to a runbook
    with pytest.raises(helm.HelmError, match="runbookUrl: empty, or a placeholder"):
        texts_as_they_are(without_dashboard | {"prometheusRule": {"enabled": True}})


def test_an_empty_repository_is_refused_everywhere_unless_each_part_has_its_image() -> None:
    empty = {"env": "staging", "image": {"repository": ""}}
    with pytest.raises(helm.HelmError, match=r"image\.repository: empty; expected the path in your registry"):
        texts_as_they_are(empty)

    texts_as_they_are(empty | {part: {"image": f"{OWN_IMAGES}/{part}:1"} for part in ("exporter", "relay", "rotator")})


def test_the_values_to_begin_with_are_refused_until_each_placeholder_is_filled_in() -> None:
    with pytest.raises(helm.HelmError) as refusal:
        texts_as_they_are(yaml.safe_load(PRODUCTION_EXAMPLE.read_text(encoding="utf-8")))
    named = str(refusal.value).partition(": empty, or")[0].rpartition(": ")[2].split(", ")
    assert named == [
        "dashboard.boardUrl",
        "dashboard.prometheusUrl",
        "dashboard.relayUrl",
        "exporter.config.runbook_url",
        "image.repository",
        "relay.config.channels.email-oncall.from",
        "relay.config.channels.email-oncall.host",
        "relay.config.channels.email-oncall.to.0",
        "relay.config.channels.email-secops.from",
        "relay.config.channels.email-secops.host",
        "relay.config.channels.email-secops.to.0",
        "relay.config.contacts.cloud platform team",
        "relay.config.contacts.security on call",
        "relay.config.contacts.service owner",
        "relay.config.links.dashboard",
        "relay.config.links.runbook",
        "relay.config.messages.board_url",
        "runbookUrl",
    ]

    texts_as_they_are(MATRIX["the values to begin with"])


@pytest.mark.parametrize(
    ("values", "key"),
    [
        ({"runbookUrl": "https://github.com/ACME/ops"}, "runbookUrl"),
        ({"image": {"repository": "acme/keypulse"}}, "image.repository"),
        ({"relay": {"image": "registry.example.org/relay:1"}}, "relay.image"),
        (
            {"backend": {"image": "registry.example.org/b", "enabled": True, "config": {"kms": {"key": KEY}}}},
            "backend.image",
        ),
        ({"smokeTest": {"baseUrl": "https://ledger.example"}}, "smokeTest.baseUrl"),
        ({"exporter": {"publicUrl": "https://board.example.org"}}, "exporter.publicUrl"),
        (
            {"relay": {"config": {"auth": {"public_url": "https://relay.example.org"}}}},
            "relay.config.auth.public_url",
        ),
        (
            {"relay": {"config": {"alertmanager": {"urls": ["http://alertmanager.example.org:9093"]}}}},
            "relay.config.alertmanager.urls.0",
        ),
        (
            {"exporter": {"config": {"backends": [{"service": "a", "health_url": "http://example.com:80/healthz"}]}}},
            "exporter.config.backends.0.health_url",
        ),
    ],
)
def test_a_placeholder_is_refused_in_production_alone(values: dict[str, Any], key: str) -> None:
    with pytest.raises(helm.HelmError) as refusal:
        rendered(values)

    assert f" {REQUIRED.format(key)}" in str(refusal.value)
    rendered({"env": "demo"} | values)
