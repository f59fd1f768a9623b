"""The database of a command that cannot be used: exit 1, and one sentence that says what to do."""

from pathlib import Path

import pytest

from shared.sql.database_url import DatabaseUrl, create_sqlite_url
from tests.relay.cli.conftest import Typed

COMMANDS = (
    ["deliveries"],
    ["retry", "--all"],
)


@pytest.fixture
def database(tmp_path: Path) -> DatabaseUrl:
    return create_sqlite_url(tmp_path / "relay.db")


@pytest.mark.parametrize("arguments", COMMANDS, ids=" ".join)
def test_a_missing_database_is_reported_and_not_made(typed: Typed, tmp_path: Path, arguments: list[str]) -> None:
    result = typed(*arguments)
    file = tmp_path / "relay.db"
    assert result.exit_code == 1
    assert result.stderr == f"there is no database {file}; start the relay, or set another `database`\n"
    assert not file.exists()


@pytest.mark.parametrize("arguments", COMMANDS, ids=" ".join)
def test_a_file_that_is_no_database_is_reported(typed: Typed, tmp_path: Path, arguments: list[str]) -> None:
    (tmp_path / "relay.db").write_bytes(b"not a database at all" * 100)
    result = typed(*arguments)
    assert result.exit_code == 1
    assert result.stderr.startswith(f"cannot use the database {tmp_path / 'relay.db'}: ")
    assert result.stderr.count("\n") == 1


def test_a_test_message_is_sent_without_an_outbox_and_says_that_no_audit_has_it(typed: Typed, tmp_path: Path) -> None:
    assert typed("send-test", "--channel", "log").exit_code == 0
    assert not (tmp_path / "relay.db").exists()
    (tmp_path / "relay.db").write_bytes(b"not a database at all" * 100)
    result = typed("send-test", "--channel", "log")
    assert (result.exit_code, "not recorded in the audit: cannot use the database" in result.stderr) == (0, True)


@pytest.mark.parametrize("arguments", COMMANDS, ids=" ".join)
def test_a_server_that_does_not_answer_is_reported_without_its_password(
    typed: Typed, configuration: Path, arguments: list[str]
) -> None:
    text = configuration.read_text().splitlines()
    text = [line for line in text if not line.startswith("database:")]
    configuration.write_text("\n".join([*text, "database: postgresql://relay:hunter2@127.0.0.1:1/relay"]))
    result = typed(*arguments)
    assert result.exit_code == 1
    assert result.stderr.startswith("the outbox cannot be used now, try again: ")
    assert "hunter2" not in result.stderr
