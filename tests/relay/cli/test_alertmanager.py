"""`keypulse-relay alertmanager --merge FILE`: what is printed, and what is said instead."""

import subprocess
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner

from services.relay.__main__ import main
from shared.sql.database_url import DatabaseUrl, create_sqlite_url
from tests.relay.cli.conftest import Typed

FILE = "# ours\r\nroute: {receiver: ops}\r\nreceivers:\r\n- name: ops\r\n  webhook_configs: [{url: 'http://x'}] # é\r\n"


@pytest.fixture
def database(tmp_path: Path) -> DatabaseUrl:
    return create_sqlite_url(tmp_path / "relay.db")


@pytest.fixture
def existing(tmp_path: Path) -> Path:
    file = tmp_path / "alertmanager.yml"
    file.write_bytes(FILE.encode())
    return file


def test_address_and_token_file_come_from_the_configuration(typed: Typed, existing: Path, tmp_path: Path) -> None:
    result = typed("alertmanager", "--merge", str(existing))
    assert result.exit_code == 0
    assert result.stderr == (
        "keypulse's alerts go to the relay, all others where they went; --all sends those to the relay, too\n"
    )
    (webhook,) = yaml.safe_load(result.stdout)["receivers"][1]["webhook_configs"]
    assert webhook["url"] == "http://127.0.0.1:9912/alerts"
    assert webhook["http_config"]["authorization"]["credentials_file"] == str(tmp_path / "missing")
    assert existing.read_bytes() == FILE.encode()


def test_with_both_as_options_no_configuration_is_required(existing: Path) -> None:
    options = ["--url", "https://relay.example.org/alerts", "--token-file", "/run/token"]
    result = CliRunner().invoke(main, ["alertmanager", "--merge", "-", *options], input=FILE.encode())
    assert result.exit_code == 0
    (webhook,) = yaml.safe_load(result.stdout)["receivers"][1]["webhook_configs"]
    assert webhook["url"] == "https://relay.example.org/alerts"
    assert webhook["http_config"]["authorization"]["credentials_file"] == "/run/token"


def test_its_output_merged_again_is_the_same_to_the_byte(typed: Typed, existing: Path) -> None:
    merged = typed("alertmanager", "--merge", str(existing)).stdout_bytes
    assert merged.startswith(b"# ours\r\nroute: {receiver: ops, ")
    assert merged.count(b"\n") == merged.count(b"\r\n")
    assert typed("alertmanager", "--merge", "-", stdin=merged).stdout_bytes == merged


@pytest.mark.parametrize("has_keypulses", [False, True])
def test_with_all_each_alert_goes_to_the_relay_and_on_to_its_route(
    typed: Typed, tmp_path: Path, *, has_keypulses: bool
) -> None:
    file = tmp_path / "alertmanager.yml"
    file.write_text(
        "route:\n  receiver: ops\n  routes:\n  - {receiver: payments, matchers: ['team=payments']}\n"
        "receivers: [{name: ops, slack_configs: [{api_url: 'http://x', channel: '#x'}]}, {name: payments}]\n"
    )
    if has_keypulses:
        file.write_bytes(typed("alertmanager", "--merge", str(file)).stdout_bytes)
    result = typed("alertmanager", "--merge", str(file), "--all")
    assert result.exit_code == 0
    assert "one that none of them takes goes to the relay alone" in result.stderr
    file.write_bytes(result.stdout_bytes)
    assert typed("alertmanager", "--merge", str(file), "--all").stdout_bytes == result.stdout_bytes
    alerts = ("DiskFull", "DiskFull team=payments", "Watchdog", "RelayDown")
    test = ["amtool", "config", "routes", "test", f"--config.file={file}"]
    assert [
        subprocess.run(
            [*test, *f"alertname={labels}".split()], check=True, capture_output=True, text=True
        ).stdout.strip()
        for labels in alerts
    ] == ["relay", "relay,payments", "relay,watchdog" if has_keypulses else "relay", "ops"]
    assert ("kms" in result.stdout) == has_keypulses


def test_the_options_win_over_the_configuration(typed: Typed, existing: Path) -> None:
    result = typed("alertmanager", "--merge", str(existing), "--url", "http://relay/alerts", "--direct", "ops")
    assert "http://relay/alerts" in result.stdout
    assert "127.0.0.1:9912" not in result.stdout


def test_what_collides_is_one_line_each_and_exits_with_1(typed: Typed, existing: Path) -> None:
    existing.write_text(FILE.replace("\r", "") + "- name: kms-critical\n- name: watchdog\n")
    result = typed("alertmanager", "--merge", str(existing), "--direct", "kms-critical")
    assert (result.exit_code, result.stdout) == (1, "")
    lines = result.stderr.splitlines()
    assert len(lines) == 3
    assert all(line.startswith(f"{existing}: receiver ") for line in lines)


@pytest.mark.parametrize(
    ("content", "error"),
    [
        (b"a: [", "--merge: the file: is not usable YAML: line 1, column 5: "),
        (b"\xff", "--merge: expected UTF-8, got "),
        (b"kind: Secret", "--merge: is a Kubernetes Secret, expected the alertmanager.yaml that it holds, got "),
    ],
)
def test_what_is_no_file_of_alertmanager_exits_with_2(typed: Typed, existing: Path, content: bytes, error: str) -> None:
    existing.write_bytes(content)
    result = typed("alertmanager", "--merge", str(existing))
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith(error)
    assert result.stderr.count("\n") == 1


def test_a_file_that_cannot_be_read_exits_with_2(typed: Typed, tmp_path: Path) -> None:
    result = typed("alertmanager", "--merge", str(tmp_path / "none.yml"))
    assert result.exit_code == 2
    assert result.stderr == f"--merge: it cannot be read: No such file or directory, got '{tmp_path / 'none.yml'}'\n"


def test_where_the_relay_listens_on_every_address_its_url_is_expected(
    typed: Typed, existing: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KEYPULSE_RELAY__LISTEN", "0.0.0.0:9912")
    result = typed("alertmanager", "--merge", str(existing))
    assert result.exit_code == 2
    assert result.stderr.startswith(
        "--url: expected the relay's address as Alertmanager reaches it, because it listens"
    )
    result = typed("alertmanager", "--merge", str(existing), "--url", "relay:9912")
    assert result.exit_code == 2
    assert result.stderr.startswith("--url: expected an http:// or https:// URL")
