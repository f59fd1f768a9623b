"""Images are built once, whatever is tested with them; their sizes stand at the end of the run."""

import os
import subprocess
from pathlib import Path

import pytest

from tests.containers.engine import Engine

ROOT = Path(__file__).parents[2]
_size_lines: list[str] = []


@pytest.fixture(scope="session")
def engine() -> Engine:
    if os.geteuid() != 0:
        pytest.exit("what runs in containers is killed and looked at: sudo -E make test-containers", returncode=2)
    return Engine.found()


@pytest.fixture(scope="session", autouse=True)
def images(engine: Engine) -> None:
    """Builds every target; a build that fails shows its own words."""
    built = subprocess.run([ROOT / "ops/docker/build"], capture_output=True, text=True, timeout=1800, check=False)
    assert built.returncode == 0, built.stderr
    _size_lines.extend(line for line in built.stdout.splitlines() if " MB" in line)


@pytest.fixture(scope="session")
def summary_lines() -> list[str]:
    """What is appended here stands at the end of the run."""
    return _size_lines


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    for line in _size_lines:
        terminalreporter.write_line(line)
