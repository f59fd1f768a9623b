"""What a reload replaces as a whole: the old generation ends in good order, and only then the new one starts.

The application stays, and answers by the routes of the old one until the new one is there.
"""

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from typing import Generic, TypeVar

from starlette.applications import Starlette

from shared.settings import ServerSettings

S = TypeVar("S", bound=ServerSettings)


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
