"""Runs a server until a stop signal, and applies a changed configuration at SIGHUP and at `POST /-/reload`.

    async def serve(runner: ServerRunner[Settings]) -> None:
        async with run_relay(runner.settings) as app:
            await runner.serve(app, app.state.apply)

When `apply(settings)` returns, the server runs with these settings; if it raises ConfigurationError or StartError, the
old ones stay, and the answer is 500, as by Prometheus. Calls never overlap; a stop may cancel one. A configuration that
changes one of the `restart_keys` is refused as a whole, so the server always runs with one version of the file.

A server without credentials (a token in `auth`, or a web.yml with users or required client certificates) starts on
loopback only, and no reload opens it. A stop ends within `STOP_SECONDS` whatever hangs.
"""

import asyncio
import faulthandler
import signal
import ssl
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType
from typing import Final, Generic, TypeVar

import structlog
from prometheus_client import Gauge
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from shared.config.errors import ConfigurationError
from shared.config.file_checks import FileProblem, check_files
from shared.config.server_settings import Role, ServerSettings
from shared.config.settings import Address, load_settings
from shared.credentials import Credentials
from shared.http.access import OTHER_ENDPOINT, Authorizer, ProtectedRoute, RouteRequirements, describe_action
from shared.http.authentication import AccessPolicy, Caller, create_access_policy
from shared.http.limits import AdmissionQueue
from shared.http.public_path import PublicPathMiddleware
from shared.http.server import StartError, serve
from shared.http.web_config import ReloadedTlsContext, WebConfigFile
from shared.http.web_config_auth import WebConfigMiddleware

S = TypeVar("S", bound=ServerSettings)

_SIGHUP_CALLER: Final = Caller("SIGHUP", Role.ADMIN)
_REFUSED: Final = "refused"
"""In the audit log, of a configuration with errors."""

log = structlog.get_logger(__name__)


class ReloadMiddleware(Generic[S]):
    """ASGI middleware that answers `POST /-/reload`.

    Args:
        load_settings: reads the configuration. Raises ConfigurationError.
        apply: see above; None if every change needs a restart.
        authorizer: of the server; its metrics get the two gauges.
        clock: unix seconds.
    """

    def __init__(
        self,
        app: ASGIApp,
        settings: S,
        load_settings: Callable[[], S],
        apply: Callable[[S], Awaitable[None]] | None,
        restart_keys: Collection[str],
        authorizer: Authorizer,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._set_current(settings)
        self._app = app
        requires = RouteRequirements(Role.ADMIN, action="reload")
        self._authorizer = authorizer
        self.route = authorizer.protect(
            ProtectedRoute("/-/reload", self._handle_reload, requires, ["POST"]), lambda: self.access_policy
        )
        """Its own."""
        self._router = Starlette(routes=[self.route])
        self._router.router.redirect_slashes = False
        self._load_settings = load_settings
        self._apply = apply
        self._restart_keys = frozenset(restart_keys if apply else type(settings).model_fields)
        self._clock = clock
        self._lock = asyncio.Lock()
        self._last_successful_gauge = Gauge(
            "keypulse_config_last_reload_successful",
            "1 if the configuration was read and taken at the start or the last reload.",
            registry=authorizer.metrics,
        )
        self._success_timestamp_gauge = Gauge(
            "keypulse_config_last_reload_success_timestamp_seconds",
            "When the configuration was last read and taken, the start included; unix time.",
            registry=authorizer.metrics,
        )
        self._last_successful_gauge.set(1)
        self._success_timestamp_gauge.set(clock())

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers itself, or lets the application answer."""
        await (self._router if scope["path"] == self.route.path else self._app)(scope, receive, send)

    async def reload(self) -> list[str]:
        """Read the configuration and apply it. Return its errors, one sentence each."""
        async with self._lock:
            try:
                settings = await asyncio.to_thread(self._load_settings)
                self._refuse_restart_keys(settings)
                if self._apply:
                    await self._apply(settings)
            except ConfigurationError as error:
                errors = error.lines
            except StartError as error:
                errors = [str(error)]
            except Exception:
                log.exception("unexpected error in a configuration reload")
                errors = ["a defect of this server; its trace is in the log"]
            else:
                self._set_current(settings)
                self._last_successful_gauge.set(1)
                self._success_timestamp_gauge.set(self._clock())
                log.info("configuration reloaded")
                return []
            self._last_successful_gauge.set(0)
            for line in errors:
                log.error("configuration reload failed; the previous configuration stays active", error=line)
            return errors

    @asynccontextmanager
    async def reload_on_sighup(self) -> AsyncIterator[None]:
        """Reload at each SIGHUP while the body runs; afterwards no reload is in progress."""
        hung_up = asyncio.Event()
        loop = asyncio.get_running_loop()

        def handle(_number: int, _frame: FrameType | None) -> None:
            with suppress(RuntimeError):  # the loop is closed: the process ends anyway
                loop.call_soon_threadsafe(hung_up.set)

        async def each() -> None:
            while True:
                await hung_up.wait()
                hung_up.clear()
                errors = await self.reload()
                await self._authorizer.record_action(_SIGHUP_CALLER, None, "reload", _REFUSED if errors else "")

        signal.signal(signal.SIGHUP, handle)
        unblock_sighup()
        task = asyncio.create_task(each(), name="reload at SIGHUP")
        try:
            yield
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            async with self._lock:  # a reload over HTTP, cancelled with its request, ends first
                pass

    def _set_current(self, settings: S) -> None:
        self.settings = settings
        """The current settings."""
        self.access_policy: AccessPolicy = create_access_policy(settings.auth)
        """Who may call, by the current settings."""

    def _refuse_restart_keys(self, settings: S) -> None:
        changed = [key for key in self._restart_keys if getattr(settings, key) != getattr(self.settings, key)]
        if changed:
            raise ConfigurationError(
                [f"{key}: changes only with a restart; restart, or set it back" for key in sorted(changed)]
            )

    async def _handle_reload(self, request: Request) -> Response:
        errors = await self.reload()
        if not errors:
            return PlainTextResponse("reloaded\n")
        describe_action(request, on=_REFUSED)
        return PlainTextResponse("".join(f"{line}\n" for line in errors), status_code=500)


def block_sighup() -> None:
    """From now on a SIGHUP waits until `unblock_sighup`: before a server can reload, it would end it."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP})


def unblock_sighup() -> None:
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGHUP})


class ReloadableApp(Generic[S]):
    """An application whose parts are restarted with new settings.

    Args:
        start: runs the parts for given settings while its body runs, and yields their application, whose `state.stop`
            is called before the end.
    """

    def __init__(self, start: Callable[[S], AbstractAsyncContextManager[Starlette]]) -> None:
        self.error: str | None = None
        """Why no parts run, or None."""
        self._start = start
        self._exit_stack = AsyncExitStack()

    @asynccontextmanager
    async def run(self, settings: S) -> AsyncIterator[Starlette]:
        """Run the parts while the body runs; yield the application, which stays the same across reloads."""
        self._app = await self._exit_stack.enter_async_context(self._start(settings))
        self._settings = settings
        try:
            yield self._app
        finally:
            await self._exit_stack.aclose()

    async def apply(self, settings: S) -> None:
        """Restart the parts with these settings. If that fails, restart them with the old ones and raise the error."""
        previous_stack, self._exit_stack = self._exit_stack, AsyncExitStack()
        try:
            await previous_stack.aclose()
            await self._start_app(settings)
        except Exception:
            self.error = "a reload failed, and the previous configuration could not be started either; restart"
            await self._start_app(self._settings)
            raise
        self._settings = settings

    async def _start_app(self, settings: S) -> None:
        app = await self._exit_stack.enter_async_context(self._start(settings))
        self._app.router.routes = app.routes
        self._app.state.stop = app.state.stop
        self.error = None


STOP_SECONDS: Final = 14.0
"""From the signal to the end of the process, at most."""
_STANDARD_ERROR: Final = 2
_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT)


async def wait_for_stop_signal() -> None:
    """Return at the first SIGTERM or SIGINT."""
    stopped = asyncio.Event()
    _on_stop_signals(stopped.set)
    await stopped.wait()


async def run_until_stop_signal(server: Awaitable[None]) -> None:
    """Run `server`; a signal also cancels it while it has not yet called `wait_for_stop_signal`."""
    starting = asyncio.ensure_future(server)
    _on_stop_signals(starting.cancel)
    with suppress(asyncio.CancelledError):
        await starting


def _on_stop_signals(callback: Callable[[], object]) -> None:
    """Call `callback` on the running loop at each signal; a second signal must not shorten the stop.

    The handlers are Python's and not the loop's: the loop may be what hangs.
    """
    loop = asyncio.get_running_loop()

    def handle(_number: int, _frame: FrameType | None) -> None:
        _start_kill_timer()
        with suppress(RuntimeError):  # the loop is closed: the process ends anyway
            loop.call_soon_threadsafe(callback)

    for number in _SIGNALS:
        signal.signal(number, handle)


def _start_kill_timer() -> None:
    """End the process `STOP_SECONDS` after the first signal, whatever hangs.

    A thread of faulthandler, which needs neither the loop nor the GIL, writes the stack of each thread and exits with
    1. If nobody reads standard error it would block for ever; then SIGALRM ends the process.
    """
    if signal.getitimer(signal.ITIMER_REAL)[0] == 0:
        signal.setitimer(signal.ITIMER_REAL, STOP_SECONDS)
        faulthandler.dump_traceback_later(STOP_SECONDS - 1, exit=True, file=_STANDARD_ERROR)


def refuse_unprotected(
    settings: ServerSettings, config_file: Path | None, web_config_file: WebConfigFile | None
) -> None:
    """Refuse an address that the network reaches without credentials, and users named like tokens.

    From then on a web.yml that has to bring the credentials is not read without them. Raises ConfigurationError.
    """
    if web_config_file:
        web_config_file.check_names(web_config_file.get_state(), settings.list_reserved_names())
    if not needs_web_credentials(settings):
        return
    if web_config_file:
        web_config_file.requires_credentials = True
        if web_config_file.get_state().config.requires_credentials:
            return
    error = (
        f"{config_file or 'environment'}: auth.admin_token_file: expected a file that holds a token, because "
        f"`listen` ({settings.listen}) can be reached from the network; or a --web.config.file with "
        "basic_auth_users or required client certificates"
    )
    raise ConfigurationError([error])


def needs_web_credentials(settings: ServerSettings) -> bool:
    """Whether the network reaches the server, and only a web.yml can ask for credentials."""
    return not settings.listen.is_loopback and not settings.auth.has_credentials


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
            warnings = replace(self, settings=settings).find_warnings()
            log_warnings(problem for _, problem in (*_refuse_errors(problems), *warnings))
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
            return PublicPathMiddleware(reload_middleware, app.state.authorizer)

        def routes() -> list[Route]:
            return [route for route in (*app.routes, reload_middleware.route) if isinstance(route, Route)]

        app.state.authorizer.refusals.initialise([OTHER_ENDPOINT])
        checked = WebConfigMiddleware(
            reload_middleware,
            self.web_config_file,
            lambda: reload_middleware.access_policy,
            app.state.authorizer,
            routes,
            self_authenticated_paths,
        )
        return PublicPathMiddleware(checked, app.state.authorizer)

    def _wrap_apply(self, apply: Callable[[S], Awaitable[None]]) -> Callable[[S], Awaitable[None]]:
        async def guarded(settings: S) -> None:
            refuse_unprotected(settings, self.config_file, self.web_config_file)
            await apply(settings)
            if self.web_config_file:
                self.web_config_file.requires_credentials = needs_web_credentials(settings)
                self.web_config_file.reserved_names = settings.list_reserved_names()

        return guarded

    def find_warnings(self) -> Iterator[tuple[Path | None, FileProblem]]:
        """Yield what is valid, and does not work as it seems to, each with the file that names it. Blocks."""
        for key, error in self.settings.find_warnings():
            yield self.config_file, FileProblem(key, error, "", None)
        yield from _find_unmatched_roles(self.settings, self.config_file, self.web_config_file)

    def get_credentials(self) -> Credentials:
        """Those of web.yml that end, as the server uses them now: each request reads a file that has changed."""
        found = self.web_config_file.state.credentials if self.web_config_file else {}
        return {f"{credential} of the {self.settings.service_name}": each for credential, each in found.items()}

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


def read_configuration(model: type[S], config_file: Path | None, web_config_path: Path | None) -> ServerRunner[S]:
    """Read both files. Raises ConfigurationError with the errors of both: no server starts with them."""
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
    return ServerRunner(settings, config_file, web)


def prepare_server(
    model: type[S], config_file: Path | None, web_config_path: Path | None, *, is_check: bool = False
) -> ServerRunner[S]:
    """Read both files, and open the files that they name. Raises ConfigurationError with the errors of both.

    With `is_check` every file that cannot be opened is an error, and not only those that a start needs.
    """
    runner = read_configuration(model, config_file, web_config_path)
    problems = [(config_file, problem) for problem in check_files(runner.settings)]
    if web := runner.web_config_file:
        problems += [(web_config_path, problem) for problem in check_files(web.get_state().config)]
    warnings = [*_refuse_errors(problems, is_check=is_check), *runner.find_warnings()]
    return replace(runner, warnings=warnings)


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
            hint = "give that file by --web.config.file, or remove the role"
            yield config, FileProblem(f"auth.roles.{name}", error, hint, None)


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
