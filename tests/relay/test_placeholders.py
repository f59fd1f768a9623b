"""An address of an example is an error in production: nobody would read the runbook, or get the mail."""

import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from services.relay.config import RelaySettings, is_placeholder
from shared.config.errors import ConfigurationError
from shared.config.settings import is_placeholder_host, is_placeholder_mailbox, is_placeholder_url, load_settings
from tests.fork_server import forked

SHIPPED = Path(__file__).parents[2] / "ops/relay/relay.yml"
MAIL = {"kind": "email", "host": "smtp.ledger.test", "from": "keypulse <a@ledger.test>", "to": ["b@ledger.test"]}


def load(folder: Path, **keys: Any) -> RelaySettings:
    document = {
        "auth": {"bearer_token_file": "token"},
        "channels": {"one": {"kind": "log"}},
        "default_channels": ["one"],
        **keys,
    }
    (folder / "relay.yml").write_text(yaml.safe_dump(document))
    return load_settings(RelaySettings, folder / "relay.yml")


@pytest.mark.parametrize(
    ("keys", "key"),
    [
        ({"links": {"runbook": "https://github.com/acme/ops/blob/main/KMS.md#{alertname_lower}"}}, "links: runbook"),
        ({"links": {"dashboard": "https://grafana.example.org/d/kms"}}, "links: dashboard"),
        ({"messages": {"board_url": "https://board.example.com:9911"}}, "messages: board_url"),
        (
            {"links": {"runbook": "https://example.org/{a}", "dashboard": "https://example.org/{b}"}},
            "links: runbook, dashboard",
        ),
        ({"alertmanager": {"urls": ["http://alertmanager.example.org:9093"]}}, "alertmanager: urls"),
        ({"channels": {"one": {**MAIL, "host": "smtp.example.org"}}}, "channels.one: host"),
        ({"channels": {"one": {**MAIL, "from": "keypulse <alerts@example.org>"}}}, "channels.one: from"),
        ({"channels": {"one": {**MAIL, "to": ["b@ledger.test", "secops@example.net"]}}}, "channels.one: to"),
    ],
)
def test_a_placeholder_is_an_error_in_production_alone(tmp_path: Path, keys: dict[str, Any], key: str) -> None:
    with pytest.raises(ConfigurationError) as raised:
        load(tmp_path, **keys)
    expected = f"{key}: a placeholder is not allowed in production; expected an address of your own"
    assert [line.partition("relay.yml: ")[2] for line in raised.value.lines] == [expected]
    for environment in ("staging", "demo"):
        assert load(tmp_path, environment=environment, **keys)


@pytest.mark.parametrize(
    "address",
    [
        *("<telephone>", "<>", "", " ", None),
        *("secops@example.org", "Ada <ada@example.com>", "https://wiki.example.net/on-call"),
    ],
)
def test_a_contact_at_a_placeholder_is_an_error_in_production(tmp_path: Path, address: str | None) -> None:
    contacts = {"owner": address, "lead": "Ada <ada@ledger.test>"}
    with pytest.raises(
        ConfigurationError, match=r"contacts\.owner: a placeholder is not allowed in production; expected "
    ):
        load(tmp_path, contacts=contacts)
    for environment in ("staging", "demo"):
        warnings = load(tmp_path, environment=environment, contacts=contacts).find_warnings()
        assert [key for key, _ in warnings] == ["contacts.owner"]


def test_check_and_start_refuse_it_and_elsewhere_check_only_names_it(tmp_path: Path) -> None:
    def relay(*arguments: str) -> tuple[int, str]:
        command = [*forked("services.relay"), "--config", str(file), *arguments]
        result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
        return result.returncode, result.stderr

    file = tmp_path / "relay.yml"
    (tmp_path / "token").touch(mode=0o600)
    (tmp_path / "token").write_text("a-token-of-alertmanager")
    contacts = {"owner": "<channel>"}
    with pytest.raises(ConfigurationError):
        load(tmp_path, contacts=contacts)
    for arguments in (["--check"], []):
        code, output = relay(*arguments)
        assert (code, output.count("\n")) == (2, 1)
        assert output.startswith(f"{file}: contacts.owner: a placeholder ")
    load(tmp_path, contacts=contacts, environment="staging", database="sqlite:///relay.db")
    assert relay("--check") == (0, f"{file}: contacts.owner: is a placeholder; production does not allow it\n")


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


@pytest.mark.parametrize("host", ["example.org", "EXAMPLE.com.", "smtp.example.net", "kms.example", "api.acme.com"])
def test_a_host_with_a_part_of_an_example_is_a_placeholder(host: str) -> None:
    assert is_placeholder_host(host)
    assert is_placeholder_url(f"https://{host}:8443/x")
    assert is_placeholder_mailbox(f"keypulse <alerts@{host}>")


@pytest.mark.parametrize("host", ["ledger.test", "counterexample.org", "acmecorp.com", "127.0.0.1", "[::1]"])
def test_another_host_is_none(host: str) -> None:
    assert not is_placeholder_host(host)
    assert not is_placeholder_url(f"https://{host}/ops/acme.md")


def test_the_account_at_the_beginning_of_a_path_counts() -> None:
    assert is_placeholder_url("https://github.com/acme/ops/blob/main/KMS.md")
    assert is_placeholder_url("https://github.com/Acme/ops/blob/main/KMS.md")
    assert not is_placeholder_url("https://github.com/ledger/acme")
    assert not is_placeholder_url("https://[half")
