"""The files that git tracks: what commands of the README leave in a checkout is nobody's document."""

import subprocess
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]


def list_tracked_files(*patterns: str, root: Path = ROOT) -> list[Path]:
    """Return the tracked files, sorted, that match one of git's path patterns: `*.md` is any folder's.

    An unpacked archive has no `.git`: there, a file counts that `.gitignore` does not name.
    """
    if (root / ".git").exists():
        return _list_files(root, "ls-files", patterns=patterns)
    with tempfile.TemporaryDirectory() as empty:
        repository = [f"--git-dir={empty}", f"--work-tree={root}"]
        subprocess.run(["git", "init", "--quiet", "--bare", empty], check=True)
        return _list_files(root, *repository, "ls-files", "--others", "--exclude-standard", patterns=patterns)


def _list_files(root: Path, *arguments: str, patterns: tuple[str, ...]) -> list[Path]:
    command = ["git", *arguments, "-z", "--", *patterns]
    listed = subprocess.run(command, cwd=root, check=True, capture_output=True, text=True).stdout
    return sorted(file for name in listed.split("\0") if name and (file := root / name).is_file())
