"""The units of ops/systemd, as systemd reads them, and their commands, as the parts take them."""

import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.fork_server import forked
from tests.tracked_files import ROOT

UNITS = sorted((ROOT / "ops/systemd").glob("keypulse-*"))
PAGE = (ROOT / "docs/systemd.md").read_text(encoding="utf-8")
PARTS = ("exporter", "relay", "rotator")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A machine with the units, and with what their commands start."""
    units = tmp_path / "etc/systemd/system"
    units.mkdir(parents=True)
    for unit in UNITS:
        shutil.copy(unit, units)
    commands = {command for unit in UNITS for command in re.findall(r"^Exec\w+=(\S+)", unit.read_text(), re.MULTILINE)}
    for command in commands:
        file = tmp_path / command.removeprefix("/")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("#!/bin/sh\n")
        file.chmod(0o755)
    return tmp_path


def analyze(*arguments: str) -> tuple[int, str]:
    done = subprocess.run(["systemd-analyze", *arguments], capture_output=True, text=True, check=False)
    return done.returncode, done.stdout + done.stderr


def test_systemd_takes_each_line_of_each_unit(root: Path) -> None:
    assert len(UNITS) == len(PARTS) + 1
    units = [f"/etc/systemd/system/{unit.name}" for unit in UNITS]
    assert analyze("verify", "--man=no", "--recursive-errors=no", f"--root={root}", *units) == (0, "")


@pytest.mark.parametrize("part", PARTS)
def test_a_service_is_as_confined_as_the_page_says(part: str) -> None:
    (documented,) = re.findall(r"`systemd-analyze security keypulse-relay` says ([\d.]+)", PAGE)
    limit, unit = f"--threshold={float(documented) * 10:.0f}", ROOT / f"ops/systemd/keypulse-{part}.service"
    code, output = analyze("security", "--offline=yes", "--no-pager", limit, str(unit))
    assert (code, f"keypulse-{part}.service: {documented} OK" in output) == (0, True), output


@pytest.mark.parametrize("part", PARTS)
def test_each_command_exists_and_takes_its_options(part: str, tmp_path: Path) -> None:
    """They get as far as to read the configuration, of which there is none."""
    unit = (ROOT / f"ops/systemd/keypulse-{part}.service").read_text()
    assert f"User=keypulse-{part}\n" in unit
    assert f"StateDirectory=keypulse/{part}\n" in unit
    assert f"u keypulse-{part} " in (ROOT / "ops/systemd/keypulse.sysusers").read_text()
    assert f"/var/lib/keypulse/{part}" in PAGE
    started = re.findall(rf"^ExecStart=/opt/keypulse/{part}/bin/keypulse-{part} (.*)$", unit, re.MULTILINE)
    assert len(started) == unit.count("ExecStart=")
    for arguments in started:
        command = [*forked(f"services.{part}"), *shlex.split(arguments.replace("/etc/keypulse", str(tmp_path)))]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert (done.returncode, f"/{part}.yml: cannot be read" in done.stderr) == (2, True), done.stderr
