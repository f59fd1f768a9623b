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

from shared.config.errors import ConfigurationError
from shared.config.file_checks import FileProblem, check_files
from shared.config.settings import ServerSettings, load_settings
from shared.http.authorization import OTHER_ENDPOINT
from shared.http.connection_limits import AdmissionQueue
from shared.http.server import serve_until_stopped
from shared.http.web_config_auth import WebConfigMiddleware
from shared.http.web_config_reload import ReloadedTlsContext, WebConfigFile
from shared.process.hot_reload import ReloadMiddleware

S = TypeVar("S", bound=ServerSettings)

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class ServerRunner(Generic[S]):
    """What a command line asks for."""

    settings: S
    config_file: Path | None = None
    """Where they were read, beside the environment."""
    web_config_file: WebConfigFile | None = None
    warnings: Sequence[tuple[Path | None, FileProblem]] = ()
    """What is wrong with what the files name, and stops no start; with the file that names it."""

    async def serve(
        self,
        app: Starlette,
        apply: Callable[[S], Awaitable[None]] | None = None,
        *,
        restart_keys: Collection[str] = ("listen",),
        self_authenticated_paths: Collection[str] = (),
        on_stop: Callable[[], object] = lambda: None,
        admission_queue: AdmissionQueue | None = None,
    ) -> None:
        """Serves, and reloads when asked to, until SIGTERM or SIGINT. Raises StartError.

        Args:
            app: made by `application`.
            apply: makes what runs what settings say; None where nothing can change without a restart.
            restart_keys: the keys that change only with a restart.
            self_authenticated_paths: paths that check credentials of their own, beside a web.yml's users.
            on_stop: called at the signal, while requests are still in hand.
            admission_queue: what of the requests is taken in hand in turns; None takes each at once.
        """

        def again() -> S:
            settings = load_settings(type(self.settings), self.config_file)
            found = [(self.config_file, finding) for finding in check_files(settings)]
            for _, finding in [
                *_refuse_errors(found),
                *_find_unmatched_roles(settings, self.config_file, self.web_config_file),
            ]:
                log.warning("configuration warning", key=finding.key, error=finding.message)
            return settings

        reloading = ReloadMiddleware(
            app, self.settings, again, apply and self._wrap_apply(apply), restart_keys, app.state.guard
        )
        served = self.add_middleware(app, reloading, self_authenticated_paths)
        async with reloading.reload_on_sighup():
            await serve_until_stopped(served, self.settings.listen, on_stop, self.create_tls_context(), admission_queue)

    def add_middleware(
        self, app: Starlette, reload_middleware: ReloadMiddleware[S], self_authenticated_paths: Collection[str]
    ) -> ASGIApp:
        """The whole of what is served: `reload_middleware`, behind the gate where there is a web.yml."""
        if self.web_config_file is None:
            return reload_middleware

        def routes() -> list[Route]:
            return [route for route in (*app.routes, reload_middleware.route) if isinstance(route, Route)]

        app.state.guard.refusals.expose([OTHER_ENDPOINT])
        return WebConfigMiddleware(
            reload_middleware,
            self.web_config_file,
            lambda: reload_middleware.access_policy,
            app.state.guard,
            routes,
            self_authenticated_paths,
        )

    def refuse_unprotected(self, settings: S) -> None:
        """Raises ConfigurationError where the network would reach what nobody has to prove anything for.

        Also where a user of web.yml is called as a token is.
        """
        if self.web_config_file:
            self.web_config_file.check_names(self.web_config_file.get_state(), settings.list_reserved_names())
        if not _needs_credentials(settings):
            return
        if self.web_config_file:
            self.web_config_file.requires_credentials = True
            if self.web_config_file.get_state().config.requires_credentials:
                return
        mistake = (
            f"{self.config_file or 'environment'}: auth.admin_token_file: expected a file that holds a token, because "
            f"`listen` ({settings.listen}) can be reached from the network; or a --web.config.file with "
            "basic_auth_users or required client certificates"
        )
        raise ConfigurationError([mistake])

    def _wrap_apply(self, apply: Callable[[S], Awaitable[None]]) -> Callable[[S], Awaitable[None]]:
        async def guarded(settings: S) -> None:
            self.refuse_unprotected(settings)
            await apply(settings)
            if self.web_config_file:
                self.web_config_file.requires_credentials = _needs_credentials(settings)
                self.web_config_file.reserved_names = settings.list_reserved_names()

        return guarded

    def create_tls_context(self) -> ssl.SSLContext | None:
        """What each connection is handed to, where the web.yml has certificates."""
        if self.web_config_file is None or self.web_config_file.get_state().tls is None:
            return None
        context = ReloadedTlsContext(ssl.PROTOCOL_TLS_SERVER)
        context.web_config_file = self.web_config_file
        return context


def prepare_server(
    model: type[S], config_file: Path | None, web_config_path: Path | None, *, is_check: bool = False
) -> ServerRunner[S]:
    """Reads both files, and opens what they name.

    Args:
        model: the settings of the server.
        config_file: its configuration; None takes defaults and the environment only.
        web_config_path: a web.yml, if any.
        is_check: whether whatever cannot be opened is a mistake, and not only what a start needs.

    Raises:
        ConfigurationError: the mistakes of both.
    """
    mistakes: list[str] = []
    web, settings = None, None
    try:
        web = WebConfigFile(web_config_path) if web_config_path else None
    except ConfigurationError as error:
        mistakes += error.lines
    try:
        settings = load_settings(model, config_file)
    except ConfigurationError as error:
        mistakes += error.lines
    if settings is None or mistakes:
        raise ConfigurationError(mistakes)
    launch = ServerRunner(settings, config_file, web)
    launch.refuse_unprotected(settings)
    if web:
        web.reserved_names = settings.list_reserved_names()
    found = [(config_file, finding) for finding in check_files(settings)]
    if web:
        found += [(web_config_path, finding) for finding in check_files(web.get_state().config)]
    findings = [*_refuse_errors(found, is_check=is_check), *_find_unmatched_roles(settings, config_file, web)]
    return replace(launch, warnings=findings)


def _find_unmatched_roles(
    settings: ServerSettings, config: Path | None, web: WebConfigFile | None
) -> Iterator[tuple[Path | None, FileProblem]]:
    """Users of web.yml without a role, and roles without a user."""
    users = web.get_state().config.basic_auth_users if web else {}
    for name in users:
        if web and name not in settings.auth.roles:
            sentence = (
                "reads /metrics alone, since auth.roles has no role for it; "
                "to send alerts to a relay it needs `responder`"
            )
            yield web.file, FileProblem(f"basic_auth_users.{name}", sentence, None)
    for name in settings.auth.roles:
        if name not in users:
            yield config, FileProblem(f"auth.roles.{name}", "web.yml has no such user, so nobody has this role", None)


def _refuse_errors(
    problems: Sequence[tuple[Path | None, FileProblem]], *, is_check: bool = False
) -> Sequence[tuple[Path | None, FileProblem]]:
    """What is no error, as a check or else a start sees it. Raises ConfigurationError with what is one."""
    errors = [
        (file, each)
        for file, each in problems
        if each.startup_policy == "refuses" or (is_check and each.startup_policy is not None)
    ]
    if errors:
        raise ConfigurationError([f"{file or 'environment'}: {each.key}: {each.message}" for file, each in errors])
    return [(file, each) for file, each in problems if each.startup_policy != "looks itself"]


def _needs_credentials(settings: ServerSettings) -> bool:
    return not settings.listen.is_loopback and settings.auth.admin_token_file is None and not settings.auth.tokens
