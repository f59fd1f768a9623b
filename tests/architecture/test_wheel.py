"""What is installed is whole: pages, templates, rules and migrations are no Python, and yet needed."""

import subprocess
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_wheel_contains_every_file_of_the_packages(tmp_path: Path) -> None:
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True, timeout=120)
    (wheel,) = tmp_path.glob("*.whl")
    packed = set(zipfile.ZipFile(wheel).namelist())
    files = [
        file.relative_to(ROOT) for package in ("services", "shared", "ops") for file in (ROOT / package).rglob("*.*")
    ]
    expected = {file.as_posix() for file in files if "__pycache__" not in file.parts and (ROOT / file).is_file()}
    assert "services/exporter/web/assets/board.html.j2" in expected
    assert sorted(expected - packed) == []
