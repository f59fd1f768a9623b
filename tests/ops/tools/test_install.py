"""`ops/tools/install`: what goes wrong on somebody's machine is one sentence."""

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """As much of a checkout as the script looks at."""
    shutil.copytree(ROOT / "ops/tools", tmp_path / "ops/tools")
    (tmp_path / "requirements").mkdir()
    for lock in ("dev", "uv"):
        shutil.copy(ROOT / f"requirements/{lock}.lock", tmp_path / "requirements")
    return tmp_path


def install(checkout: Path, python: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [checkout / "ops/tools/install", python],
        env={"PATH": "/usr/local/bin:/usr/bin:/bin", **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_python_that_is_not_there(checkout: Path) -> None:
    done = install(checkout, "python9")
    assert done.returncode == 2
    assert done.stderr.startswith("there is no 'python9' on PATH; install Python 3.11 or newer")


def test_a_python_that_is_too_old(checkout: Path, tmp_path: Path) -> None:
    old = tmp_path / "python3"
    old.write_text("#!/bin/sh\nexit 1\n")
    old.chmod(0o755)
    done = install(checkout, str(old))
    assert done.returncode == 2
    assert "is older; name another with PYTHON=python3.12" in done.stderr


@pytest.mark.played
def test_no_network_is_one_sentence(checkout: Path) -> None:
    # A port that nobody listens on, and no second try.
    nowhere = {
        "PIP_INDEX_URL": "http://127.0.0.1:1/",
        "PIP_RETRIES": "0",
        "PIP_NO_CACHE_DIR": "1",
        "HOME": str(checkout),
    }
    done = install(checkout, "python3", **nowhere, PIP_CONFIG_FILE="/dev/null")
    assert done.returncode == 1
    lines = done.stderr.splitlines()
    assert lines[0] == "installing into .venv, once; this takes a minute"
    assert len(lines) == 2
    assert lines[1].startswith("could not install the locked requirements (ERROR: ")
    assert lines[1].endswith("; pip needs to reach a package index this once")
