"""`ops/tools/require`: what is missing is installed with apt, or named in one sentence."""

import subprocess
from pathlib import Path

import pytest

REQUIRE = Path(__file__).parents[3] / "ops/tools/require"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A PATH with what the script itself needs, and nothing else."""
    for program in ("bash", "env", "id", "mktemp", "rm", "tail"):
        found = subprocess.run(["which", program], capture_output=True, text=True, check=True).stdout.strip()
        (tmp_path / program).symlink_to(found)
    return tmp_path


def program(path: Path, name: str, body: str = "exit 0") -> None:
    (path / name).write_text(f"#!/usr/bin/env bash\n{body}\n")
    (path / name).chmod(0o755)


def require(path: Path, *names: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([REQUIRE, *names], env={"PATH": str(path)}, capture_output=True, text=True, check=False)


def test_programs_that_are_there_are_enough(path: Path) -> None:
    for name in ("prometheus", "promtool", "prometheus-alertmanager", "amtool"):
        program(path, name)
    done = require(path, "prometheus", "alertmanager")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_without_apt_one_sentence_says_what_to_install(path: Path) -> None:
    done = require(path, "prometheus", "alertmanager", "chromium")
    assert done.returncode == 1
    assert done.stderr == (
        "missing: prometheus prometheus-alertmanager chromium; install them (Debian: apt-get install prometheus "
        "prometheus-alertmanager chromium) so that they are on PATH, then run this again\n"
    )


def test_apt_installs_only_what_is_missing(path: Path) -> None:
    calls = path / "calls"
    program(path, "apt-get", f'echo "$@" >>{calls}')
    program(path, "sudo", 'shift; exec "$@"')
    program(path, "true")
    for name in ("prometheus", "promtool"):
        program(path, name)
    done = require(path, "prometheus", "chromium", "node")
    assert done.returncode == 0
    assert calls.read_text().splitlines() == [
        "update -qq",
        "satisfy -y -qq --no-install-recommends chromium-headless-shell | chromium, nodejs",
    ]


def test_an_unknown_program_is_wrong_usage(path: Path) -> None:
    assert require(path, "emacs").returncode == 2
