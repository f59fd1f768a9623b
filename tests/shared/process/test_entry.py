"""Each installed command starts, and says which extra it needs where that is missing."""

import subprocess
import sys
import tomllib

import pytest

from tests.tracked_files import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def start(command: str, *arguments: str, missing: str = "no_package") -> subprocess.CompletedProcess[str]:
    """As its script does, where the package `missing` is not installed."""
    script = f"import sys; sys.argv = {[command, *arguments]}; sys.modules[{missing!r}] = None; "
    script += "from shared.process.entry import main; main()"
    return subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=False)


@pytest.mark.parametrize("command", PROJECT["scripts"])
def test_a_command_without_its_extra_says_which_one_it_needs(command: str) -> None:
    extra = command.removeprefix("keypulse-")
    assert extra in PROJECT["optional-dependencies"]
    answer = start(command, missing="click")
    assert answer.returncode == 1
    assert answer.stderr == (
        f"{command}: the package click is not installed; install the extra `{extra}`, "
        f"in the checkout: pip install '.[{extra}]'\n"
    )


def test_a_command_with_its_extra_starts() -> None:
    answer = start("keypulse-smoke", "--help")
    assert answer.returncode == 0
    assert answer.stdout.startswith("Usage: keypulse-smoke")
