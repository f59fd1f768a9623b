"""An unpacked archive has the same files as the checkout that it is from."""

import subprocess
from pathlib import Path

from tests.tracked_files import list_tracked_files


def test_an_archive_without_git_has_what_gitignore_does_not_name(tmp_path: Path) -> None:
    (tmp_path / ".gitignore").write_text(".venv/\n")
    for name in ("README.md", "docs/one.md", "docs/two.txt", ".venv/three.md"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    expected = [tmp_path / "README.md", tmp_path / "docs/one.md"]
    assert list_tracked_files("*.md", root=tmp_path) == expected
    for command in (["init", "--quiet"], ["add", "."]):
        subprocess.run(["git", *command], cwd=tmp_path, check=True)
    assert list_tracked_files("*.md", root=tmp_path) == expected
