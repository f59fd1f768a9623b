"""`GET /events`: tells open pages that something they show has changed, as server-sent events.

The event `changed` has no content: a page then loads its own fragments again. One poll of the database serves all
viewers, and only while there are any; it sees what other replicas and commands commit, too. A stream begins with
`changed`, since a page may be older than its connection. Between two of them is a second at least.

`heartbeat` comes every few seconds, so that a page notices a connection that is dead without an end. The credentials
are checked again then. No stream lasts for long, so that a new connection passes all checks. Its last event,
`reconnect`, lets a page connect again without an alarm. A page whose stream ended asks with `?check=1` why, without
opening another one. https://html.spec.whatwg.org/multipage/server-sent-events.html
"""

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractContextManager, asynccontextmanager, contextmanager, suppress
from typing import Any, Final

import structlog
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from services.relay.metrics import Metrics
from services.relay.outbox.engine.store import Store
from services.relay.outbox.engine.work_queue import StoreUnavailableError
from shared.config.server_settings import Role
from shared.http.authorization import ProtectedRoute, RouteRequirements, get_caller, is_still_authorized
from shared.http.json_api import build_error_response

MAX_STREAMS: Final = 200
"""Pages that one relay keeps live; a further one is refused, and loads its fragments now and then."""
MAX_STREAMS_OF_CALLER: Final = 20
"""Of these, for one caller."""
_POLL_SECONDS: Final = 0.5
_MIN_INTERVAL: Final = 1.0
"""Seconds between two `changed` of one stream, at least."""
_HEARTBEAT_SECONDS: Final = 10.0
_MAX_SECONDS: Final = 300.0
"""After which a stream ends, and its browser connects again."""
_RETRY_MILLISECONDS: Final = 1000
_CHANGED: Final = "event: changed\ndata:\n\n"
_RECONNECT: Final = "event: reconnect\ndata:\n\n"
_HEARTBEAT: Final = "event: heartbeat\ndata:\n\n"

log = structlog.get_logger(__name__)


class ChangeStream:
    """The endpoint of the stream, and the poll behind it.

    Args:
        store: the outbox.
        metrics: counts the streams.
        clock: seconds, monotonic.
    """

    def __init__(self, store: Store, metrics: Metrics, clock: Callable[[], float] = time.monotonic) -> None:
        self.version = 0
        """Greater after each change that was noticed."""
        self._store = store
        self._metrics = metrics
        self._clock = clock
        self._marker: object = None
        self._changed = asyncio.Event()
        """Set at the next change, and at the stop; then another one takes its place."""
        self._streams: Counter[str] = Counter()
        """How many each caller has."""
        self._polling: asyncio.Task[None] | None = None
        self._is_stopped = False

    def build_routes(self) -> list[ProtectedRoute]:
        """The route of the stream."""
        return [ProtectedRoute("/events", self._respond, RouteRequirements(Role.VIEWER))]

    @asynccontextmanager
    async def run(self) -> AsyncIterator[None]:
        """Streams while the body runs, which ends for a reload, too: then browsers find the next one."""
        try:
            yield
        finally:
            self.stop()

    def touch(self) -> None:
        """Something has changed that the outbox does not hold."""
        self.version += 1
        self._wake()

    def stop(self) -> None:
        """Ends all streams; browsers connect again. There is no other stream afterwards."""
        self._is_stopped = True
        if self._polling is not None:
            self._polling.cancel()
        self._wake()

    async def _respond(self, request: Request) -> Response:
        is_check, caller = "check" in request.query_params, get_caller(request).name
        if reason := self._find_refusal(caller):
            if not is_check:
                self._metrics.count_refused_stream()
            return build_error_response(503, f"{reason}; this page is loaded again now and then")
        if is_check:
            return Response(status_code=204)
        headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}  # a proxy must not keep events back
        return _CountedResponse(
            self._stream(request), media_type="text/event-stream", headers=headers, count=self._count(caller)
        )

    def _find_refusal(self, caller: str) -> str | None:
        if self._is_stopped:
            return "the relay is stopping"
        if self._streams.total() >= MAX_STREAMS:
            return f"{MAX_STREAMS} pages are open already"
        if self._streams[caller] >= MAX_STREAMS_OF_CALLER:
            return f"{MAX_STREAMS_OF_CALLER} pages of {caller} are open already"
        return None

    async def _stream(self, request: Request) -> AsyncIterator[str]:
        yield f"retry: {_RETRY_MILLISECONDS}\n\n"
        ends, sent = self._clock() + _MAX_SECONDS, -1
        heartbeat_at = self._clock() + _HEARTBEAT_SECONDS
        while not self._is_stopped and (now := self._clock()) < ends:
            if now >= heartbeat_at:  # also while changes never stop, as in a storm
                if not await is_still_authorized(request):
                    log.info("stream ended: its credentials are no longer valid")
                    return
                heartbeat_at = self._clock() + _HEARTBEAT_SECONDS
                yield _HEARTBEAT
            elif sent != self.version:
                sent = self.version
                yield _CHANGED
                await asyncio.sleep(_MIN_INTERVAL)
            else:
                await self._wait_for_change(heartbeat_at - now)
        yield _RECONNECT

    async def _wait_for_change(self, seconds: float) -> None:
        """Until something changes, or the relay stops, or the time is over."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._changed.wait()

    @contextmanager
    def _count(self, caller: str) -> Iterator[None]:
        """Count a stream while the body runs; poll while there is any."""
        self._streams[caller] += 1
        self._metrics.set_streams(self._streams.total())
        if self._polling is None:
            self._polling = asyncio.create_task(self._poll(), name="console changes")
        try:
            yield
        finally:
            self._streams -= Counter({caller: 1})  # which leaves out whoever has none
            self._metrics.set_streams(self._streams.total())
            if not self._streams and self._polling is not None:
                self._polling.cancel()
                self._polling = None

    async def _poll(self) -> None:
        while True:
            marker: object
            try:
                marker = self._store.error, await self._store.read_change_marker()
            except StoreUnavailableError as error:
                marker = str(error)
            except Exception:
                log.exception("unexpected error in the poll for changes; it continues")
                marker = self._marker
            if marker != self._marker:
                self._marker = marker
                self.touch()
            await asyncio.sleep(_POLL_SECONDS)

    def _wake(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()


class _CountedResponse(StreamingResponse):
    """A stream that is counted from the moment it is allowed, before its first byte: many at once pass no limit."""

    def __init__(self, *arguments: Any, count: AbstractContextManager[None], **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._count = count

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with self._count:
            await super().__call__(scope, receive, send)
