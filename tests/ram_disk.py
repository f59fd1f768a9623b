"""A folder in memory for databases that must outlive processes, but no power cut."""

import os
import shutil
from pathlib import Path
from typing import Final

_MEMORY: Final = Path("/dev/shm")
_ENOUGH: Final = 2 * 1024**3
"""Bytes that are free: each of six workers may have two servers of some 100 MB. A container's own is often 64 MB."""


def find_ram_disk() -> Path | None:
    """In memory, where a database is made in a tenth of the time that a disk takes; None where there is too little."""
    return _MEMORY if _MEMORY.is_dir() and shutil.disk_usage(_MEMORY).free > _ENOUGH else None


def use_for_temporary_folders() -> None:
    """Puts pytest's own folders there: on a disk each commit of SQLite waits for it, 10 ms where it is slow.

    Not where nothing may be executed from there, as in many containers: tests write programs into their folders.
    """
    if (folder := find_ram_disk()) and not os.statvfs(folder).f_flag & os.ST_NOEXEC:
        os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", str(folder))
