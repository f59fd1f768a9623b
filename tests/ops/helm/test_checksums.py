"""A pod is made anew when what it was configured with is another, a Secret included. `lookup` asks an API server."""

import base64
import json
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

import helm_python as helm
import pytest
import yaml

from ops.helm import CHART
from tests.ops.helm.matrix import MATRIX
from tests.ops.helm.rendering import pods, rendered, with_own_addresses

Secrets = dict[str, dict[str, str]]


@contextmanager
def _cluster(secrets: Secrets) -> Iterator[str]:
    """What of Kubernetes's API `lookup` needs, over the secrets of the namespace ops."""

    class Api(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            name = self.path.partition("?")[0].removeprefix("/api/v1/namespaces/ops/secrets/")
            answers: dict[str, dict[str, Any]] = {
                "/version": {"major": "1", "minor": "30", "gitVersion": "v1.30.0"},
                "/api": {"kind": "APIVersions", "versions": ["v1"]},
                "/apis": {"kind": "APIGroupList", "apiVersion": "v1", "groups": []},
                "/api/v1": {"kind": "APIResourceList", "groupVersion": "v1", "resources": [_SECRETS]},
            }
            if name in secrets:
                data = {key: base64.b64encode(value.encode()).decode() for key, value in secrets[name].items()}
                about = {"name": name, "namespace": "ops", "uid": f"uid-{name}"}
                answers[name] = {"kind": "Secret", "apiVersion": "v1", "metadata": about, "data": data}
            none = {"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": "NotFound", "code": 404}
            body = json.dumps(answers.get(name, none)).encode()
            self.send_response(200 if name in answers else 404)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *arguments: object) -> None:
            """Nothing, on a test's standard error."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Api) as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


_SECRETS = {"name": "secrets", "singularName": "secret", "kind": "Secret", "namespaced": True, "verbs": ["get"]}


def _sums(secrets: Secrets, values: dict[str, Any]) -> dict[str, str | None]:
    """Each pod's sum of its Secrets, by the name of what makes it."""
    with (
        _cluster(secrets) as url,
        helm.Config(kube_apiserver=url, namespace="ops") as cluster,
        helm.Chart.load(CHART) as chart,
    ):
        texts = cluster.render(chart, with_own_addresses(values), name="keypulse", namespace="ops")
    objects = [
        each
        for name, text in texts.items()
        if name.endswith(".yaml")
        for each in yaml.load_all(text, yaml.CSafeLoader)
        if each
    ]
    return {name: pod["metadata"]["annotations"].get("checksum/secrets") for name, pod in pods(objects)}


@pytest.mark.parametrize("part", ["exporter", "relay"])
def test_another_configuration_is_another_pod_and_only_of_its_part(part: str) -> None:
    def sums(values: dict[str, Any]) -> dict[str, str]:
        return {name: pod["metadata"]["annotations"]["checksum/config"] for name, pod in pods(rendered(values))}

    changes = {"exporter": {"service": "ledger"}, "relay": {"retention": {"max_age": "7d"}}}
    before, after = sums({}), sums({part: {"config": changes[part]}})

    assert {name for name in before if before[name] != after[name]} == {f"keypulse-{part}"}


def test_another_secret_is_another_pod_and_only_of_its_part() -> None:
    values = MATRIX["the README's replicas"]
    secrets = {
        "keypulse-relay": {"relay_token": "a"},
        "keypulse-exporter": {"admin_token": "a"},
        "keypulse-postgres": {"password": "a"},
    }
    before = _sums(secrets, values)

    for name, key in (("keypulse-relay", "slack_token"), ("keypulse-postgres", "password")):
        after = _sums(secrets | {name: {key: "b"}}, values)
        assert {pod for pod in before if before[pod] != after[pod]} == {"keypulse-relay"}
    assert _sums(secrets, values) == before
    assert before["keypulse-rotator"] is None, "its Secret is not there yet"


def test_without_a_cluster_there_is_no_sum_that_would_change_by_itself() -> None:
    assert all("checksum/secrets" not in pod["metadata"].get("annotations", {}) for _, pod in pods(rendered()))
