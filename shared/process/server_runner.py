"""Runs a server: reads its configuration and its web.yml, and serves an application until a stop signal.

    async def serve(runner: ServerRunner[Settings]) -> None:
        async with run_relay(runner.settings) as app:
            await runner.serve(app, app.state.apply)

`shared.process.hot_reload` explains `apply`.
"""

import ssl
from collections.abc import Awaitable, Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

import structlog
from starlette.applications import Starlette
from starlette.routing import Route
from starlette.types import ASGIApp

from shared.config.errors import ConfigurationError
from shared.config.file_checks import FileProblem, check_files
from shared.config.server_settings import ServerSettings
from shared.config.settings import Address, load_settings
from shared.http.authorization import OTHER_ENDPOINT
from shared.http.connection_limits import AdmissionQueue
from shared.http.server import serve
from shared.http.web_config_auth import WebConfigMiddleware
from shared.http.web_config_reload import ReloadedTlsContext, WebConfigFile
from shared.process.hot_reload import ReloadMiddleware
from shared.process.shutdown import STOP_SECONDS, wait_for_stop_signal
from shared.process.unprotected_server import needs_web_credentials, refuse_unprotected

S = TypeVar("S", bound=ServerSettings)

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class ServerRunner(Generic[S]):
    """A server's settings, the files that they come from, and how it serves."""

    settings: S
    config_file: Path | None = None
    """The file that they come from, beside the environment."""
    web_config_file: WebConfigFile | None = None
    warnings: Sequence[tuple[Path | None, FileProblem]] = ()
    """Problems that stop no start, each with the file that names it."""

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
        """Serve, with hot reload, until SIGTERM or SIGINT. Raises StartError.

        Args:
            app: from `create_application`.
            apply: applies new settings; None if every change needs a restart.
            restart_keys: the keys that change only with a restart.
            self_authenticated_paths: paths that check credentials of their own, beside the users of web.yml.
            on_stop: called at the signal, while requests are still in progress.
            admission_queue: limits how many requests of a kind are handled at once; None handles each at once.
        """

        def reload_settings() -> S:
            settings = load_settings(type(self.settings), self.config_file)
            problems = [(self.config_file, problem) for problem in check_files(settings)]
            unmatched = _find_unmatched_roles(settings, self.config_file, self.web_config_file)
            log_warnings(problem for _, problem in (*_refuse_errors(problems), *unmatched))
            return settings

        reloading = ReloadMiddleware(
            app, self.settings, reload_settings, apply and self._wrap_apply(apply), restart_keys, app.state.authorizer
        )
        served = self.add_middleware(app, reloading, self_authenticated_paths)
        async with reloading.reload_on_sighup():
            await serve_until_stopped(served, self.settings.listen, on_stop, self.create_tls_context(), admission_queue)

    def add_middleware(
        self, app: Starlette, reload_middleware: ReloadMiddleware[S], self_authenticated_paths: Collection[str]
    ) -> ASGIApp:
        """Return the whole application: `reload_middleware`, behind the checks of web.yml if there is one."""
        if self.web_config_file is None:
            return reload_middleware

        def routes() -> list[Route]:
            return [route for route in (*app.routes, reload_middleware.route) if isinstance(route, Route)]

        app.state.authorizer.refusals.initialise([OTHER_ENDPOINT])
        return WebConfigMiddleware(
            reload_middleware,
            self.web_config_file,
            lambda: reload_middleware.access_policy,
            app.state.authorizer,
            routes,
            self_authenticated_paths,
        )

    def _wrap_apply(self, apply: Callable[[S], Awaitable[None]]) -> Callable[[S], Awaitable[None]]:
        async def guarded(settings: S) -> None:
            refuse_unprotected(settings, self.config_file, self.web_config_file)
            await apply(settings)
            if self.web_config_file:
                self.web_config_file.requires_credentials = needs_web_credentials(settings)
                self.web_config_file.reserved_names = settings.list_reserved_names()

        return guarded

    def create_tls_context(self) -> ssl.SSLContext | None:
        """Return the context of every connection, or None if web.yml has no certificates."""
        if self.web_config_file is None or self.web_config_file.get_state().tls is None:
            return None
        context = ReloadedTlsContext(ssl.PROTOCOL_TLS_SERVER)
        context.web_config_file = self.web_config_file
        return context


async def serve_until_stopped(
    app: ASGIApp,
    address: Address,
    on_stop: Callable[[], object] = lambda: None,
    tls: ssl.SSLContext | None = None,
    admission_queue: AdmissionQueue | None = None,
) -> None:
    """Serve until SIGTERM or SIGINT, then call `on_stop` and finish the requests in progress. Raises StartError."""
    async with serve(app, address, tls, admission_queue) as actual:
        await wait_until_stopped(on_stop, address=str(actual))


async def wait_until_stopped(on_stop: Callable[[], object] = lambda: None, **addresses: str) -> None:
    """Log the addresses, and return at SIGTERM or SIGINT, once `on_stop` was called."""
    log.info("listening", **addresses)
    await wait_for_stop_signal()
    log.info("stopping", timeout_seconds=STOP_SECONDS)
    on_stop()


def prepare_server(
    model: type[S], config_file: Path | None, web_config_path: Path | None, *, is_check: bool = False
) -> ServerRunner[S]:
    """Read both files, and open the files that they name.

    Args:
        model: the settings of the server.
        config_file: its configuration; None takes defaults and the environment only.
        web_config_path: a web.yml, if any.
        is_check: whether every file that cannot be opened is an error, and not only those that a start needs.

    Raises:
        ConfigurationError: the errors of both files.
    """
    errors: list[str] = []
    web, settings = None, None
    try:
        web = WebConfigFile(web_config_path) if web_config_path else None
    except ConfigurationError as error:
        errors += error.lines
    try:
        settings = load_settings(model, config_file)
    except ConfigurationError as error:
        errors += error.lines
    if settings is None or errors:
        raise ConfigurationError(errors)
    refuse_unprotected(settings, config_file, web)
    if web:
        web.reserved_names = settings.list_reserved_names()
    problems = [(config_file, problem) for problem in check_files(settings)]
    if web:
        problems += [(web_config_path, problem) for problem in check_files(web.get_state().config)]
    warnings = [*_refuse_errors(problems, is_check=is_check), *_find_unmatched_roles(settings, config_file, web)]
    return ServerRunner(settings, config_file, web, warnings)


def log_warnings(problems: Iterable[FileProblem]) -> None:
    """Log problems that stop neither a start nor a reload."""
    for problem in problems:
        log.warning("configuration warning", key=problem.key, error=problem.error, hint=problem.hint or None)


def _find_unmatched_roles(
    settings: ServerSettings, config: Path | None, web: WebConfigFile | None
) -> Iterator[tuple[Path | None, FileProblem]]:
    """Users of web.yml without a role, and roles without a user."""
    users = web.get_state().config.basic_auth_users if web else {}
    for name in users:
        if web and name not in settings.auth.roles:
            error = "reads /metrics alone, since auth.roles has no role for it"
            hint = "to send alerts to a relay it needs `responder`"
            yield web.file, FileProblem(f"basic_auth_users.{name}", error, hint, None)
    for name in settings.auth.roles:
        if name not in users:
            error = "web.yml has no such user, so nobody has this role"
            yield config, FileProblem(f"auth.roles.{name}", error, "", None)


def _refuse_errors(
    problems: Sequence[tuple[Path | None, FileProblem]], *, is_check: bool = False
) -> Sequence[tuple[Path | None, FileProblem]]:
    """Return the problems that are only warnings. Raises ConfigurationError with the others."""
    errors = [
        (file, each)
        for file, each in problems
        if each.startup_policy == "refuses" or (is_check and each.startup_policy is not None)
    ]
    if errors:
        raise ConfigurationError([f"{file or 'environment'}: {each.key}: {each.sentence}" for file, each in errors])
    return [(file, each) for file, each in problems if each.startup_policy != "checks later"]
