"""Hot reload: applies a changed configuration without a restart, at SIGHUP and at `POST /-/reload`.

A server passes `apply(settings)`, a coroutine function: when it returns, the server runs with these settings. If they
cannot be applied it raises ConfigurationError or StartError, and the server continues with the old ones. Calls never
overlap; a stop may cancel one, and the server then closes what is left. A configuration that changes one of the
`restart_keys` is refused as a whole, so the server always runs with one version of the file. A refused configuration is
answered with 500, as by Prometheus: it is not an error of the client.

`ReloadableApp` replaces everything at once: it stops the old parts, then starts the new ones. Meanwhile the application
answers by the old routes.
"""

import asyncio
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Collection
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, suppress
from types import FrameType
from typing import Final, Generic, TypeVar

import structlog
from prometheus_client import Gauge
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from shared.config.errors import ConfigurationError
from shared.config.server_settings import Role, ServerSettings
from shared.http.authentication import AccessPolicy, Caller, create_access_policy
from shared.http.authorization import Authorizer, ProtectedRoute, RouteRequirements, describe_action
from shared.http.server import StartError

S = TypeVar("S", bound=ServerSettings)

_SIGHUP_CALLER: Final = Caller("SIGHUP", Role.ADMIN)
_REFUSED: Final = "refused"
"""In the audit log, of a configuration with errors."""

log = structlog.get_logger(__name__)


class ReloadMiddleware(Generic[S]):
    """ASGI middleware that answers `POST /-/reload`.

    Args:
        app: the application.
        settings: the current ones.
        load_settings: reads the configuration. Raises ConfigurationError.
        apply: see above; None if every change needs a restart.
        restart_keys: the keys that change only with a restart.
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
    """One that waited comes now."""
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
