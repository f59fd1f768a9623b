"""What a file in the folder of backups may be: one that says less than the journal, with a strange name, no file."""

import json
import os
from pathlib import Path

import pytest

from tests.memory_kms import StoredKey
from tests.rotator.command_line import type_command
from tests.rotator.table.tenants import Tenants


@pytest.fixture
def config(due: Tenants) -> Path:
    """Of a table that was wrapped anew: only its backup may need the former version, `elm`."""
    file = due.configuration()
    assert type_command("run", "--all", "--config", file).exit_code == 0
    return file


@pytest.fixture
def backup(config: Path) -> Path:
    (file,) = (config.parent / "state" / "backups").iterdir()
    return file


def test_a_header_that_says_less_than_the_journal_is_not_believed(
    config: Path, backup: Path, kms_key: StoredKey
) -> None:
    header, _, pages = backup.read_bytes().partition(b"\n")
    assert json.loads(header)["needs"] == ["elm", "oak"]
    less = {**json.loads(header), "needs": ["oak"], "kek": "vault/other"}
    backup.write_bytes(json.dumps(less).encode() + b"\n" + pages)
    ended = type_command("retire", "elm", "--confirm", "elm", "--config", config)
    assert ended.exit_code == 1
    printed = ended.stdout.replace("\\", "")  # of Markdown
    assert f"elm may be needed by the backup {backup}, whose header contradicts the journal" in printed
    assert kms_key.changes == []
    backup.unlink()
    ended = type_command("retire", "elm", "--confirm", "elm", "--confirm-backups", 1, "--config", config)
    assert ended.exit_code == 0, ended.stdout


@pytest.mark.parametrize("as_json", [False, True])
def test_a_name_that_is_no_utf_8_is_shown(config: Path, backup: Path, *, as_json: bool) -> None:
    backup.rename(backup.with_name(os.fsdecode(b"b\xff.backup")))
    options = ["--json"] if as_json else []
    ended = type_command("retire", "elm", "--confirm", "elm", "--confirm-backups", 1, "--config", config, *options)
    assert ended.exit_code == 1
    shown = json.loads(ended.stdout)["summary"] if as_json else ended.stdout
    assert "elm is needed by the backup " in shown
    assert "udcff.backup" in shown


@pytest.mark.parametrize("name", ["fifo", "fifo.backup"])
@pytest.mark.parametrize("command", ["restore-check", "restore"])
def test_what_is_no_file_is_no_backup(config: Path, backup: Path, command: str, name: str) -> None:
    fifo = backup.parent / name
    os.mkfifo(fifo)
    ended = type_command(command, fifo, "--config", config)
    assert (ended.exit_code, f"{fifo} is no file, so it is no backup" in ended.stdout.replace("\\", "")) == (1, True)
