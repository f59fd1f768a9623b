"""The secrets of compose.yaml: made once, for their owner and its group, and never over somebody's own."""

import stat
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from ops.compose import secrets


def test_they_are_made_once_and_readable_by_nobody_else(tmp_path: Path) -> None:
    secrets.create_secrets(tmp_path)
    created = {file.name: file.read_text() for file in tmp_path.iterdir()}
    assert created.keys() == {
        "admin_token",
        "relay_token",
        "slack_token",
        "pagerduty_key",
        "postgres_password",
        "pgpass",
    }
    assert len(set(created.values())) == len(created)
    assert created["pgpass"].endswith(f":{created['postgres_password']}")
    modes = {file.name: stat.S_IMODE(file.stat().st_mode) for file in tmp_path.iterdir()}
    assert modes == {**dict.fromkeys(created, 0o440), "pgpass": 0o400}, "libpq refuses a pgpass that others can read"
    assert "already" in secrets.create_secrets(tmp_path)
    assert {file.name: file.read_text() for file in tmp_path.iterdir()} == created


def test_a_start_that_was_cut_off_is_made_whole(tmp_path: Path) -> None:
    secrets.create_secrets(tmp_path)
    (tmp_path / secrets.LAST_SECRET).unlink()
    (tmp_path / "slack_token").unlink()
    assert "made" in secrets.create_secrets(tmp_path)
    assert {file.name for file in tmp_path.iterdir()} == secrets.generate_secrets().keys()


def test_a_folder_of_ones_own_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "relay_token").write_text("mine\n")
    secrets.create_secrets(tmp_path)
    assert [file.read_text() for file in tmp_path.iterdir()] == ["mine\n"]


def test_one_can_be_shown(tmp_path: Path) -> None:
    secrets.create_secrets(tmp_path)
    result = CliRunner().invoke(secrets.main, [str(tmp_path), "--show", "admin_token"])
    assert (result.exit_code, result.stdout) == (0, (tmp_path / "admin_token").read_text())


@pytest.mark.parametrize("options", [[], ["--show", "admin_token"]])
def test_a_folder_that_cannot_be_used_is_one_sentence(options: list[str], tmp_path: Path) -> None:
    failed = CliRunner().invoke(secrets.main, [str(tmp_path / "absent"), *options])
    assert failed.exit_code == 1
    assert "No such file or directory; it must belong to user" in failed.stderr
    assert failed.stderr.count("\n") == 1


def test_it_stays_until_it_is_asked_to_end(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "ops.compose.secrets", str(tmp_path), "--stay"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as staying:
        assert staying.stdout
        assert "made" in staying.stdout.readline()
        with pytest.raises(subprocess.TimeoutExpired):
            staying.wait(0.5)
        staying.terminate()
        assert staying.wait(15) == 0
