"""Files that are there as a whole or not at all, whenever a process or a machine dies."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


def replace_file(path: Path, content: bytes) -> None:
    """Write the file, mode 0600. A reader finds the old content or the new one, after a crash too. Raises OSError."""
    with _write_temporary(path, content) as new:
        new.replace(path)
    sync_folder(path.parent)


def create_file(path: Path, content: bytes) -> bool:
    """Write the file, mode 0600, unless it exists; whether it was created. Raises OSError."""
    is_created = False
    with _write_temporary(path, content) as new, suppress(FileExistsError):
        os.link(new, path)
        is_created = True
    sync_folder(path.parent)
    return is_created


def sync_folder(folder: Path) -> None:
    """Bring the names of a folder's files to the disk, after a rename or a link. Raises OSError."""
    opened = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)


@contextmanager
def _write_temporary(path: Path, content: bytes) -> Iterator[Path]:
    opened, name = tempfile.mkstemp(".new", f".{path.name}.", path.parent)  # its mode is 0600
    new = Path(name)
    try:
        with open(opened, "wb") as file:  # noqa: PTH123 - by its descriptor
            file.write(content)
            file.flush()
            os.fsync(opened)
        yield new
    finally:
        new.unlink(missing_ok=True)
