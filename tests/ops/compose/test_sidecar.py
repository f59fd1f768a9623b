"""ops/compose/sidecar: the exporter beside a service of one's own, hardened as compose.yaml is."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from services.exporter.config import ExporterSettings
from shared.config.settings import load_settings

FOLDER = Path(__file__).parents[3] / "ops/compose/sidecar"
TEXT = (FOLDER / "compose.yaml").read_text(encoding="utf-8")
FILE: dict[str, Any] = yaml.load(TEXT, yaml.CSafeLoader)
SERVICES: dict[str, dict[str, Any]] = FILE["services"]
WHOLE: dict[str, Any] = yaml.load((FOLDER.parents[2] / "compose.yaml").read_text(encoding="utf-8"), yaml.CSafeLoader)


def test_service_and_exporter_share_a_network_that_outlives_them() -> None:
    assert {name: each.get("network_mode") for name, each in SERVICES.items()} == {
        "network": None,
        "ledger": "service:network",
        "exporter": "service:network",
    }
    assert all("ports" not in each for each in SERVICES.values() if "network_mode" in each), "compose would refuse it"
    published = {port.rpartition(":")[2] for port in SERVICES["network"]["ports"]}
    settings = load_settings(ExporterSettings, FOLDER / "exporter.yml")
    (backend,) = settings.backends
    assert published == {str(settings.listen.port), "8000"}
    assert str(backend.health_url) == "http://127.0.0.1:8000/healthz"
    assert str(backend.metrics_url) == "http://127.0.0.1:8000/metrics"


@pytest.mark.parametrize("name", SERVICES)
def test_no_service_can_do_more_than_those_of_compose_yaml(name: str) -> None:
    service = SERVICES[name]
    hardened = {**WHOLE["x-hardened"], "mem_limit": service["mem_limit"]}
    assert service.items() >= hardened.items()
    assert service.keys().isdisjoint({"cap_add", "privileged", "devices", "pid", "user"})
    assert all(port.startswith("127.0.0.1:") for port in service.get("ports", []))
    assert service["image"].startswith("${")
    assert service["healthcheck"]["test"][0] == "CMD", "without a shell"
    assert {each["condition"] for each in service.get("depends_on", {}).values()} <= {"service_healthy"}


def test_its_secrets_are_files_that_are_given_to_those_who_read_them() -> None:
    assert all(re.fullmatch(r"\$\{\w+:-\./[\w.-]+\}", each["file"]) for each in FILE["secrets"].values())
    read = {
        name: set(re.findall(r"/run/secrets/(\w+)", yaml.safe_dump(service) + _configured(service)))
        for name, service in SERVICES.items()
    }
    assert read == {name: set(service.get("secrets", [])) for name, service in SERVICES.items()}


def test_its_secrets_get_into_no_image_and_into_no_commit() -> None:
    """What .dockerignore lets through under `ops` is copied into the wheel, and so into each image."""
    root = FOLDER.parents[2]
    patterns = [line for line in (root / ".dockerignore").read_text().splitlines() if line and line[0] != "#"]
    for each in FILE["secrets"].values():
        file = (FOLDER / each["file"].partition(":-")[2].rstrip("}")).relative_to(root)
        meant = [line for line in patterns if any(p.match(line.lstrip("!")) for p in (file, *file.parents))]
        assert not meant[-1].startswith("!"), "the last line that matches counts"
        assert {file.name, str(file)} & set((root / ".gitignore").read_text().splitlines())


def test_what_is_mounted_from_the_repository_is_there_and_read_only() -> None:
    bound = [each for service in SERVICES.values() for each in service.get("volumes", []) if each.startswith(".")]
    assert len(bound) == 2
    for each in bound:
        source, _, options = each.split(":")
        assert (FOLDER / source).is_file()
        assert options == "ro"


def test_each_variable_has_one_default_and_no_secret_is_one() -> None:
    found = set(re.findall(r"\$\{([A-Z0-9_]+):-([^}]*)\}", TEXT))
    assert len({name for name, _ in found}) == len(found)
    assert re.findall(r"\$\{[A-Z0-9_]+\}", TEXT) == []


def _configured(service: dict[str, Any]) -> str:
    """The files of configuration that the service reads."""
    sources = [each.split(":")[0] for each in service.get("volumes", []) if each.startswith(".")]
    return "".join((FOLDER / source).read_text(encoding="utf-8") for source in sources)
