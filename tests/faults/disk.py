"""A disk that can be full: a folder comes in, a switch goes out."""

import errno
import resource
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

import pytest

from tests.faults.relay import Relay

SIZE = 8 * 1024 * 1024


class Disk(Protocol):
    """Where a database lies."""

    def fill(self, relay: Relay, /) -> None:
        """From now on no file of the relay can grow."""
        ...

    def free(self, relay: Relay, /) -> None:
        """From now on they can."""
        ...


class Tmpfs:
    """A file system of its own."""

    def __init__(self, folder: Path) -> None:
        self._ballast = folder / "ballast"

    def fill(self, _relay: Relay | None = None, /) -> None:
        """Takes every block that is left."""
        with self._ballast.open("wb", buffering=0) as ballast:
            try:
                while True:
                    ballast.write(bytes(4096))
            except OSError as error:
                assert error.errno == errno.ENOSPC  # noqa: PT017  # writes until this error comes

    def free(self, _relay: Relay | None = None, /) -> None:
        """Gives them back."""
        self._ballast.unlink()


class Quota:
    """A limit on the size of each file of one process."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def fill(self, relay: Relay, /) -> None:
        """No file may become larger than the largest is."""
        self._limit(relay, max(file.stat().st_size for file in self._folder.iterdir()))

    def free(self, relay: Relay, /) -> None:
        """No limit any more."""
        self._limit(relay, resource.RLIM_INFINITY)

    def _limit(self, relay: Relay, size: int) -> None:
        assert relay.process is not None
        resource.prlimit(relay.process.pid, resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))


@contextmanager
def tmpfs(folder: Path) -> Iterator[Tmpfs]:
    """Mounts one at a folder; skips the test where that is not allowed."""
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={SIZE}", "tmpfs", str(folder)],
        capture_output=True,
        text=True,
        check=False,
    )
    if mounted.returncode:
        pytest.skip(f"a file system of its own cannot be mounted here: {mounted.stderr.strip()}")
    try:
        yield Tmpfs(folder)
    finally:
        # Lazily: a process that is just being ended may hold a file of it for a moment more.
        subprocess.run(["umount", "--lazy", str(folder)], check=True)
