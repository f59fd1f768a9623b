"""`/`: the state of the relay now."""

from starlette.requests import Request
from starlette.responses import Response

from services.relay.console.pages.layout import PageRenderer
from services.relay.outbox import queries
from services.relay.outbox.engine.store import Store
from shared.http.authorization import ProtectedRoute


class NowPages:
    """The start page.

    Args:
        store: the outbox.
        renderer: renders the template.
    """

    def __init__(self, store: Store, renderer: PageRenderer) -> None:
        self._store = store
        self._renderer = renderer

    def build_routes(self) -> list[ProtectedRoute]:
        """The route of the page."""
        return [self._renderer.build_page_route("/", self._show)]

    async def _show(self, request: Request) -> Response:
        channels = await self._store.read(queries.read_channel_states)
        return await self._renderer.render(request, "now.html.j2", {"channels": channels})
