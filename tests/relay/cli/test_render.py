"""`keypulse-relay render`: what a channel would tell, without sending it and without a secret."""

import html
import json
import shlex
import subprocess
from pathlib import Path

import pytest

from shared.sql.database_url import DatabaseUrl, create_sqlite_url
from tests.fork_server import forked
from tests.relay.cli.conftest import Typed
from tests.relay.served_relay import PAYLOADS

ROOT = Path(__file__).parents[3]


@pytest.fixture
def database(tmp_path: Path) -> DatabaseUrl:
    return create_sqlite_url(tmp_path / "relay.db")


def test_it_prints_what_pagerduty_would_be_sent(typed: Typed, tmp_path: Path) -> None:
    result = typed("render", "--payload", str(PAYLOADS[0]), "--channel", "pager")
    assert (result.exit_code, result.stderr) == (0, "")
    sent = json.loads(result.stdout)
    assert sent["event_action"] == "trigger"
    assert {"href": "https://grafana.example.org/d/kms?var-env=production", "text": "Dashboard"} in sent["links"]
    assert not (tmp_path / "relay.db").exists()


def test_it_prints_the_text_of_the_team(typed: Typed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "summary.j2").write_text("{{ severity }} for {{ alert.labels.service }}")
    monkeypatch.setenv("KEYPULSE_RELAY__MESSAGES__TEMPLATES", str(tmp_path))
    assert "critical for backend" in typed("render", "--payload", str(PAYLOADS[0]), "--channel", "slack").stdout
    (tmp_path / "title.j2").write_text("{{ severity }")
    check = typed("--check").stderr
    assert f"messages.templates: {tmp_path}/title.j2: line 1: unexpected '}}'" in check


def test_it_prints_the_steps_of_the_runbook(typed: Typed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "runbook.md").write_text("# KMSCryptoModeNotKMS\n\nLook at the board first: $EXPORTER/?q=$SERVICE")
    monkeypatch.setenv("KEYPULSE_RELAY__MESSAGES__RUNBOOK", "runbook.md")  # beside the configuration
    result = typed("render", "--payload", str(PAYLOADS[0]), "--channel", "slack")
    assert "Look at the board first: $EXPORTER/?q=backend" in result.stdout
    monkeypatch.setenv("KEYPULSE_RELAY__MESSAGES__BOARD_URL", "https://board.internal:9911")
    result = typed("render", "--payload", str(PAYLOADS[0]), "--channel", "slack")
    assert "Look at the board first: https://board.internal:9911/?q=backend" in result.stdout
    monkeypatch.setenv("KEYPULSE_RELAY__MESSAGES__RUNBOOK", "https://user@runbooks.internal/x.md")
    assert "messages.runbook: expected a URL such as https://HOST" in typed("--check").stderr


def test_the_first_example_of_its_help_works_when_it_is_typed_in_a_checkout() -> None:
    def typed_there(*arguments: str) -> str:
        command = [*forked("services.relay"), *arguments]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=60).stdout

    example = next(
        line for line in typed_there("render", "--help").splitlines() if line.strip().startswith("keypulse-relay ")
    )
    _, *arguments = shlex.split(example)
    sent = json.loads(typed_there(*arguments))
    assert sent["event_action"] == "trigger"
    assert sent["payload"]["custom_details"]["escalate_to"]["service owner"] == "#ledger-team"


def test_what_is_no_webhook_exits_with_2_and_says_where(typed: Typed, tmp_path: Path) -> None:
    result = typed("render", "--payload", "-", "--channel", "pager", stdin=b'{"version": "3"}')
    assert result.exit_code == 2
    assert result.stderr.startswith("--payload: expected a webhook of Alertmanager: version: ")
    assert result.stderr.count("\n") == 1


def test_a_file_that_cannot_be_read_exits_with_2(typed: Typed, tmp_path: Path) -> None:
    missing = tmp_path / "missing.json"
    result = typed("render", "--payload", str(missing), "--channel", "pager")
    assert result.exit_code == 2
    assert result.stderr == f"--payload: it cannot be read: No such file or directory, got '{missing}'\n"


@pytest.mark.parametrize("channel", ["pager", "slack", "mail", "log"])
def test_a_person_sees_what_is_wrong_in_a_terminal_and_on_a_page(typed: Typed, channel: str) -> None:
    arguments = ("render", "--payload", str(PAYLOADS[10]), "--channel", channel)
    pretty = typed(*arguments, "--format", "pretty").stdout
    page = typed(*arguments, "--format", "html").stdout
    for text in (pretty, html.unescape(page)):
        assert "KMSDecryptionErrorsBurst" in text
        assert "бекенд-é-漢字:8000" in text
        assert "\\u" not in text
    assert page.lstrip().startswith("<!doctype html>")
