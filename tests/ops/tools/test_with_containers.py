"""`ops/tools/with-containers`: a machine that can run none says so in one line, and what fails where one can, fails."""

import shutil
import subprocess
from pathlib import Path

import pytest

WITH_CONTAINERS = Path(__file__).parents[3] / "ops/tools/with-containers"
PROGRAMS = ("bash", "dirname", "env", "grep", "id", "mktemp", "rm", "sed", "tail", "timeout")
PARTS = ("podman-compose", "prometheus", "promtool", "prometheus-alertmanager", "amtool")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A PATH with what the script needs, and a podman that runs whatever it is asked to."""
    for name in PROGRAMS:
        found = shutil.which(name)
        assert found
        (tmp_path / name).symlink_to(found)
    for name in (*PARTS, "podman"):
        program(tmp_path, name, f'echo "{name} $*" >>{tmp_path}/calls')
    return tmp_path


def program(path: Path, name: str, body: str) -> None:
    (path / name).write_text(f"#!/usr/bin/env bash\n{body}\n")
    (path / name).chmod(0o755)


def calls(path: Path) -> str:
    return (path / "calls").read_text() if (path / "calls").exists() else ""


def run(path: Path, command: str = "echo ran", **environment: str) -> subprocess.CompletedProcess[str]:
    given = ["env", "-i", f"PATH={path}", *(f"{name}={value}" for name, value in environment.items())]
    return subprocess.run(
        [*given, WITH_CONTAINERS, "bash", "-c", command], capture_output=True, text=True, timeout=30, check=False
    )


def assert_skipped(done: subprocess.CompletedProcess[str], why: str) -> None:
    assert (done.returncode, done.stdout) == (0, "")
    assert done.stderr.splitlines()[-1] == f"skipped: no container can run here ({why})"
    assert done.stderr.count("skipped") == 1


def test_a_command_runs_where_a_container_does_and_its_end_is_the_end(path: Path) -> None:
    done = run(path, "echo ran; exit 7")
    assert (done.returncode, done.stdout, done.stderr) == (7, "ran\n", "")
    assert "--publish=127.0.0.1::8000 docker.io/library/python:" in calls(path)


def test_a_machine_without_an_engine_and_without_apt_says_so(path: Path) -> None:
    (path / "podman").unlink()
    done = run(path)
    assert_skipped(
        done,
        "missing: podman runc nftables netavark aardvark-dns catatonit; install them (Debian: apt-get install podman "
        "runc nftables netavark aardvark-dns catatonit) so that they are on PATH, then run this again",
    )


def test_base_images_are_made_where_none_is_named(path: Path) -> None:
    program(path, "stand-ins", "echo noise >&2; echo export PYTHON_IMAGE=localhost/mine")
    done = run(path, 'echo "$PYTHON_IMAGE"', STAND_IN_IMAGES=f"{path}/stand-ins")
    assert done.stdout == "localhost/mine\n"
    assert "localhost/mine python3" in calls(path)

    named = run(path, 'echo "$PYTHON_IMAGE"', STAND_IN_IMAGES=f"{path}/nothing", PYTHON_IMAGE="yours")
    assert named.stdout == "yours\n"


def test_a_program_that_is_missing_where_containers_run_is_no_reason_to_skip(path: Path) -> None:
    (path / "promtool").unlink()
    done = run(path)
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.startswith("missing: prometheus; install")
