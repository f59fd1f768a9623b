"""What is installed is whole: pages, templates, rules and migrations are no Python, and yet needed."""

import re
import subprocess
import sys
import zipfile
from pathlib import Path

from tests.tracked_files import ROOT, list_tracked_files


def test_the_wheel_contains_every_file_of_the_packages(tmp_path: Path) -> None:
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True, timeout=120)
    (wheel,) = tmp_path.glob("*.whl")
    archive = zipfile.ZipFile(wheel)
    packed = set(archive.namelist())
    files = list_tracked_files("services", "shared", "ops")
    expected = {file.relative_to(ROOT).as_posix() for file in files if file.suffix}
    assert "services/exporter/web/assets/board.html.j2" in expected
    assert sorted(expected - packed) == []

    (metadata,) = (archive.read(name).decode() for name in packed if name.endswith("/METADATA"))
    head, _, readme = metadata.partition("\n\n")
    links = re.findall(r"\]\(([^)\s]+)", readme)
    base = re.search(r"^Project-URL: Repository, (\S+)$", head, re.MULTILINE)
    assert base
    assert "Description-Content-Type: text/markdown" in head
    assert [link for link in links if not link.startswith(("https://", "http://"))] == [], "PyPI has no such file"
    pictures = [link for link in links if link.endswith(".png")]
    assert pictures
    assert all(picture.startswith(f"{base[1]}/raw/v") for picture in pictures)
