"""The secrets of compose.yaml: made once, for their owner and its group, and never over somebody's own."""

import stat
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from ops.compose import secrets
from tests import processes


def read_all(folder: Path) -> dict[str, str]:
    return {str(file.relative_to(folder)): file.read_text() for file in folder.rglob("*") if file.is_file()}


def test_they_are_made_once_and_readable_by_nobody_else(tmp_path: Path) -> None:
    secrets.create_secrets(tmp_path)
    created = read_all(tmp_path)
    assert created.keys() == {
        "alertmanager/relay_token",
        "backend/admin_token",
        "backend/crypto_admin_token",
        "exporter/admin_token",
        "postgres/postgres_password",
        "relay/admin_token",
        "relay/pagerduty_key",
        "relay/pgpass",
        "relay/relay_token",
        "relay/slack_token",
        "stand-ins/pagerduty_key",
        "stand-ins/slack_token",
    }
    by_name: dict[str, set[str]] = {}
    for file, content in created.items():
        by_name.setdefault(Path(file).name, set()).add(content)
    assert {len(contents) for contents in by_name.values()} == {1}, "one secret is the same for all who know it"
    assert len(set(created.values())) == len(by_name)
    assert created["relay/pgpass"].endswith(f":{created['postgres/postgres_password']}")
    modes = {name: stat.S_IMODE((tmp_path / name).stat().st_mode) for name in created}
    assert modes == {**dict.fromkeys(created, 0o440), "relay/pgpass": 0o400}, "libpq refuses one that others can read"
    assert "already" in secrets.create_secrets(tmp_path)
    assert read_all(tmp_path) == created


def test_a_start_that_was_cut_off_is_made_whole(tmp_path: Path) -> None:
    secrets.create_secrets(tmp_path)
    names = read_all(tmp_path).keys()
    (tmp_path / secrets.LAST_SECRET).unlink()
    (tmp_path / "stand-ins/slack_token").unlink()
    assert "made" in secrets.create_secrets(tmp_path)
    assert read_all(tmp_path).keys() == names


@pytest.mark.parametrize("options", [[], ["--show", "admin_token"]])
def test_a_folder_that_cannot_be_used_is_one_sentence(options: list[str], tmp_path: Path) -> None:
    failed = CliRunner().invoke(secrets.main, [str(tmp_path / "absent"), *options])
    assert failed.exit_code == 1
    assert "No such file or directory; it must belong to user" in failed.stderr
    assert failed.stderr.count("\n") == 1


def test_it_stays_until_it_is_asked_to_end(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "ops.compose.secrets", str(tmp_path), "--stay"]
    with processes.running(command, stdout=subprocess.PIPE, text=True) as staying:
        assert staying.stdout
        assert "made" in staying.stdout.readline()
        with pytest.raises(subprocess.TimeoutExpired):
            staying.wait(0.5)
        assert processes.end(staying) == 0
