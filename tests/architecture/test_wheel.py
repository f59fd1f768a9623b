"""What is installed is whole: pages, templates, rules and migrations are no Python, and yet needed."""

import subprocess
import sys
import zipfile
from pathlib import Path

from tests.tracked_files import ROOT, list_tracked_files


def test_the_wheel_contains_every_file_of_the_packages(tmp_path: Path) -> None:
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True, timeout=120)
    (wheel,) = tmp_path.glob("*.whl")
    packed = set(zipfile.ZipFile(wheel).namelist())
    files = list_tracked_files("services", "shared", "ops")
    expected = {file.relative_to(ROOT).as_posix() for file in files if file.suffix}
    assert "services/exporter/web/assets/board.html.j2" in expected
    assert sorted(expected - packed) == []
