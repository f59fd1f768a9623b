"""What the chart writes into ConfigMaps: each part takes it as it is, and no secret is in it."""

from pathlib import Path
from typing import Any

import click
import pytest
import yaml
from click.testing import CliRunner

from services.backend.__main__ import main as backend
from services.exporter.__main__ import main as exporter
from services.relay.__main__ import main as relay
from services.rotator.config import RotatorSettings
from shared.config.settings import load_settings
from tests.ops.container_mounts import mounted
from tests.ops.helm.matrix import MATRIX
from tests.ops.helm.rendering import of_kind, pods, rendered

SERVERS: dict[str, click.Command] = {"exporter": exporter, "relay": relay, "backend": backend}


def _configurations(part: str) -> dict[str, str]:
    """All that are different, by the deployment that has them first; an exporter of no targets does not run."""
    found: dict[str, str] = {}
    for name, values in MATRIX.items():
        for each in of_kind("ConfigMap", rendered(values)).values():
            text = each["data"].get(f"{part}.yml")
            if text and "targets: []" not in text and text not in found.values():
                found[name] = text
    return found


@pytest.mark.parametrize("part", SERVERS)
def test_a_server_finds_no_error_in_its_configuration(part: str, tmp_path: Path) -> None:
    configurations = _configurations(part)
    assert len(configurations) > 1

    for name, text in configurations.items():
        (tmp_path / f"{part}.yml").write_text(mounted(text, tmp_path), encoding="utf-8")
        checked = CliRunner().invoke(SERVERS[part], ["--config", str(tmp_path / f"{part}.yml"), "--check"])
        assert (checked.exit_code, checked.stdout) == (0, "the configuration is valid\n"), name
        assert checked.stderr == "", name


def test_the_rotator_takes_its_configuration_once_it_has_a_driver(tmp_path: Path) -> None:
    for text in _configurations("rotator").values():
        if "driver:" not in text:
            continue
        (tmp_path / "rotator.yml").write_text(text, encoding="utf-8")
        assert str(load_settings(RotatorSettings, tmp_path / "rotator.yml").state_dir) == "/var/lib/keypulse/rotator"


def test_a_server_listens_where_its_port_and_its_service_lead() -> None:
    objects = rendered(MATRIX["everything on"])

    for part, port in {"exporter": 9911, "relay": 9912, "backend": 8000}.items():
        text = of_kind("ConfigMap", objects)[f"keypulse-{part}"]["data"][f"{part}.yml"]
        assert f"listen: 0.0.0.0:{port}\n" in text
        pod = dict(pods(objects))[f"keypulse-{part}"]
        assert pod["spec"]["containers"][0]["ports"] == [{"name": part, "containerPort": port}]
        service = of_kind("Service", objects)[f"keypulse-{part}"]["spec"]
        assert service["ports"] == [{"name": "http", "port": port, "targetPort": part}]
        assert service["selector"].items() <= pod["metadata"]["labels"].items()


def test_the_configuration_is_where_the_command_searches_for_it() -> None:
    for name, pod in pods(rendered(MATRIX["TLS and users"])):
        for container in pod["spec"]["containers"]:
            paths = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
            part = name.removeprefix("keypulse-")
            if part in {*SERVERS, "rotator"}:
                assert f"--config={paths['keypulse-config']}/{part}.yml" in container["args"]
            if part in SERVERS:
                assert f"--web.config.file={paths['keypulse-web']}/web.yml" in container["args"]


@pytest.mark.parametrize("values", MATRIX.values(), ids=MATRIX)
def test_secrets_are_only_named_and_never_written(values: dict[str, Any]) -> None:
    objects = rendered(values)

    assert of_kind("Secret", objects) == {}, "they exist, or the chart would know them"
    for each in of_kind("ConfigMap", objects).values():
        for text in each["data"].values():
            assert all("file: " in line or "secret" not in line for line in text.splitlines() if ": /run/" in line)
    for name, pod in pods(objects):
        for container in pod["spec"]["containers"]:
            assert [variable for variable in container.get("env", []) if "valueFrom" in variable] == [], name


def test_templates_of_a_team_stand_beside_the_relays_configuration() -> None:
    text = "{{ severity }}: {{ title }}\n{% if remark %}x{% endif %}\n"
    data = of_kind("ConfigMap", rendered({"relay": {"templates": {"title": text}}}))["keypulse-relay"]["data"]
    assert data["title.j2"] == text
    messages = yaml.safe_load(data["relay.yml"])["messages"]
    assert messages == {"runbook": "/opt/keypulse/docs/KMS_OPERATIONS.md", "templates": "/etc/keypulse"}
    assert "title.j2" not in of_kind("ConfigMap", rendered())["keypulse-relay"]["data"]
