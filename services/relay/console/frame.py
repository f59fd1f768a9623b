"""What every page of the console has: its frame, its answers, and what keeps it live.

`Console` takes each route once, with its entry in the navigation, its role and its action for the audit. A handler
returns values, and the answer is a template or JSON; an error carries its status. A fragment is a block of a page's
template, in an element whose id is the block's name: htmx asks for the page's address with that id in `HX-Target`.

`GET /events` tells open pages that something has changed, as server-sent events
(https://html.spec.whatwg.org/multipage/server-sent-events.html). `changed` has no content: a page then loads its own
fragments again. One poll of the database serves all viewers, and only while there are any; it sees what other replicas
and commands commit, too. A stream begins with `changed`, since a page may be older than its connection. `heartbeat`
lets a page notice a connection that is dead without an end; the credentials are checked again then. No stream lasts
for long, so that a new connection passes all checks. Its last event, `reconnect`, lets a page connect again without an
alarm. A page whose stream ended asks with `?check=1` why, without opening another one.
"""

import asyncio
import time
from collections import Counter, OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cache
from pathlib import Path
from typing import Any, Final, Generic, NamedTuple, TypeVar
from urllib.parse import quote, unquote

import msgspec
import structlog
from jinja2 import Environment
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, RedirectResponse, Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from services.relay.metrics import Metrics
from services.relay.outbox.store import Store, StoreUnavailableError
from services.relay.outbox.tables import DeliveryState, clean_for_database
from services.relay.text import format_seconds
from shared.config.server_settings import Role
from shared.http.access import (
    ProtectedRoute,
    RefusalReason,
    RouteRequirements,
    describe_action,
    get_caller,
    get_path_and_query,
    is_still_authorized,
)
from shared.http.authentication import Endpoint, get_csrf_token, get_session
from shared.http.json_api import RefusedError, build_error_response, read_form, read_request
from shared.http.untrusted_json import UntrustedJsonError, decode_json
from shared.web.pages import SECURITY_HEADERS, SHARED_ASSETS, StaticFiles, add_security_headers, create_templates

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
    """The endpoint of the stream, and the poll behind it."""

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

    async def respond(self, request: Request) -> Response:
        """`GET /events`."""
        is_check, caller = "check" in request.query_params, get_caller(request).name
        if reason := self._find_refusal(caller):
            if not is_check:
                self._metrics.refused_streams.inc()
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
        self._metrics.streams.set(self._streams.total())
        if self._polling is None:
            self._polling = asyncio.create_task(self._poll(), name="console changes")
        try:
            yield
        finally:
            self._streams -= Counter({caller: 1})  # without the callers that have none
            self._metrics.streams.set(self._streams.total())
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


_FOLDER: Final = Path(__file__).parent
_TEMPLATE_FOLDERS: Final = sorted({file.parent for file in _FOLDER.parent.glob("*/*.html.j2")})
"""A page's template stands beside its module, in the folder of its capability."""
FRAME_POLICY: Final = f"{SECURITY_HEADERS['Content-Security-Policy']}; frame-src 'self'"
"""The Content-Security-Policy of a page with a mail in a frame."""
_FLASH_COOKIE: Final = "keypulse_done"
_FLASH_SECONDS: Final = 60
_SHARED_SECONDS: Final = 1.0
"""For which a rendered fragment is current where no change is known."""
_MAX_SHARED: Final = 20
"""Fragments of a page, with different queries, of which the last one is stored."""
_MAX_RENDERS: Final = 4
"""Pages that are rendered at the same time; threads, which share the processor with the intake."""


class NavigationEntry(NamedTuple):
    path: str
    title: str


@dataclass(frozen=True, slots=True)
class Done:
    """What an action did: a page leads to `to`, and says `message` there once; the API answers with `body`."""

    message: str
    to: str
    body: object = None
    status: int = 200


@dataclass(frozen=True, slots=True)
class View:
    """A template's values, where the response is not simply 200, or comes from an action."""

    values: Mapping[str, Any]
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    template: str = ""
    """Empty for that of the route."""


class CredentialRefusedError(RefusedError):
    """What somebody shows as a credential is not valid."""

    def __init__(self, text: str, status: int, reason: RefusalReason | None = None) -> None:
        super().__init__(text, status)
        self.reason = reason


Handler = Callable[[Request], Awaitable[Any]]
"""Returns a template's values, also as a View; Done, of an action; or a Response. Raises RefusedError."""
Encode = Callable[[Any], object]
M = TypeVar("M", bound=msgspec.Struct)


def is_api(request: Request) -> bool:
    """Whether a program asks, so that the answer is JSON."""
    return str(request.scope["path"]).startswith("/api/")


async def read_fields(request: Request, model: type[M], expected: str, max_bytes: int = 4096) -> M:
    """The fields of a form, or of the API's JSON, where an empty body has none. Raises RefusedError.

    Args:
        request: of the action.
        model: its fields; those of a form are texts, which are converted.
        expected: what the body should be, such as `{"episode": NUMBER}`.
        max_bytes: of the body.
    """
    if not is_api(request):
        form = await read_form(request, max_bytes)
        try:
            return msgspec.convert(
                {name: form[name] for name in model.__struct_fields__ if name in form}, model, strict=False
            )
        except msgspec.ValidationError:
            raise RefusedError("the form is not complete; reload the page, and try again") from None
    body = await read_request(request, max_bytes, f"expected {expected} in at most {max_bytes} bytes")
    try:
        return decode_json(msgspec.json.Decoder(model), body or b"{}")
    except UntrustedJsonError as error:
        raise RefusedError(str(error)) from None


@cache
def _create_templates() -> Environment:
    """The pages' templates, each compiled once, and not again when the relay reads its configuration again."""
    templates = create_templates(_TEMPLATE_FOLDERS, {}, {"format_seconds": format_seconds})
    templates.globals["parts"] = templates.get_template("parts.html.j2").module
    return templates


class Console:
    """Adds the routes of pages and of the API, and answers: with a template, JSON, or why a request is refused.

    Args:
        clock: unix seconds, the server's.
        page_links: to other pages, by their text.
        changes: says whether something has changed since a fragment was rendered.
    """

    def __init__(self, clock: Callable[[], float], page_links: Mapping[str, str], changes: ChangeStream) -> None:
        files = StaticFiles(SHARED_ASSETS, _FOLDER / "assets")
        self.routes = [
            ProtectedRoute("/console/{name}", files.serve, RouteRequirements(None, is_public=True)),
            ProtectedRoute("/events", changes.respond, RouteRequirements(Role.VIEWER)),
        ]
        self._changes = changes
        self.navigation: list[NavigationEntry] = []
        self._clock = clock
        self._page_links = page_links
        self._templates = _create_templates()
        self._renders = asyncio.Semaphore(_MAX_RENDERS)
        self.show_missing = self._answer(_refuse_unknown)
        """The page of an address that leads nowhere."""

    def page(
        self,
        path: str,
        read: Handler,
        template: str = "",
        *,
        title: str = "",
        role: Role = Role.VIEWER,
        encode: Encode | None = None,
        shared_fragment: str = "",
    ) -> None:
        """A page, which a link on another site may open.

        Args:
            path: its address.
            read: gives the template's values.
            template: `NAME.html.j2`.
            title: in the navigation; empty for a page that others lead to.
            role: who may read it.
            encode: makes JSON of the same values, for `/api` and the path; None where the API has no such endpoint.
            shared_fragment: the part that is loaded again; it has nothing of one viewer, and is rendered once for all.
        """
        answer = self._answer(read, template, shared_fragment)
        self.routes.append(ProtectedRoute(path, answer, _build_page_requirements(role)))
        if title:
            self.navigation.append(NavigationEntry(path, title))
        if encode:
            self.api(path, read, role=role, encode=encode)

    def api(
        self,
        path: str,
        handler: Handler,
        *,
        role: Role = Role.VIEWER,
        action: str | None = None,
        encode: Encode | None = None,
        methods: Collection[str] = ("GET",),
    ) -> None:
        """An endpoint at `/api` and the path; with the name of an action it is posted to, and stands in the audit."""
        requirements = RouteRequirements(role, action=action)
        methods = methods if action is None else ["POST"]
        self.routes.append(ProtectedRoute(f"/api{path}", self._answer_program(handler, encode), requirements, methods))

    def action(
        self,
        path: str,
        act: Handler,
        role: Role,
        name: str,
        *,
        refused: str,
        back: str | None = None,
        has_api: bool = True,
    ) -> None:
        """An action: a POST of a form, and the same at `/api`.

        Args:
            path: its address.
            act: does it, and returns Done; or a View, where it is not done yet.
            role: who may.
            name: in the audit.
            refused: begins what a page says of an action that changed nothing; it may have the path's parameters.
            back: where that is said; None is the path without its last part.
            has_api: whether programs may, too.
        """
        handler = self._return_to(act, back if back is not None else path.rpartition("/")[0], refused)
        self.routes.append(ProtectedRoute(path, self._answer(handler), RouteRequirements(role, action=name), ["POST"]))
        if has_api:
            self.api(path, act, role=role, action=name)

    def post(self, path: str, read: Handler, template: str = "") -> None:
        """A page that is asked for by a form, because that is large; it changes nothing, and so it is no action."""
        self.routes.append(ProtectedRoute(path, self._answer(read, template), _build_page_requirements(), ["POST"]))

    def public(self, path: str, handler: Handler, template: str = "", methods: Collection[str] = ("GET",)) -> None:
        """A page for everybody, which checks credentials itself."""
        requirements = RouteRequirements(None, is_public=True)
        self.routes.append(ProtectedRoute(path, self._answer(handler, template), requirements, methods))

    def _answer(self, read: Handler, template: str = "", shared_fragment: str = "") -> Endpoint:
        fragments: OrderedDict[bytes, SharedRead[Response]] = OrderedDict()

        async def answer(request: Request) -> Response:
            try:
                if not shared_fragment or _get_fragment(request) != shared_fragment:
                    return await show(request)
                query = request.scope.get("query_string", b"")
                shared = fragments.setdefault(query, SharedRead(show, _SHARED_SECONDS))
                fragments.move_to_end(query)
                if len(fragments) > _MAX_SHARED:
                    fragments.popitem(last=False)
                rendered = await shared.get(self._changes.version, request)
                return HTMLResponse(rendered.body, status_code=rendered.status_code)
            except RefusedError as error:  # its page is this viewer's own
                values = {"message": str(error), "hint": error.hint, "parent": self._find_parent(request)}
                return await self.render(request, "error.html.j2", values, status=error.status)
            except StoreUnavailableError as error:
                return await self.render(request, "unavailable.html.j2", {"error": str(error)}, status=503)

        async def show(request: Request) -> Response:
            found = await read(request)
            if isinstance(found, Response):
                return found
            view = found if isinstance(found, View) else View(found)
            response = await self.render(request, view.template or template, view.values, status=view.status)
            response.headers.update(view.headers)
            return response

        return add_security_headers(answer)

    def _answer_program(self, handler: Handler, encode: Encode | None) -> Endpoint:
        async def answer(request: Request) -> Response:
            try:
                found = await handler(request)
            except RefusedError as error:
                response = build_error_response(error.status, str(error), error.hint)
                response.headers.update(error.headers or {})
                return response
            except StoreUnavailableError as error:
                return build_error_response(503, f"the outbox cannot be used now, try again: {error}")
            if isinstance(found, Response):
                return found
            if isinstance(found, Done):
                return JSONResponse(found.body, status_code=found.status)
            return JSONResponse(encode(found) if encode else found)

        return answer

    def _return_to(self, act: Handler, back: str, refused: str) -> Handler:
        """The action of a page: it leads to another page, which says what was done, or why nothing was."""

        async def answer(request: Request) -> Response:
            try:
                done = await act(request)
            except RefusedError as error:
                message = f"{refused.format(**request.path_params)}: {str(error).rstrip('.')}."
                describe_action(request, is_stored=True, error=message)  # it has no entry in the audit
                return redirect(request, back.format(**_quote_parts(request)), message)
            return redirect(request, done.to, done.message) if isinstance(done, Done) else done

        return answer

    def _find_parent(self, request: Request) -> NavigationEntry:
        path = f"{request.scope['path']}/"
        return next((each for each in self.navigation if path.startswith(f"{each.path}/")), NavigationEntry("/", "Now"))

    def render_refusal(self, status: int, message: str) -> Response:
        """The page for a browser whose request is refused; it needs no caller."""
        html = self._templates.get_template("refused.html.j2").render(status=status, message=message)
        return HTMLResponse(html, status_code=status, headers=SECURITY_HEADERS)

    async def render(
        self, request: Request, template: str, values: Mapping[str, Any], *, status: int = 200
    ) -> Response:
        """The page, or the fragment that htmx asks for."""
        flash = request.cookies.get(_FLASH_COOKIE)
        caller = get_caller(request)
        context = {
            **values,
            "now": self._clock(),
            "path": request.scope["path"],
            "page_links": self._page_links,
            "navigation": self.navigation,
            "address": get_path_and_query(request),
            "caller": caller,
            "is_responder": caller.role is not None and caller.role.includes(Role.RESPONDER),
            "is_admin": caller.role is not None and caller.role.includes(Role.ADMIN),
            "session": get_session(request),
            "csrf_token": get_csrf_token(request),
            "flash": unquote(flash) if flash else None,
        }
        fragment = _get_fragment(request)
        async with self._renders:
            html = await run_in_threadpool(self._render, template, context, fragment)
        # Without a referrer, a browser would name no `Origin` with the form of a page over plain http.
        response = HTMLResponse(html, status_code=status, headers={"Referrer-Policy": "same-origin"})
        if flash and fragment is None:
            response.delete_cookie(_FLASH_COOKIE)
        return response

    def _render(self, name: str, context: dict[str, Any], fragment: str | None) -> str:
        template = self._templates.get_template(name)
        if fragment is None or fragment not in template.blocks:
            return template.render(context)
        return "".join(template.blocks[fragment](template.new_context(context)))


def _build_page_requirements(role: Role = Role.VIEWER) -> RouteRequirements:
    return RouteRequirements(role, challenges_browser=True, allows_cross_site_link=True)


def _get_fragment(request: Request) -> str | None:
    """The block that htmx asks for; None for the whole page."""
    return request.headers.get("hx-target") if "hx-request" in request.headers else None


async def _refuse_unknown(_request: Request) -> Response:
    raise RefusedError("there is no such page", 404, hint="The pages are in the navigation above.")


def _quote_parts(request: Request) -> dict[str, str]:
    return {name: quote(clean_for_database(part), safe="") for name, part in request.path_params.items()}


def redirect(request: Request, to: str, message: str) -> Response:
    """Leads the browser from an action to a page of ours, which shows the message once.

    Args:
        request: of the action.
        to: a path of ours, with its query.
        message: one sentence: what was done, or why not.
    """
    response = RedirectResponse(to, status_code=303)
    response.set_cookie(
        _FLASH_COOKIE,
        quote(message[:300]),
        max_age=_FLASH_SECONDS,
        httponly=True,
        samesite="strict",
        secure=request.scope.get("scheme") == "https",
    )
    return response


class HealthStatus(StrEnum):
    """The worst first; the value is the CSS class."""

    FAILING = "failing"
    DEGRADED = "degraded"
    UNKNOWN = "unknown"
    HEALTHY = "healthy"


def find_worst(statuses: Iterable[HealthStatus]) -> HealthStatus:
    """The worst of them; unknown if there is none."""
    order = list(HealthStatus)
    return min(statuses, key=order.index, default=HealthStatus.UNKNOWN)


DELIVERY_LIGHTS: Final[Mapping[DeliveryState, HealthStatus]] = {
    DeliveryState.DELIVERED: HealthStatus.HEALTHY,
    DeliveryState.RETRYING: HealthStatus.DEGRADED,
    DeliveryState.DEAD: HealthStatus.FAILING,
}
"""The light of a delivery's state; unknown for the others."""


T = TypeVar("T")


class SharedRead(Generic[T]):
    """A read and its last result.

    Args:
        read: reads, with what is given to `get`; of several at once, with that of the first.
        max_age: seconds for which a result counts.
    """

    def __init__(self, read: Callable[..., Awaitable[T]], max_age: float) -> None:
        self._read = read
        self._max_age = max_age
        self._task: asyncio.Future[T] | None = None
        self._version = 0
        self._started_at = 0.0

    async def get(self, version: int = 0, *arguments: object) -> T:
        """A result that was read for this version or a later one, and is not too old. Raises what `read` raises.

        Args:
            version: of what is read, where a change of it is known.
            arguments: for `read`.
        """
        now = asyncio.get_running_loop().time()
        task = self._task
        if task is None or version > self._version or now - self._started_at > self._max_age or _has_failed(task):
            self._version, self._started_at = version, now
            task = self._task = asyncio.ensure_future(self._read(*arguments))
            task.add_done_callback(_has_failed)  # the caller may be gone
        return await asyncio.shield(task)


def _has_failed(task: "asyncio.Future[T]") -> bool:
    return task.done() and (task.cancelled() or task.exception() is not None)
