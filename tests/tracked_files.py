"""The files that git tracks: what commands of the README leave in a checkout is nobody's document."""

import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[1]


def list_tracked_files(*patterns: str) -> list[Path]:
    """Return the tracked files, sorted, that match one of git's path patterns: `*.md` is any folder's."""
    command = ["git", "ls-files", "-z", "--", *patterns]
    listed = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    return sorted(file for name in listed.split("\0") if name and (file := ROOT / name).is_file())
