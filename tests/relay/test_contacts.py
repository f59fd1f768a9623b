"""Contacts in the configuration: what is refused, and where."""

import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from services.relay.config import RelaySettings, is_placeholder
from shared.config.errors import ConfigurationError
from shared.config.settings import load_settings
from tests.fork_server import forked

SHIPPED = Path(__file__).parents[2] / "ops/relay/relay.yml"
PLACEHOLDERS = ["<telephone>", "<>", "", " ", None]


def write_configuration(folder: Path, **keys: Any) -> Path:
    document = {
        "database": "sqlite:///relay.db",
        "auth": {"bearer_token_file": "token"},
        "channels": {"log": {"kind": "log"}},
        "default_channels": ["log"],
        **keys,
    }
    file = folder / "relay.yml"
    file.write_text(yaml.safe_dump(document))
    return file


def list_errors(folder: Path, **keys: Any) -> list[str]:
    with pytest.raises(ConfigurationError) as raised:
        load_settings(RelaySettings, write_configuration(folder, **keys))
    return [line.removeprefix(f"{folder / 'relay.yml'}: ") for line in raised.value.lines]


def relay(file: Path, *arguments: str) -> tuple[int, str]:
    command = [*forked("services.relay"), "--config", str(file), *arguments]
    result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    return result.returncode, result.stderr


@pytest.mark.parametrize("how", PLACEHOLDERS)
def test_a_placeholder_is_an_error_in_production_and_everywhere_else_a_warning(tmp_path: Path, how: str | None) -> None:
    contacts = {"owner": how, "lead": "Ada <ada@ledger.test>"}
    (line,) = list_errors(tmp_path, contacts=contacts)
    assert line.startswith("contacts.owner: a placeholder is not allowed in production; expected ")
    for environment in ("staging", "demo"):
        warnings = load_settings(
            RelaySettings, write_configuration(tmp_path, contacts=contacts, environment=environment)
        ).find_warnings()
        assert [key for key, _ in warnings] == ["contacts.owner"]


def test_check_and_start_refuse_it_and_elsewhere_check_only_names_it(tmp_path: Path) -> None:
    file = write_configuration(tmp_path, contacts={"owner": "<channel>"})
    (tmp_path / "token").touch(mode=0o600)
    (tmp_path / "token").write_text("a-token-of-alertmanager")
    for arguments in (["--check"], []):
        code, output = relay(file, *arguments)
        assert (code, output.count("\n")) == (2, 1)
        assert output.startswith(f"{file}: contacts.owner: a placeholder ")
    code, output = relay(
        write_configuration(tmp_path, contacts={"owner": "<channel>"}, environment="staging"), "--check"
    )
    assert (code, output) == (0, f"{file}: contacts.owner: is a placeholder; production does not allow it\n")


def test_the_shipped_configuration_lacks_nothing_but_contacts_and_addresses(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigurationError) as raised:
        load_settings(RelaySettings, SHIPPED)
    contacts = yaml.safe_load(SHIPPED.read_text(encoding="utf-8"))["contacts"]
    roles = [role for role, address in contacts.items() if is_placeholder(address)]
    assert len(roles) == len(contacts) - 1, "Google's support has one address for everybody"
    lacks = ["links", *(f"contacts.{role}" for role in roles), "channels.email-secops", "channels.email-oncall"]
    assert [line.split(": ")[1] for line in raised.value.lines] == lacks
    monkeypatch.setenv("KEYPULSE_RELAY__ENVIRONMENT", "staging")
    assert len(list(load_settings(RelaySettings, SHIPPED).find_warnings())) == len(roles)


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({"contacts": {"owner": 49301234567}}, "contacts.owner: expected text in quotes, since YAML takes a telephone"),
        ({"contacts": {"owner": ["a"]}}, "contacts.owner: expected text"),
        ({"contacts": {"owner": "x" * 201}}, "contacts.owner: expected text of at most 200 characters"),
        ({"contacts": {"x" * 201: "a"}}, f"contacts.{'x' * 201}.[key]: expected text of at most 200 characters"),
        ({"contacts": {"": "a"}}, "contacts..[key]: expected text that is longer"),
        ({"contacts": {str(n): "a" for n in range(11)}}, "contacts: expected at most 10 entries"),
        ({"contacts": ["a"]}, "contacts: expected a mapping of keys to values"),
        (
            {"contacts": {"owner": "<channel>"}, "environment": "prod"},
            "environment: expected 'production', 'staging' or 'demo', got 'prod'",
        ),
    ],
)
def test_an_error_in_them_is_one_line(tmp_path: Path, keys: dict[str, Any], expected: str) -> None:
    (line,) = list_errors(tmp_path, **keys)
    assert line.startswith(expected)
