"""A web.yml while a server runs: read again whenever it, or a file that it names, has changed.

So a renewed certificate needs no restart. What cannot be used keeps what was, and is said once. The files are small and
local, and looked at with `stat` first, as in `secret_file`.
"""

import ssl
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import structlog

from shared.basic_auth import Users
from shared.mistakes import ConfigurationError
from shared.secret_file import SecretFile, Stamp
from shared.tls import server_context
from shared.web_config import WebConfig, read

Stamps = tuple[Stamp | None, ...]

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Web:
    """One state of the files."""

    config: WebConfig
    tls: ssl.SSLContext | None
    users: Users | None


class WebFile:
    """Gives the newest usable state of a web.yml.

    Args:
        file: the web.yml.

    Raises:
        ConfigurationError: it cannot be used.
    """

    def __init__(self, file: Path) -> None:
        self.must_authenticate = False
        """Whether a state that lets everybody in is refused, since nothing else guards the server's address."""
        self.taken_names: Collection[str] = ()
        """What no user may be called."""
        self.file = file
        self._watched: tuple[Path, ...] = ()
        self._stamps: Stamps = ()
        self._web = self._read()

    def current(self) -> Web:
        """The newest usable state."""
        stamps = _stamps(self.file, *self._watched)
        if stamps != self._stamps:
            self._stamps = stamps
            try:
                self._web = self._allowed(self._read())
                log.info("web.yml, or a file that it names, was read again", file=str(self.file))
            except ConfigurationError as error:
                for mistake in error.lines:
                    log.error(  # noqa: TRY400 - a trace adds nothing
                        "a changed file cannot be used; what was before stays in force", mistake=mistake
                    )
        return self._web

    def check_names(self, web: Web, taken_names: Collection[str]) -> None:
        """Raises ConfigurationError where the audit could not tell a user from somebody else."""
        taken = [name for name in web.config.basic_auth_users if name in taken_names]
        if taken:
            sentence = "expected another name; the audit calls somebody else so"
            raise ConfigurationError([f"{self.file}: basic_auth_users.{name}: {sentence}" for name in taken])

    def _read(self) -> Web:
        own = _stamps(self.file)
        config = read(self.file)
        tls, users = config.tls_server_config, config.basic_auth_users
        self._watched = tls.files if tls else ()
        self._stamps = own + _stamps(*self._watched)  # before they are read: what changes meanwhile is read again
        return Web(config, server_context(self.file, tls) if tls else None, Users(users) if users else None)

    def _allowed(self, web: Web) -> Web:
        if (web.tls is None) != (self._web.tls is None):
            raise ConfigurationError([f"{self.file}: tls_server_config: comes or goes only with a restart; restart"])
        if self.must_authenticate and not web.config.authenticates:
            raise ConfigurationError([f"{self.file}: expected basic_auth_users or required client certificates"])
        self.check_names(web, self.taken_names)
        return web


class LiveContext(ssl.SSLContext):
    """Hands each new connection to the context of that moment; itself it has no certificate."""

    web: WebFile

    def wrap_bio(self, *args: Any, **options: Any) -> ssl.SSLObject:
        """What asyncio and uvloop call for each connection."""
        tls = self.web.current().tls
        if tls is None:
            raise ssl.SSLError("no TLS is configured")
        return tls.wrap_bio(*args, **options)


def _stamps(*files: Path) -> Stamps:
    return tuple(SecretFile(file).stamp() for file in files)
