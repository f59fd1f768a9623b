"""What the chart renders, for each deployment of the matrix, is what Kubernetes takes and Pod Security lets run."""

import json
from functools import cache
from typing import Any

import kubernetes_validate
import pytest

from ops.helm import CHART
from ops.helm.lint import lint_chart
from tests.ops.helm.matrix import MATRIX
from tests.ops.helm.rendering import containers, of_kind, pods, rendered

OLDEST = "1.27"  # Chart.yaml's kubeVersion
_OF_OPERATORS = ("monitoring.coreos.com/", "gateway.networking.k8s.io/")
every_deployment = pytest.mark.parametrize("values", MATRIX.values(), ids=MATRIX)


@every_deployment
def test_helm_finds_nothing_to_warn_of(values: dict[str, Any]) -> None:
    assert lint_chart(CHART, values) == []


@pytest.mark.parametrize("version", [OLDEST, kubernetes_validate.latest_version()])
def test_kubernetes_knows_every_field_of_every_object(version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kubernetes_validate.utils, "schema_contents", cache(kubernetes_validate.utils.schema_contents))
    different = {json.dumps(found, sort_keys=True): found for values in MATRIX.values() for found in rendered(values)}
    native = [found for found in different.values() if not found["apiVersion"].startswith(_OF_OPERATORS)]
    assert len(native) > 50

    for found in native:
        kubernetes_validate.validate(found, version, strict=True)


@every_deployment
def test_each_pod_meets_restricted_pod_security(values: dict[str, Any]) -> None:
    for name, pod in pods(rendered(values)):
        spec = pod["spec"]
        assert spec["securityContext"]["runAsNonRoot"] is True, name
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert spec["securityContext"].get("runAsUser") != 0
        assert not {"hostNetwork", "hostPID", "hostIPC"} & set(spec)
        assert all(set(volume) - {"name"} <= _VOLUMES for volume in spec.get("volumes", []))
        for container in containers(pod):
            assert container["securityContext"] == _RESTRICTED
            assert not any("hostPort" in port for port in container.get("ports", []))


_VOLUMES = {"configMap", "secret", "emptyDir", "persistentVolumeClaim"}
_RESTRICTED = {
    "allowPrivilegeEscalation": False,
    "readOnlyRootFilesystem": True,
    "runAsNonRoot": True,
    "capabilities": {"drop": ["ALL"]},
    "seccompProfile": {"type": "RuntimeDefault"},
}


@every_deployment
def test_no_pod_gets_a_token_of_kubernetes(values: dict[str, Any]) -> None:
    objects = rendered(values)

    assert all(pod["spec"]["automountServiceAccountToken"] is False for _, pod in pods(objects))
    assert all(
        account["automountServiceAccountToken"] is False for account in of_kind("ServiceAccount", objects).values()
    )


@every_deployment
def test_what_a_pod_mounts_and_runs_as_exists_in_the_chart_or_is_named_in_its_values(values: dict[str, Any]) -> None:
    objects = rendered(values)
    claims, maps = of_kind("PersistentVolumeClaim", objects), of_kind("ConfigMap", objects)
    accounts = of_kind("ServiceAccount", objects)

    for name, pod in pods(objects):
        volumes = {volume["name"]: volume for volume in pod["spec"]["volumes"]}
        for container in containers(pod):
            assert {mount["name"] for mount in container["volumeMounts"]} <= set(volumes), name
        for volume in volumes.values():
            assert volume.get("configMap", {}).get("name") in {None, *maps}
            assert volume.get("persistentVolumeClaim", {}).get("claimName") in {None, "mine", *claims}
        assert pod["spec"].get("serviceAccountName") in {None, "mine", *accounts}


@every_deployment
def test_every_server_says_when_it_is_alive_and_when_it_is_ready(values: dict[str, Any]) -> None:
    for _, pod in pods(rendered(values)):
        for container in pod["spec"]["containers"]:
            if "ports" not in container:
                continue
            assert container["livenessProbe"]["httpGet"]["path"] == "/-/healthy"
            assert container["startupProbe"]["httpGet"]["path"] == "/-/healthy"
            assert container["readinessProbe"]["httpGet"]["path"] == "/-/ready"
            tls = any(argument.startswith("--web.config.file") for argument in container["args"])
            assert container["livenessProbe"]["httpGet"]["scheme"] == ("HTTPS" if tls else "HTTP")


def test_a_server_may_take_five_minutes_to_start_and_has_longer_to_stop_than_it_needs() -> None:
    for name, pod in pods(rendered(MATRIX["everything on"])):
        container = pod["spec"]["containers"][0]
        assert pod["spec"]["enableServiceLinks"] is False, "variables of other Services are nobody's configuration"
        if "ports" in container:
            startup = container["startupProbe"]
            assert startup["periodSeconds"] * startup["failureThreshold"] >= 300, name
            assert pod["spec"]["terminationGracePeriodSeconds"] > 15, "within which it is gone after SIGTERM"


def test_each_part_has_bounds_of_memory_but_none_of_cpu() -> None:
    for _, pod in pods(rendered(MATRIX["everything on"])):
        for container in containers(pod):
            assert container["resources"]["requests"].keys() == {"cpu", "memory"}
            assert container["resources"]["limits"].keys() == {"memory"}
