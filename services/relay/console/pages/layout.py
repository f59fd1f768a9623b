"""What every page of the console has: the frame, its navigation, the caller, the message of the last action.

A fragment is a block of a page's template, in an element whose id is the block's name. htmx asks for the page's own
address with that id in `HX-Target`, and gets the block alone.
"""

import asyncio
from collections.abc import Awaitable, Callable, Collection, Mapping
from functools import cache
from pathlib import Path
from typing import Any, Final, NamedTuple
from urllib.parse import quote, unquote

from jinja2 import Environment
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response

from services.relay.outbox.engine.work_queue import StoreUnavailableError
from services.relay.text import format_seconds
from shared.config.server_settings import Role
from shared.http.authentication import Endpoint, get_session
from shared.http.authorization import ProtectedRoute, RouteRequirements, describe_action, get_caller, get_path_and_query
from shared.http.csrf_token import get_csrf_token
from shared.web.pages import SECURITY_HEADERS, SHARED_ASSETS, StaticFiles, add_security_headers, create_templates

_FOLDER: Final = Path(__file__).parents[1]
FRAME_POLICY: Final = f"{SECURITY_HEADERS['Content-Security-Policy']}; frame-src 'self'"
"""The Content-Security-Policy of a page with a mail in a frame."""
_FLASH_COOKIE: Final = "keypulse_done"
_FLASH_SECONDS: Final = 60
_MAX_RENDERS: Final = 4
"""Pages that are rendered at the same time; threads, which share the processor with the intake."""


class NavigationEntry(NamedTuple):
    """A page in the navigation."""

    path: str
    title: str


NAVIGATION: Final = (
    NavigationEntry("/", "Now"),
    NavigationEntry("/incidents", "Incidents"),
    NavigationEntry("/deliveries", "Deliveries"),
    NavigationEntry("/quarantine", "Quarantine"),
    NavigationEntry("/channels", "Channels"),
    NavigationEntry("/routes", "Routes"),
    NavigationEntry("/report", "Report"),
    NavigationEntry("/audit", "Audit"),
)

Handler = Callable[[Request], Awaitable[Response]]


@cache
def _create_templates() -> Environment:
    """The pages' templates, each compiled once, and not again when the relay reads its configuration again."""
    values = {"navigation": NAVIGATION, "format_seconds": format_seconds}
    templates = create_templates(_FOLDER / "templates", {}, values)
    templates.globals["parts"] = templates.get_template("parts.html.j2").module
    return templates


class PageRenderer:
    """Renders the pages' templates.

    Args:
        clock: unix seconds, the server's.
        page_links: to other pages, by their text.
    """

    def __init__(self, clock: Callable[[], float], page_links: Mapping[str, str]) -> None:
        self._clock = clock
        self._page_links = page_links
        self._files = StaticFiles(SHARED_ASSETS, _FOLDER / "assets")
        self._templates = _create_templates()
        self._renders = asyncio.Semaphore(_MAX_RENDERS)

    def build_routes(self) -> list[ProtectedRoute]:
        """The styles and scripts of the pages."""
        return [ProtectedRoute("/console/{name}", self._files.serve, RouteRequirements(None, is_public=True))]

    def build_page_route(
        self, path: str, handler: Handler, role: Role = Role.VIEWER, methods: Collection[str] = ("GET",)
    ) -> ProtectedRoute:
        """A page, which a link on another site may open; by POST where a form that changes nothing is large."""
        requirements = RouteRequirements(role, challenges_browser=True, allows_cross_site_link=True)
        return ProtectedRoute(path, self.wrap_page(handler), requirements, methods)

    def build_action_route(self, path: str, handler: Handler, role: Role, action: str) -> ProtectedRoute:
        """An action of a page: a POST of a form."""
        requirements = RouteRequirements(role, action=action)
        return ProtectedRoute(path, self.wrap_page(handler), requirements, ["POST"])

    def wrap_page(self, handler: Handler) -> Endpoint:
        """The handler, with the security headers, and with a page of its own while the outbox is unavailable."""
        return add_security_headers(self._show_unavailable(handler))

    def render_refusal(self, status: int, message: str) -> Response:
        """The page for a browser whose request is refused; it needs no caller."""
        html = self._templates.get_template("refused.html.j2").render(status=status, message=message)
        return HTMLResponse(html, status_code=status, headers=SECURITY_HEADERS)

    async def show_missing(self, request: Request) -> Response:
        """The page of an address that leads nowhere."""
        return await self.render(request, "missing.html.j2", {}, status=404)

    async def render(
        self, request: Request, template: str, values: Mapping[str, Any], *, status: int = 200
    ) -> Response:
        """The page, or the fragment that htmx asks for.

        Args:
            request: of an authorized caller.
            template: `NAME.html.j2`.
            values: of its own; the frame's are added.
            status: of the response.
        """
        flash = request.cookies.get(_FLASH_COOKIE)
        caller = get_caller(request)
        context = {
            **values,
            "now": self._clock(),
            "path": request.scope["path"],
            "page_links": self._page_links,
            "address": get_path_and_query(request),
            "caller": caller,
            "is_responder": caller.role is not None and caller.role.includes(Role.RESPONDER),
            "is_admin": caller.role is not None and caller.role.includes(Role.ADMIN),
            "session": get_session(request),
            "csrf_token": get_csrf_token(request),
            "flash": unquote(flash) if flash else None,
        }
        fragment = request.headers.get("hx-target") if "hx-request" in request.headers else None
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

    def _show_unavailable(self, handler: Handler) -> Endpoint:
        async def answer(request: Request) -> Response:
            try:
                return await handler(request)
            except StoreUnavailableError as error:
                return await self.render(request, "unavailable.html.j2", {"error": str(error)}, status=503)

        return answer


def redirect_refused(request: Request, to: str, message: str) -> Response:
    """As `redirect`, after an action that changed nothing: it has no entry in the audit."""
    describe_action(request, is_stored=True, error=message)
    return redirect(request, to, message)


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
