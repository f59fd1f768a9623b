"""What runs becomes what the configuration says, at SIGHUP and at `POST /-/reload`, without a restart.

A server hands in `apply(settings)`, a coroutine function: when it returns, what runs is what these settings say. Where
they cannot be had it raises ConfigurationError or StartError, and what ran before runs on. It is never called twice at
once; a stop may cancel it, and then it leaves what the server closes at its end. An application whose routes change
with it may get the routes of another one: `app.router.routes = other.routes`. Keys that `restart` names do not change
while the server runs: a configuration that changes one is refused as a whole, so that what runs is always what some
version of the file said. Like Prometheus, a configuration that is refused is answered 500: it is no mistake of the one
who asks.

What a reload replaces as a whole: the old generation ends in good order, and only then the new one starts.

The application stays, and answers by the routes of the old one until the new one is there.

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
from shared.http.authorization import Authorizer, ProtectedRoute, RouteRequirements
from shared.http.server import StartError

S = TypeVar("S", bound=ServerSettings)

_SIGHUP_CALLER: Final = Caller("SIGHUP", Role.ADMIN)

log = structlog.get_logger(__name__)


class ReloadMiddleware(Generic[S]):
    """An ASGI application before another, which answers `POST /-/reload`.

    Args:
        app: what is behind it.
        settings: what runs.
        load_settings: reads the configuration again. Raises ConfigurationError.
        apply: see above; None where nothing can change without a restart.
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
        """Reads the configuration again; gives what is wrong with it, one sentence each, or nothing."""
        async with self._lock:
            try:
                settings = await asyncio.to_thread(self._load_settings)
                self._refuse_restart_keys(settings)
                if self._apply:
                    await self._apply(settings)
            except ConfigurationError as error:
                mistakes = error.lines
            except StartError as error:
                mistakes = [str(error)]
            except Exception:
                log.exception("unexpected error in a configuration reload")
                mistakes = ["a defect of this server; its trace is in the log"]
            else:
                self._set_current(settings)
                self._last_successful_gauge.set(1)
                self._success_timestamp_gauge.set(self._clock())
                log.info("configuration reloaded")
                return []
            self._last_successful_gauge.set(0)
            for mistake in mistakes:
                log.error("configuration reload failed; the previous configuration stays active", error=mistake)
            return mistakes

    @asynccontextmanager
    async def reload_on_sighup(self) -> AsyncIterator[None]:
        """Reloads at each SIGHUP while the body runs; after it, no reload is under way any more."""
        hung_up = asyncio.Event()
        loop = asyncio.get_running_loop()

        def handle(_number: int, _frame: FrameType | None) -> None:
            with suppress(RuntimeError):  # the loop is closed: the end is near anyway
                loop.call_soon_threadsafe(hung_up.set)

        async def each() -> None:
            while True:
                await hung_up.wait()
                hung_up.clear()
                await self.reload()
                await self._authorizer.record_action(_SIGHUP_CALLER, None, "reload")

        signal.signal(signal.SIGHUP, handle)
        unblock_sighup()
        task = asyncio.create_task(each(), name="reload at SIGHUP")
        try:
            yield
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            async with self._lock:  # one that was asked for over HTTP, and cancelled with its request, ends first
                pass

    def _set_current(self, settings: S) -> None:
        self.settings = settings
        """What runs."""
        self.access_policy: AccessPolicy = create_access_policy(settings.auth)
        """Who may call, by what runs."""

    def _refuse_restart_keys(self, settings: S) -> None:
        changed = [key for key in self._restart_keys if getattr(settings, key) != getattr(self.settings, key)]
        if changed:
            raise ConfigurationError(
                [f"{key}: changes only with a restart; restart, or set it back" for key in sorted(changed)]
            )

    async def _handle_reload(self, _request: Request) -> Response:
        mistakes = await self.reload()
        if not mistakes:
            return PlainTextResponse("reloaded\n")
        return PlainTextResponse("".join(f"{mistake}\n" for mistake in mistakes), status_code=500)


def block_sighup() -> None:
    """From now on a SIGHUP waits until `unblock_sighup`: before a server can reload, it would end it."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP})


def unblock_sighup() -> None:
    """One that waited comes now."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGHUP})


class ReloadableApp(Generic[S]):
    """One at a time.

    Args:
        start: does what settings say while its body runs, and gives the application that answers by them; the
            `state.stop` of that is called before the end.
    """

    def __init__(self, start: Callable[[S], AbstractAsyncContextManager[Starlette]]) -> None:
        self.error: str | None = None
        """Why nothing runs; None while all is well."""
        self._start = start
        self._exit_stack = AsyncExitStack()

    @asynccontextmanager
    async def run(self, settings: S) -> AsyncIterator[Starlette]:
        """The first, and those that follow, while the body runs; gives the one application of all of them."""
        self._app = await self._exit_stack.enter_async_context(self._start(settings))
        self._settings = settings
        try:
            yield self._app
        finally:
            await self._exit_stack.aclose()

    async def apply(self, settings: S) -> None:
        """A new generation. Where it cannot start, the old one is started again, and the error is raised."""
        ending, self._exit_stack = self._exit_stack, AsyncExitStack()
        try:
            await ending.aclose()
            await self._start_app(settings)
        except Exception:
            self.error = "a reload failed, and what ran before could not be started again; restart"
            await self._start_app(self._settings)
            raise
        self._settings = settings

    async def _start_app(self, settings: S) -> None:
        app = await self._exit_stack.enter_async_context(self._start(settings))
        self._app.router.routes = app.routes
        self._app.state.stop = app.state.stop
        self.error = None
