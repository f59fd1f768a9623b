"""Reloads web.yml whenever it, or a file that it names, has changed: a renewed certificate needs no restart.

If the new state cannot be used, the old one stays active and one error is logged. The files are small and local; `stat`
detects a change, as in `secret_file`.
"""

import ssl
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import structlog

from shared.config.errors import ConfigurationError
from shared.config.secret_file import FileStamp, SecretFile
from shared.config.server_settings import is_name_in
from shared.http.password_check import PasswordChecker
from shared.http.tls import create_server_context
from shared.http.web_config import WebConfig, read_web_config

FileStamps = tuple[FileStamp | None, ...]

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class WebState:
    """The content of web.yml and its files at one time."""

    config: WebConfig
    tls: ssl.SSLContext | None
    password_checker: PasswordChecker | None


class WebConfigFile:
    """Provides the latest valid state of a web.yml.

    Args:
        file: the web.yml.

    Raises:
        ConfigurationError: it is not valid.
    """

    def __init__(self, file: Path) -> None:
        self.requires_credentials = False
        """Whether a state without credentials is refused: nothing else protects an address that the network reaches."""
        self.reserved_names: Collection[str] = ()
        """Names that no user may have."""
        self.file = file
        self._watched_files: tuple[Path, ...] = ()
        self._stamps: FileStamps = ()
        self._state = self._read()

    def get_state(self) -> WebState:
        """Return the latest valid state."""
        stamps = _read_stamps(self.file, *self._watched_files)
        if stamps != self._stamps:
            self._stamps = stamps
            try:
                self._state = self._check_allowed(self._read())
                log.info("web.yml reloaded", file=str(self.file))
            except ConfigurationError as error:
                for line in error.lines:
                    log.error(  # noqa: TRY400 - a trace adds nothing
                        "web.yml reload failed; the previous configuration stays active", error=line
                    )
        return self._state

    def check_names(self, web: WebState, reserved_names: Collection[str]) -> None:
        """Raises ConfigurationError if a user's name belongs to another caller in the audit log."""
        conflicts = [name for name in web.config.basic_auth_users if is_name_in(name, reserved_names)]
        if conflicts:
            sentence = "expected another name; another caller has this one in the audit log"
            raise ConfigurationError([f"{self.file}: basic_auth_users.{name}: {sentence}" for name in conflicts])

    def _read(self) -> WebState:
        own = _read_stamps(self.file)
        config = read_web_config(self.file)
        tls, users = config.tls_server_config, config.basic_auth_users
        self._watched_files = tls.files if tls else ()
        self._stamps = own + _read_stamps(
            *self._watched_files
        )  # before the files are read: a change in between is noticed
        return WebState(
            config, create_server_context(self.file, tls) if tls else None, PasswordChecker(users) if users else None
        )

    def _check_allowed(self, web: WebState) -> WebState:
        if (web.tls is None) != (self._state.tls is None):
            raise ConfigurationError([f"{self.file}: tls_server_config: comes or goes only with a restart; restart"])
        if self.requires_credentials and not web.config.requires_credentials:
            raise ConfigurationError([f"{self.file}: expected basic_auth_users or required client certificates"])
        self.check_names(web, self.reserved_names)
        return web


class ReloadedTlsContext(ssl.SSLContext):
    """Delegates each new connection to the current context; it has no certificate itself."""

    web_config_file: WebConfigFile

    def wrap_bio(self, *args: Any, **options: Any) -> ssl.SSLObject:
        """Called by asyncio and uvloop for each connection."""
        tls = self.web_config_file.get_state().tls
        if tls is None:
            raise ssl.SSLError("no TLS is configured")
        return tls.wrap_bio(*args, **options)


def _read_stamps(*files: Path) -> FileStamps:
    return tuple(SecretFile(file).read_stamp() for file in files)
