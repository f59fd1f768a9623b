"""compose.yaml as it is written: what each profile brings up, and that nothing of it can do more than it must."""

import re
from pathlib import Path
from typing import Any

import click
import pytest
import yaml
from click.testing import CliRunner

from ops.compose.build import build_files
from ops.compose.secrets import SECRETS_BY_CONTAINER
from services.exporter.__main__ import main as exporter
from services.relay.__main__ import main as relay
from tests.ops.container_mounts import mounted

ROOT = Path(__file__).parents[3]
TEXT = (ROOT / "compose.yaml").read_text(encoding="utf-8")
FILE: dict[str, Any] = yaml.load(TEXT, yaml.CSafeLoader)
SERVICES: dict[str, dict[str, Any]] = FILE["services"]
DEMO = {"alertmanager", "backend", "emulator", "exporter", "grafana", "mailpit", "prometheus", "secrets", "stand-ins"}


def running(profile: str) -> set[str]:
    return {name for name, service in SERVICES.items() if profile in service.get("profiles", [profile])}


@pytest.mark.parametrize(
    ("profile", "expected"),
    [
        ("demo", DEMO | {"relay"}),
        ("postgres", DEMO | {"postgres", "relay-1", "relay-2"}),
        ("gcp", DEMO - {"emulator", "backend", "exporter"} | {"backend-gcp", "exporter-gcp", "relay"}),
        ("minimal", {"exporter-gcp", "relay", "secrets"}),
    ],
)
def test_each_profile_is_whole(profile: str, expected: set[str]) -> None:
    services = running(profile)
    assert services == expected
    missing = {name: set(SERVICES[name].get("depends_on", {})) - services for name in services}
    assert {name: names for name, names in missing.items() if names} == {}


def test_the_names_and_ports_are_those_of_the_document_on_networks() -> None:
    document = (ROOT / "docs/NETWORKS.md").read_text(encoding="utf-8").partition("## Names in compose.yaml")[2]
    documented: dict[str, tuple[str, set[tuple[str, ...]]]] = {}
    for alias, services, _, ports in re.findall(
        r"^\| `([\w-]+)` \| (.*?) \| (.*?) \| (.*?) \|$", document, re.MULTILINE
    ):
        for service in re.findall(r"[\w-]+", services):
            documented[service] = (alias, set(re.findall(r"`(\w+)` (\d+)", ports)))
    for row in re.findall(r"^\| `[\w-]+` \| .*? \| (.*?) \| (.*?) \|$", document, re.MULTILINE):
        assert len(row[0].split(", ")) == len(row[1].split(", ")), "each port there has one on this machine"
    published = {
        name: (
            service.get("networks", {}).get("default", {}).get("aliases", [name])[0],
            {re.findall(r"\{(\w+):-(\d+)\}", port)[0] for port in service["ports"]},
        )
        for name, service in SERVICES.items()
        if "ports" in service
    }
    assert documented == published


@pytest.mark.parametrize("name", SERVICES)
def test_no_service_can_do_more_than_it_must(name: str) -> None:
    service = SERVICES[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert {"mem_limit", "cpus", "pids_limit"} <= service.keys()
    assert all(port.startswith("127.0.0.1:") for port in service.get("ports", []))
    assert not service.get("cap_add") or name == "postgres"
    assert "privileged" not in service


@pytest.mark.parametrize("name", SERVICES)
def test_each_service_says_whether_it_is_healthy_and_waits_for_what_it_needs(name: str) -> None:
    assert SERVICES[name]["healthcheck"]["test"][0] == "CMD", "without a shell"
    waits = [wait["condition"] for wait in SERVICES[name].get("depends_on", {}).values()]
    assert set(waits) <= {"service_healthy"}, "podman starts nothing again whose dependency is over"
    assert SERVICES[name]["restart"] == "unless-stopped"


def test_what_is_given_is_read_only_but_for_whoever_makes_the_secrets() -> None:
    given = {
        (name, volume)
        for name, service in SERVICES.items()
        for volume in service.get("volumes", [])
        if volume.startswith((".", "${"))
    }
    assert {name for name, volume in given if not volume.endswith(":ro")} == {"secrets"}
    assert SERVICES["secrets"]["network_mode"] == "none"


@pytest.mark.parametrize("name", SERVICES)
def test_each_container_has_the_secrets_that_it_reads_and_no_other(name: str) -> None:
    service = SERVICES[name]
    given = [volume for volume in service.get("volumes", []) if "KEYPULSE_SECRETS" in volume]
    if name == "secrets":
        created = {f"${{KEYPULSE_SECRETS:-secrets-}}{each}:/srv/secrets/{each}" for each in SECRETS_BY_CONTAINER}
        assert set(given) == created
        return
    container = next((each for each in SECRETS_BY_CONTAINER if name.startswith(each)), None)
    configurations = [ROOT / f"ops/compose/{container}.yml", ROOT / f"ops/compose/minimal/{container}.yml"]
    texts = [file.read_text(encoding="utf-8") for file in configurations if file.exists()]
    text = re.sub(r"(?m)^\s*#.*", "", "\n".join([yaml.safe_dump(service), *texts]))
    read = set(re.findall(r"/run/secrets/(\w+)", text))
    if container is None:
        assert (given, read) == ([], set())
        return
    assert given == [f"${{KEYPULSE_SECRETS:-secrets-}}{container}:/run/secrets:ro"]
    assert read == set(SECRETS_BY_CONTAINER[container]) - ({"pgpass"} if name == "relay" else set())
    assert f"secrets-{container}" in FILE["volumes"]


def test_the_token_that_rotates_keys_opens_no_page() -> None:
    backend = yaml.safe_load((ROOT / "ops/compose/backend.yml").read_text(encoding="utf-8"))
    pages = {backend["auth"]["admin_token_file"]}
    for name in ("exporter", "relay"):
        pages.add(yaml.safe_load((ROOT / f"ops/compose/{name}.yml").read_text())["auth"]["admin_token_file"])
    assert backend["admin"]["token_file"] not in pages
    owners = [each for each, names in SECRETS_BY_CONTAINER.items() if "crypto_admin_token" in names]
    assert owners == ["backend"]


def test_no_secret_stands_in_the_file() -> None:
    given = [(key, value) for service in SERVICES.values() for key, value in service.get("environment", {}).items()]
    secret = [(key, value) for key, value in given if re.search("PASSWORD|TOKEN|CREDENTIALS", key)]
    assert secret
    assert [key for key, value in secret if not value.startswith("/run/")] == []


def test_each_variable_has_one_default() -> None:
    found: dict[str, set[str]] = {}
    for name, default in re.findall(r"\$\{([A-Z0-9_]+):-([^}]*)\}", TEXT):
        found.setdefault(name, set()).add(default)
    assert {name: defaults for name, defaults in found.items() if len(defaults) > 1} == {}
    assert re.findall(r"\$\{[A-Z0-9_]+\}", TEXT) == []


@pytest.mark.parametrize(("name", "command"), [("exporter", exporter), ("relay", relay)])
def test_the_minimal_profile_has_configurations_that_name_nobody_who_is_not_there(
    name: str, command: click.Command, tmp_path: Path
) -> None:
    file = ROOT / f"ops/compose/minimal/{name}.yml"
    copy = tmp_path / file.name
    copy.write_text(mounted(file.read_text(encoding="utf-8"), tmp_path), encoding="utf-8")
    key = "projects/acme-prod/locations/global/keyRings/app/cryptoKeys/ledger"
    targets = f'[{{"name": "ledger-kek", "canary_dir": "{tmp_path}", "key": "{key}"}}]'
    given = {
        "exporter": {"KEYPULSE_EXPORTER__TARGETS": targets},
        "relay": {"KEYPULSE_RELAY__DATABASE": f"sqlite:///{tmp_path}/relay.db"},
    }
    checked = CliRunner().invoke(command, ["--config", str(copy), "--check"], env=given[name])

    assert (checked.exit_code, checked.stdout) == (0, "the configuration is valid\n"), checked.stderr
    content = re.sub(r"(^|\s)#.*", "", file.read_text(encoding="utf-8"))
    assert set(re.findall(r"[\w.-]+:\d{2,5}\b", content)) == {f"0.0.0.0:{PORTS[name]}"}


PORTS = {"exporter": 9911, "relay": 9912}


@pytest.mark.parametrize("file", build_files(), ids=lambda file: file.name)
def test_the_files_of_the_containers_are_those_of_production(file: Path) -> None:
    assert file.read_text(encoding="utf-8") == build_files()[file], "run: python -m ops.compose.build"


def test_no_container_expects_another_at_its_own_loopback() -> None:
    for file in build_files():
        assert "127.0.0.1" not in file.read_text(encoding="utf-8")
