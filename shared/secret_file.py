"""Secrets live in files, are read again when the file changes, and are compared in constant time."""

import hmac
from pathlib import Path


class SecretUnreadableError(Exception):
    """The file of a secret is missing, empty, or may not be read. The message names the file, never its content."""


class SecretFile:
    """A file that holds a secret, or two, one a line, while they are being rotated.

    The file is small and local: it is read only when its inode, size or time of change differ from the last read.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._read: tuple[tuple[int, int, int], tuple[str, ...]] | None = None

    def values(self) -> tuple[str, ...]:
        """Every secret in the file, at least one.

        Raises:
            SecretUnreadableError: there is none to be had.
        """
        read = self._read  # one attribute, read once: a channel asks from several threads
        try:
            stamp = self._stamp()
            if read is None or stamp != read[0]:
                text = self.path.read_text(encoding="utf-8-sig")
                read = stamp, tuple(line.strip() for line in text.splitlines() if line.strip())
                self._read = read
        except (OSError, UnicodeDecodeError) as error:
            self._read = None
            reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
            raise SecretUnreadableError(f"{self.path}: {reason}") from None
        if not read[1]:
            raise SecretUnreadableError(f"{self.path}: is empty; expected a secret on its first line")
        return read[1]

    def stamp(self) -> tuple[int, int, int] | None:
        """Something that is another once the file has changed; None while it cannot be found or looked at."""
        try:
            return self._stamp()
        except OSError:
            return None

    def value(self) -> str:
        """The secret to send: the first line. Raises SecretUnreadableError."""
        return self.values()[0]

    def matches(self, candidate: bytes) -> bool:
        """Whether `candidate` is one of the secrets. Raises SecretUnreadableError.

        Every secret is compared, in constant time, so that the answer's delay tells nothing.
        """
        found = [hmac.compare_digest(candidate, secret.encode()) for secret in self.values()]
        return any(found)

    def _stamp(self) -> tuple[int, int, int]:
        status = self.path.stat()
        return status.st_ino, status.st_size, status.st_mtime_ns
