"""From a command line to a server that serves: what both of its files say, and what stands before its application.

    async def serve(launch: Launch[Settings]) -> None:
        async with running(launch.settings) as app:
            await launch.serve(app, app.state.apply)

`apply` is explained in `reload`.
"""

import ssl
from collections.abc import Awaitable, Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Generic, TypeVar

import structlog
from starlette.applications import Starlette
from starlette.routing import Route
from starlette.types import ASGIApp

from shared.gate import Gate
from shared.mistakes import ConfigurationError
from shared.named_files import Finding, examine
from shared.refusals import UNKNOWN
from shared.reload import Reloading
from shared.server import serve_until_stopped
from shared.settings import ServerSettings, load
from shared.turns import Turns
from shared.web_file import LiveContext, WebFile

S = TypeVar("S", bound=ServerSettings)

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Launch(Generic[S]):
    """What a command line asks for."""

    settings: S
    config: Path | None = None
    """Where they were read, beside the environment."""
    web: WebFile | None = None
    findings: Sequence[tuple[Path | None, Finding]] = ()
    """What is wrong with what the files name, and stops no start; with the file that names it."""

    async def serve(
        self,
        app: Starlette,
        apply: Callable[[S], Awaitable[None]] | None = None,
        *,
        restart: Collection[str] = ("listen",),
        own_credentials: Collection[str] = (),
        stopping: Callable[[], object] = lambda: None,
        turns: Turns | None = None,
    ) -> None:
        """Serves, and reloads when asked to, until SIGTERM or SIGINT. Raises StartError.

        Args:
            app: made by `application`.
            apply: makes what runs what settings say; None where nothing can change without a restart.
            restart: the keys that change only with a restart.
            own_credentials: paths that check credentials of their own, beside a web.yml's users.
            stopping: called at the signal, while requests are still in hand.
            turns: what of the requests is taken in hand in turns; None takes each at once.
        """

        def again() -> S:
            settings = load(type(self.settings), self.config)
            found = [(self.config, finding) for finding in examine(settings)]
            for _, finding in [*_without_errors(found), *_unmatched(settings, self.config, self.web)]:
                log.warning("this key will not do as it is", key=finding.key, doubt=finding.sentence)
            return settings

        reloading = Reloading(app, self.settings, again, apply and self._guarded(apply), restart, app.state.guard)
        served = self.fenced(app, reloading, own_credentials)
        async with reloading.at_hangups():
            await serve_until_stopped(served, self.settings.listen, stopping, self.tls(), turns)

    def fenced(self, app: Starlette, reloading: Reloading[S], own_credentials: Collection[str]) -> ASGIApp:
        """The whole of what is served: `reloading`, behind the gate where there is a web.yml."""
        if self.web is None:
            return reloading

        def routes() -> list[Route]:
            return [route for route in (*app.routes, reloading.route) if isinstance(route, Route)]

        app.state.guard.refusals.expose([UNKNOWN])
        return Gate(reloading, self.web, lambda: reloading.access, app.state.guard, routes, own_credentials)

    def guard(self, settings: S) -> None:
        """Raises ConfigurationError where the network would reach what nobody has to prove anything for.

        Also where a user of web.yml is called as a token is.
        """
        if self.web:
            self.web.check_names(self.web.current(), settings.taken_names())
        if not _needs_a_guard(settings):
            return
        if self.web:
            self.web.must_authenticate = True
            if self.web.current().config.authenticates:
                return
        mistake = (
            f"{self.config or 'environment'}: auth.admin_token_file: expected a file that holds a token, because "
            f"`listen` ({settings.listen}) can be reached from the network; or a --web.config.file with "
            "basic_auth_users or required client certificates"
        )
        raise ConfigurationError([mistake])

    def _guarded(self, apply: Callable[[S], Awaitable[None]]) -> Callable[[S], Awaitable[None]]:
        async def guarded(settings: S) -> None:
            self.guard(settings)
            await apply(settings)
            if self.web:
                self.web.must_authenticate = _needs_a_guard(settings)
                self.web.taken_names = settings.taken_names()

        return guarded

    def tls(self) -> ssl.SSLContext | None:
        """What each connection is handed to, where the web.yml has certificates."""
        if self.web is None or self.web.current().tls is None:
            return None
        context = LiveContext(ssl.PROTOCOL_TLS_SERVER)
        context.web = self.web
        return context


def prepared(model: type[S], config: Path | None, web_config: Path | None, *, to_check: bool = False) -> Launch[S]:
    """Reads both files, and opens what they name.

    Args:
        model: the settings of the server.
        config: its configuration; None takes defaults and the environment only.
        web_config: a web.yml, if any.
        to_check: whether whatever cannot be opened is a mistake, and not only what a start needs.

    Raises:
        ConfigurationError: the mistakes of both.
    """
    mistakes: list[str] = []
    web, settings = None, None
    try:
        web = WebFile(web_config) if web_config else None
    except ConfigurationError as error:
        mistakes += error.lines
    try:
        settings = load(model, config)
    except ConfigurationError as error:
        mistakes += error.lines
    if settings is None or mistakes:
        raise ConfigurationError(mistakes)
    launch = Launch(settings, config, web)
    launch.guard(settings)
    if web:
        web.taken_names = settings.taken_names()
    found = [(config, finding) for finding in examine(settings)]
    if web:
        found += [(web_config, finding) for finding in examine(web.current().config)]
    findings = [*_without_errors(found, to_check=to_check), *_unmatched(settings, config, web)]
    return replace(launch, findings=findings)


def _unmatched(
    settings: ServerSettings, config: Path | None, web: WebFile | None
) -> Iterator[tuple[Path | None, Finding]]:
    """Users of web.yml without a role, and roles without a user."""
    users = web.current().config.basic_auth_users if web else {}
    for name in users:
        if web and name not in settings.auth.roles:
            sentence = (
                "reads /metrics alone, since auth.roles has no role for it; "
                "to send alerts to a relay it needs `responder`"
            )
            yield web.file, Finding(f"basic_auth_users.{name}", sentence, None)
    for name in settings.auth.roles:
        if name not in users:
            yield config, Finding(f"auth.roles.{name}", "web.yml has no such user, so nobody has this role", None)


def _without_errors(
    found: Sequence[tuple[Path | None, Finding]], *, to_check: bool = False
) -> Sequence[tuple[Path | None, Finding]]:
    """What is no error, as a check or else a start sees it. Raises ConfigurationError with what is one."""
    errors = [(file, each) for file, each in found if each.start == "refuses" or (to_check and each.start is not None)]
    if errors:
        raise ConfigurationError([f"{file or 'environment'}: {each.key}: {each.sentence}" for file, each in errors])
    return [(file, each) for file, each in found if each.start != "looks itself"]


def _needs_a_guard(settings: ServerSettings) -> bool:
    return not settings.listen.is_loopback and settings.auth.admin_token_file is None and not settings.auth.tokens
