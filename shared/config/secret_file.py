"""Secrets in files: reloaded when the file changes, and compared in constant time."""

import hmac
from pathlib import Path
from typing import Final

import structlog

MIN_TOKEN_LENGTH: Final = 16
"""Of a token that a server of ours checks; `openssl rand -hex 32` makes 64."""

FileStamp = tuple[int, int, int, int]

log = structlog.get_logger(__name__)


class SecretUnreadableError(Exception):
    """A secret's file is missing, empty or not readable. The message names the file, never its content."""


def read_stamp(file: Path) -> FileStamp | None:
    """A value that differs after a change of the file; None while its status cannot be read."""
    try:
        return _read_stamp(file)
    except OSError:
        return None


def _read_stamp(file: Path) -> FileStamp:
    status = file.stat()
    return status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


class SecretFile:
    """A file with a secret, or with two, one on each line, during a rotation.

    Empty lines and lines that begin with `#` are skipped. The file is small and local. It is read again only when its
    inode, size, modification time or change time differ from the last read. No program can set the change time, so a
    file that is rewritten in place, or whose mode changes, is always noticed.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._read: tuple[FileStamp, tuple[str, ...]] | None = None

    def read_values(self) -> tuple[str, ...]:
        """Return every secret in the file, at least one.

        Raises:
            SecretUnreadableError: the file has none, or cannot be read.
        """
        read = self._read  # one read of the attribute: several threads call this
        try:
            stamp = _read_stamp(self.path)
            if read is None or stamp != read[0]:
                read = stamp, tuple(self._parse(self.path.read_text(encoding="utf-8-sig")))
                self._read = read
        except (OSError, UnicodeDecodeError) as error:
            self._read = None
            reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
            raise SecretUnreadableError(f"{self.path}: {reason}") from None
        if not read[1]:
            raise SecretUnreadableError(f"{self.path}: is empty; expected a secret on its first line")
        return read[1]

    def read_value(self) -> str:
        """Return the secret to send: the first line. Raises SecretUnreadableError."""
        return self.read_values()[0]

    def matches(self, candidate: bytes) -> bool:
        """Whether `candidate` is one of the secrets. Raises SecretUnreadableError."""
        return _is_one_of(candidate, self.read_values())

    def _parse(self, text: str) -> list[str]:
        lines = [line.strip() for line in text.splitlines()]
        return [line for line in lines if line and not line.startswith("#")]


def _is_one_of(candidate: bytes, secrets: tuple[str, ...]) -> bool:
    """Every secret is compared, in constant time: the delay reveals nothing."""
    found = [hmac.compare_digest(candidate, secret.encode()) for secret in secrets]
    return any(found)


class PasswordFile(SecretFile):
    """A password of another system, on the first line; it may begin with `#`."""

    def _parse(self, text: str) -> list[str]:
        return [line.strip() for line in text.splitlines() if line.strip()]


class TokenFile(SecretFile):
    """The tokens that a server accepts; short ones are refused.

    One log line when the file becomes unreadable, one when it is readable again.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._last_error: str | None = None

    @property
    def error(self) -> str | None:
        """Why no token can be checked, or None."""
        try:
            self._read_and_log()
        except SecretUnreadableError as error:
            return str(error)
        return None

    def read_values(self) -> tuple[str, ...]:
        """Return every token in the file, at least one. Raises SecretUnreadableError, also if a token is too short."""
        tokens = super().read_values()
        if any(len(token) < MIN_TOKEN_LENGTH for token in tokens):
            raise SecretUnreadableError(f"{self.path}: has a token of less than {MIN_TOKEN_LENGTH} characters")
        return tokens

    def matches(self, candidate: bytes) -> bool:
        """Whether `candidate` is one of the tokens. Raises SecretUnreadableError."""
        return _is_one_of(candidate, self._read_and_log())

    def _read_and_log(self) -> tuple[str, ...]:
        """The tokens; logs where it becomes unreadable or readable again. Raises SecretUnreadableError."""
        try:
            tokens = self.read_values()
        except SecretUnreadableError as error:
            if str(error) != self._last_error:
                self._last_error = str(error)
                log.error("token file is unreadable; requests get 503", error=self._last_error)  # noqa: TRY400
            raise
        if self._last_error is not None:
            self._last_error = None
            log.info("token file is readable again", file=str(self.path))
        return tokens
