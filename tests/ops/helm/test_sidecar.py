"""The exporter beside a service of one's own: ops/helm/examples/sidecar."""

import shutil
from pathlib import Path

import helm_python as helm
import kubernetes_validate
import pytest

from ops.helm import CHART
from ops.helm.lint import lint_chart
from tests.ops.helm.matrix import SIDECAR_EXAMPLE
from tests.ops.helm.rendering import of_kind, pods, rendered


@pytest.fixture
def example(tmp_path: Path) -> Path:
    """The example's chart with its dependency fetched, as `helm dependency build` does."""
    folder = tmp_path / "examples/sidecar"
    shutil.copytree(SIDECAR_EXAMPLE, folder)
    shutil.copytree(CHART, tmp_path / "keypulse")
    (folder / "charts").mkdir()
    helm.package(CHART, destination=folder / "charts")
    return folder


def test_the_exporter_s_container_stands_beside_the_service_s(example: Path) -> None:
    objects = rendered(chart=example, name="ledger")
    ((_, pod),) = pods(objects)
    beside = {container["name"]: container for container in pod["spec"]["containers"]}

    assert set(beside) == {"ledger", "exporter"}
    assert beside["exporter"]["args"] == ["--config=/etc/keypulse/exporter.yml"]
    assert beside["exporter"]["securityContext"]["readOnlyRootFilesystem"] is True
    volumes = {volume["name"]: volume for volume in pod["spec"]["volumes"]}
    assert {mount["name"] for mount in beside["exporter"]["volumeMounts"]} == set(volumes)
    assert volumes["keypulse-config"]["configMap"]["name"] in of_kind("ConfigMap", objects)
    assert "checksum/config" in pod["metadata"]["annotations"]


def test_prometheus_finds_it_by_a_service_of_those_pods(example: Path) -> None:
    objects = rendered(chart=example, name="ledger")
    ((_, pod),) = pods(objects)
    service = of_kind("Service", objects)["ledger-keypulse-exporter"]

    assert service["spec"]["selector"].items() <= pod["metadata"]["labels"].items()
    monitor = of_kind("ServiceMonitor", objects)["ledger-keypulse-exporter"]
    assert monitor["spec"]["selector"]["matchLabels"].items() <= service["metadata"]["labels"].items()


def test_kubernetes_and_helm_take_it_as_it_is(example: Path) -> None:
    assert lint_chart(example) == []
    for each in rendered(chart=example, name="ledger"):
        if not each["apiVersion"].startswith("monitoring.coreos.com/"):
            kubernetes_validate.validate(each, kubernetes_validate.latest_version(), strict=True)


def test_no_policy_is_about_pods_that_are_not_the_chart_s(example: Path) -> None:
    assert of_kind("NetworkPolicy", rendered(chart=example, name="ledger")) == {}
