"""The command line, as a person types it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner

from services.relay.__main__ import main
from tests.fork_server import forked

ROOT = Path(__file__).parents[2]


def relay(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [*forked("services.relay"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)


def configuration(folder: Path) -> str:
    (folder / "token").touch(mode=0o600)
    (folder / "token").write_text("a-token-of-alertmanager")
    document = {
        "database": "sqlite:///relay.db",
        "auth": {"bearer_token_file": "token"},
        "channels": {"log": {"kind": "log"}},
        "default_channels": ["log"],
    }
    (folder / "relay.yml").write_text(yaml.safe_dump(document))
    return str(folder / "relay.yml")


@pytest.mark.parametrize("arguments", [["deliveries"], ["deliveries", "--channel"], ["retry"]])
def test_an_argument_that_is_not_utf_8_exits_with_2_and_one_line(tmp_path: Path, arguments: list[str]) -> None:
    file = configuration(tmp_path)
    result = relay("--config", file, *arguments, os.fsdecode(b"\xff"))
    assert (result.returncode, result.stdout, result.stderr.count("\n")) == (2, "", 1)
    assert "expected UTF-8 without a NUL character" in result.stderr


def test_check_says_that_the_file_is_valid(tmp_path: Path) -> None:
    result = relay("--config", configuration(tmp_path), "--check")
    assert (result.returncode, result.stdout, result.stderr) == (0, "the configuration is valid\n", "")


@pytest.mark.parametrize(
    "command", [[], ["deliveries"], ["retry"], ["mark-restored"], ["render"], ["send-test"], ["doctor"], ["init"]]
)
def test_help_shows_examples_a_line_each(command: list[str]) -> None:
    result = CliRunner().invoke(main, [*command, "--help"])
    assert result.exit_code == 0
    _, _, examples = result.stdout.partition("Example")
    lines = examples.splitlines()[1:]
    assert lines
    assert all("keypulse-relay " in line for line in lines)
    assert "\\b" not in result.stdout


def test_a_relay_imports_nothing_that_is_not_configured() -> None:
    unused = ("apprise", "requests", "joserfc", "authlib", "matplotlib", "psycopg", "rich.table", "services.relay.init")
    program = f"import sys, services.relay.__main__; print([each for each in {unused} if each in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
