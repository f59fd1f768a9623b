"""The folder that keeps the state, for one emulator at a time: a second one would overwrite what the first keeps."""

import fcntl
import os
from pathlib import Path

from shared.server import StartError


class LockedFolder:
    """A folder that is ours until `release`, or until this process ends, however it ends."""

    def __init__(self, path: Path) -> None:
        """Makes it where it is missing. Raises StartError where it cannot be used, or is another emulator's."""
        try:
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._opened = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        except OSError as error:
            raise StartError(f"cannot keep state in {path}: {error.strerror}; set another --data") from None
        try:
            fcntl.flock(self._opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(self._opened)
            why = "another emulator uses it" if isinstance(error, BlockingIOError) else error.strerror
            raise StartError(f"cannot keep state in {path}: {why}; set another --data") from None

    def release(self) -> None:
        """Others may use it from now on."""
        os.close(self._opened)
