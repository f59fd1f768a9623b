"""Grafana and Mailpit come from an image registry alone, so a machine without one has only documents to look at.

What a container would find is followed through its mounts, and what others look for in it through compose.yaml's names
and ports. Grafana's settings: https://grafana.com/docs/grafana/latest/administration/provisioning/, Mailpit's ports:
https://mailpit.axllent.org/docs/install/docker/.
"""

import json
import re
from typing import Any

import pytest
import yaml

from tests.tracked_files import ROOT, list_tracked_files

SERVICES: dict[str, dict[str, Any]] = yaml.load((ROOT / "compose.yaml").read_text(), yaml.CSafeLoader)["services"]
GRAFANA, MAILPIT = SERVICES["grafana"], SERVICES["mailpit"]
RELAY = yaml.safe_load((ROOT / "ops/compose/relay.yml").read_text())
PROVISIONING = "/etc/grafana/provisioning"


def with_defaults(text: str) -> str:
    return re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", text)


MOUNTS = {
    target: ROOT / source
    for source, target in (with_defaults(volume).split(":")[:2] for volume in GRAFANA["volumes"])
    if source.startswith("./")
}
"""What Grafana finds where, but for its own volume."""


def published(service: dict[str, Any]) -> dict[int, int]:
    """The port inside, and the one on this machine."""
    ports = (with_defaults(port).split(":") for port in service["ports"])
    return {int(inside): int(host_port) for _, host_port, inside in ports}


def names(profile: str) -> set[str]:
    """By which a container of this profile reaches another."""
    running = {name: each for name, each in SERVICES.items() if profile in each.get("profiles", [profile])}
    aliases = [each["networks"]["default"]["aliases"] for each in running.values() if "networks" in each]
    return {*running, *(name for each in aliases for name in each)}


def test_grafana_finds_the_dashboards_where_its_provider_searches() -> None:
    (file,) = MOUNTS[f"{PROVISIONING}/dashboards"].glob("*.yml")
    (provider,) = yaml.safe_load(file.read_text())["providers"]
    found = [json.loads(file.read_text()) for file in sorted(MOUNTS[provider["options"]["path"]].glob("*.json"))]
    assert [dashboard["uid"] for dashboard in found] == ["kms-crypto-health", "kms-on-call"]


def test_whoever_opens_grafana_may_read_and_there_is_no_other_user() -> None:
    given = GRAFANA["environment"]
    anonymous = {name: given[f"GF_AUTH_{name}"] for name in ("ANONYMOUS_ENABLED", "ANONYMOUS_ORG_ROLE")}
    assert anonymous == {"ANONYMOUS_ENABLED": "true", "ANONYMOUS_ORG_ROLE": "Viewer"}
    assert (given["GF_AUTH_BASIC_ENABLED"], given["GF_AUTH_DISABLE_LOGIN_FORM"]) == ("false", "true")
    assert given["GF_SECURITY_DISABLE_INITIAL_ADMIN_CREATION"] == "true", "or admin's password would be admin"


def test_mail_goes_to_the_port_on_which_mailpit_takes_it_and_is_checked_on_the_other() -> None:
    channels = {f"{each['host']}:{each['port']}" for each in RELAY["channels"].values() if each["kind"] == "email"}
    alertmanager = yaml.safe_load((ROOT / "ops/compose/alertmanager.yml").read_text())["global"]
    assert {*channels, alertmanager["smtp_smarthost"]} == {"mailpit:1025"}
    assert published(MAILPIT).keys() == {8025}
    assert MAILPIT["healthcheck"]["test"] == ["CMD", "/mailpit", "readyz"], "as its image has it"


@pytest.mark.parametrize("profile", ["demo", "postgres", "gcp"])
def test_every_host_that_a_configuration_names_is_a_container(profile: str) -> None:
    configurations = list_tracked_files("ops/compose/*.yml", ":!ops/compose/minimal")
    files = "\n".join(file.read_text() for file in configurations)
    text = re.sub(r"(^|\s)#.*", "", files)
    named = re.findall(r"\b([a-z][a-z-]*):\d{2,5}\b", text) + re.findall(r"(?:host: |names: \[)([a-z-]+)", text)
    assert {"mailpit", "prometheus", "relay", "stand-ins"} <= set(named)
    assert set(named) <= names(profile)
