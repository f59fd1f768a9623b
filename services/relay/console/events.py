"""`GET /events`: tells open pages that the outbox has changed, as server-sent events.

The event `changed` has no content: a page then loads its own fragments again. What changed is found by asking the
database at a bounded pace, so that changes of other replicas are seen, too.
"""

import asyncio
from collections.abc import AsyncIterator
from typing import Final

from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from services.relay.outbox.change_marker import read_change_marker
from services.relay.outbox.engine.store import Store
from services.relay.outbox.engine.work_queue import StoreUnavailableError
from shared.config.server_settings import Role
from shared.http.authorization import ProtectedRoute, RouteRequirements

_POLL_SECONDS: Final = 0.5


class ChangeStream:
    """The endpoint of the stream.

    Args:
        store: the outbox.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._is_stopped = False

    def build_routes(self) -> list[ProtectedRoute]:
        """The route of the stream."""
        return [ProtectedRoute("/events", self._stream, RouteRequirements(Role.VIEWER))]

    def stop(self) -> None:
        """Ends all streams; browsers connect again."""
        self._is_stopped = True

    async def _stream(self, _request: Request) -> Response:
        return StreamingResponse(self._watch(), media_type="text/event-stream", headers={"Cache-Control": "no-store"})

    async def _watch(self) -> AsyncIterator[str]:
        yield "retry: 1000\n\n"
        last: object = None
        while not self._is_stopped:
            try:
                current: object = await self._store.read(read_change_marker)
            except StoreUnavailableError as error:
                current = str(error)
            if current != last:
                yield "event: changed\ndata:\n\n"
            last = current
            await asyncio.sleep(_POLL_SECONDS)
