"""What a configuration names is opened: by a check all of it, by a start what it cannot do without."""

import os
import tempfile
from pathlib import Path

import pytest

from services.relay.config import RelaySettings
from shared.config.errors import ConfigurationError
from shared.process.server import prepare_server
from tests.shared.certificates import Authority, web_yml
from tests.unreadable_files import as_nobody

RELAY = """
database: sqlite:///data/relay.db
environment: demo
auth: {bearer_token_file: token, admin_token_file: admin}
alertmanager: {urls: ["https://alertmanager.example.org"], token_file: alertmanager_token}
channels:
  slack: {kind: slack, channel: "#ops", token_file: slack_token}
  email: {kind: email, host: 127.0.0.1, tls: none, from: a@example.org, to: [b@example.org], username: a, password_file: password}
  pager: {kind: pagerduty, routing_key_file: key}
  hook: {kind: webhook, url_file: hook}
default_channels: [slack]
watchdogs: [{matchers: ['alertname="Watchdog"'], expect_every: 5m, channels: [slack], ping_url_file: ping}]
"""  # noqa: E501
FOREIGN = {
    "alertmanager_token": "alertmanager.token_file",
    "slack_token": "channels.slack.token_file",
    "password": "channels.email.password_file",
    "key": "channels.pager.routing_key_file",
    "hook": "channels.hook.url_file",
    "ping": "watchdogs.0.ping_url_file",
}
SECRETS = {"key": "0123456789abcdef" * 2, "hook": "https://example.org/hook", "ping": "https://example.org/ping"}
OURS = {"token": "auth.bearer_token_file", "admin": "auth.admin_token_file"}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "data").mkdir()
    for name in (*OURS, *FOREIGN):
        (tmp_path / name).touch(mode=0o640)
        (tmp_path / name).write_text(SECRETS.get(name, "a secret of enough length"))
    (tmp_path / "relay.yml").write_text(RELAY)
    return tmp_path / "relay.yml"


def errors(file: Path, *, to_check: bool = True) -> list[str]:
    with pytest.raises(ConfigurationError) as refused:
        prepare_server(RelaySettings, file, None, is_check=to_check)
    return refused.value.lines


def warnings(file: Path, web: Path | None = None, *, to_check: bool = True) -> list[tuple[str, str]]:
    findings = prepare_server(RelaySettings, file, web, is_check=to_check).warnings
    return [(finding.key, finding.sentence) for _, finding in findings]


def test_a_check_opens_every_file_of_a_secret_and_names_each_that_is_missing(file: Path) -> None:
    for name in (*OURS, *FOREIGN):
        (file.parent / name).unlink()
    expected = {f"{file}: {key}: {file.parent / name}: No such file" for name, key in (OURS | FOREIGN).items()}
    found = errors(file)
    assert {line.partition(" or directory; expected a file with ")[0] for line in found} == expected
    assert len(found) == len(expected)


def test_a_start_refuses_without_tokens_of_its_own_and_warns_of_the_others(file: Path) -> None:
    for name in (*OURS, *FOREIGN):
        (file.parent / name).unlink()
    assert {line.split(": ")[1] for line in errors(file, to_check=False)} == set(OURS.values())
    for name in OURS:
        (file.parent / name).write_text("a secret of enough length")
        (file.parent / name).chmod(0o600)
    assert sorted(key for key, _ in warnings(file, to_check=False)) == sorted(FOREIGN.values())


@pytest.mark.parametrize("to_check", [True, False])
@pytest.mark.parametrize("name", OURS)
def test_a_short_token_of_ours_is_an_error_and_a_foreign_one_is_none(name: str, to_check: bool, file: Path) -> None:
    (file.parent / "password").write_text("#short")
    (file.parent / name).write_text("fifteen-letters")
    (line,) = errors(file, to_check=to_check)
    assert line == (
        f"{file}: {OURS[name]}: {file.parent / name}: has a token of less than 16 characters; "
        "expected a file with tokens of at least 16 characters, one a line"
    )


def test_a_check_opens_the_folder_of_a_database_and_its_password_file(file: Path) -> None:
    (file.parent / "data").rmdir()
    assert errors(file) == [
        f"{file}: database: the folder {file.parent}/data does not exist; run: mkdir -p {file.parent}/data"
    ]
    file.write_text(RELAY.replace("sqlite:///data/relay.db", "postgresql://a@127.0.0.1/b?passfile=pgpass"))
    (line,) = errors(file)
    assert line.startswith(f"{file}: database: {file.parent}/pgpass: No such file or directory; expected a file")
    assert warnings(file, to_check=False) == [], "the start looks at it itself"


@pytest.mark.parametrize("to_check", [True, False])
def test_what_others_may_read_is_one_warning(to_check: bool, file: Path) -> None:
    (file.parent / "data" / "relay.db").touch(mode=0o600)
    for name in ("token", "slack_token", "data/relay.db"):
        (file.parent / name).chmod(0o644)
    (file.parent / "admin").chmod(0o660)  # for a group, as a pod with an fsGroup has it
    keys = {"token": "auth.bearer_token_file", "slack_token": "channels.slack.token_file", "data/relay.db": "database"}
    fields = {
        key: f"{file.parent / name}: others may read it (mode 0644); run: chmod o-rwx {file.parent / name}"
        for name, key in keys.items()
    }
    assert sorted(warnings(file, to_check=to_check)) == sorted(fields.items())


def test_the_private_key_of_a_web_yml_is_checked_likewise(file: Path, tmp_path: Path) -> None:
    Authority(tmp_path).sign("server")
    (tmp_path / "server.key").chmod(0o644)
    ((key, sentence),) = warnings(file, web_yml(tmp_path, client_auth_type="NoClientCert"))
    assert (key, "others may read it" in sentence) == ("tls_server_config.key_file", True)


def test_a_database_that_this_user_may_not_write_is_an_error(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    database = file.parent / "data" / "relay.db"
    database.touch(mode=0o400)
    monkeypatch.setattr(os, "access", lambda path, mode: path != database or not mode & os.W_OK)  # as for all but root
    assert errors(file) == [f"{file}: database: {database}: expected a file that this user may read and write"]


def test_what_this_user_may_not_read_is_an_error() -> None:
    with tempfile.TemporaryDirectory() as folder, as_nobody(Path(folder)):
        token = Path(folder, "token")
        token.write_text("a secret of enough length")
        token.chmod(0)
        file = Path(folder, "relay.yml")
        file.write_text(
            "database: sqlite:///relay.db\nauth: {bearer_token_file: token}\n"
            "channels: {log: {kind: log}}\ndefault_channels: [log]\n"
        )
        (line,) = errors(file, to_check=False)
        assert line.startswith(f"{file}: auth.bearer_token_file: {token}: Permission denied; expected a file with")
