"""Who may call which endpoint, and what is written down of it: the one guard of every server.

Each route says what it requires of its caller (`Requires`); one that says nothing is for admins. What changes something
is refused to other web pages, whatever credentials a browser adds. Where nobody needs credentials, only names of this
machine are answered. A refusal is counted and logged, an action is logged and kept in the audit.
"""

import asyncio
import copy
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any, Final

import structlog
from prometheus_client import CollectorRegistry
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from shared.audit import Audit, AuditUnavailableError, Entry, RecentAudit, escaped
from shared.auth import USER, Access, Caller
from shared.other_pages import names_this_machine, sent_by_another_page
from shared.refusals import Reason, Refusals
from shared.secret_file import SecretUnreadableError
from shared.settings import Role

SAFE_METHODS: Final = ("GET", "HEAD", "OPTIONS")
ANONYMOUS: Final = "anonymous"
"""Who calls a server that needs no credentials."""
_CALLER: Final = "keypulse.caller"
_ABOUT: Final = "keypulse.about"
_NOTHING_DONE: Final = (400, 404, 405, 408, 409, 413, 415)
"""Answers to an action that was not even begun."""
_CANCELLED: Final = 499
"""Logged of an action whose end nobody waits for any more; nginx calls that so."""
_HEADERS: Final = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Requires:
    """What an endpoint requires of its caller."""

    needs: Role | None
    """None: nothing but what web.yml asks for."""
    public: bool = False
    """Whether it needs no token; a user of web.yml needs the role all the same."""
    action: str | None = None
    """What the audit calls it; None where it changes nothing of the server's."""
    acts: bool = False
    """Whether a GET of it changes or costs something, too."""
    browser: bool = False
    """Whether a 401 asks a browser for a password."""
    linked: bool = False
    """Whether a link of another site may lead there."""
    access: Access | None = None
    """Who may call it, where that is not who may call the server."""
    refused: Callable[[int], None] = lambda _status: None
    """Called with the status of each refusal."""


class GuardedRoute(Route):
    """A route with what it requires.

    Args:
        path: as Starlette's.
        endpoint: what answers once the caller may call.
        requires: of every request, or what gives that of one.
        methods: as Starlette's.
    """

    def __init__(
        self,
        path: str,
        endpoint: Callable[..., Any],
        requires: Requires | Callable[[Request], Requires],
        methods: Collection[str] = ("GET",),
    ) -> None:
        super().__init__(path, endpoint, methods=methods)
        self.requires = requires


def required(route: Route, request: Request) -> Requires:
    """What a route requires of a request; one that does not say it is for admins."""
    requires = route.requires if isinstance(route, GuardedRoute) else Requires(Role.ADMIN)
    return requires if isinstance(requires, Requires) else requires(request)


class Guard:
    """Of one server, as long as its process lives.

    Args:
        metrics: gets the counter of refusals.
        audit: where actions are kept; None keeps the last ones in memory.
        clock: unix seconds.
        is_ours: whether a header `Host` is a name by which a server without credentials may be asked.
    """

    def __init__(
        self,
        metrics: CollectorRegistry,
        audit: Audit | None = None,
        *,
        clock: Callable[[], float] = time.time,
        is_ours: Callable[[str], bool] = names_this_machine,
    ) -> None:
        self.metrics = metrics
        self.audit: Audit = audit or RecentAudit()
        self.refusals = Refusals(metrics)
        self._clock = clock
        self._is_ours = is_ours

    def before(self, route: Route, access: Callable[[], Access]) -> Route:
        """A copy of the route that is answered only to those who may call it.

        Args:
            route: a GuardedRoute, or one of Starlette's, which is for admins.
            access: gives who may call, where what the route requires does not say it.
        """
        app = route.app

        async def guarded(scope: Scope, receive: Receive, send: Send) -> None:
            request = Request(scope)
            requires = required(route, request)
            caller = self._caller(request, requires, requires.access or access())
            if isinstance(caller, Reason):
                response = self.refuse(request, caller, route.path_format, requires)
                await response(scope, receive, send)
                return
            scope[_CALLER] = caller
            if requires.action is None:
                await app(scope, receive, send)
            else:
                await self._act(app, requires.action, scope, receive, send)

        copied = copy.copy(route)
        copied.app = guarded
        self.refusals.expose([route.path_format])
        return copied

    def refuse(
        self, request: Request, reason: Reason, endpoint: str, requires: Requires, sentence: str | None = None
    ) -> Response:
        """The answer to a request that is refused; it is counted and logged.

        Args:
            request: the request.
            reason: why.
            endpoint: the pattern of its route.
            requires: what the route requires.
            sentence: why, for a person; None takes that of the reason.
        """
        self.refusals.add(peer_of(request) or "unknown", endpoint, reason)
        status, usual = _ANSWERS[reason]
        if requires.access and requires.access.off and not requires.access.tokens:
            usual = requires.access.off
        elif reason is Reason.ROLE and requires.needs:
            usual = f"this needs the role {requires.needs.value}; see auth.roles and auth.tokens"
        challenge = 'Basic realm="keypulse"' if requires.browser else "Bearer"
        headers = {**_HEADERS, "WWW-Authenticate": challenge} if status == 401 else _HEADERS
        requires.refused(status)
        return JSONResponse({"error": sentence or usual}, status_code=status, headers=headers)

    async def record(self, caller: Caller, peer: str | None, action: str, on: str = "", **about: object) -> None:
        """Logs an action, and keeps it."""
        log.info("action", who=caller.name, peer=peer, action=action, on=on, **about)
        try:
            await self.audit.add(Entry(self._clock(), caller.name, peer, action, on))
        except AuditUnavailableError as error:
            log.error("the audit has no entry of an action; the log has", action=action, error=str(error))  # noqa: TRY400 - a trace adds nothing

    def _caller(self, request: Request, requires: Requires, access: Access) -> Caller | Reason:
        """Who calls, or why nobody may."""
        if not access.allows_address(request):
            return Reason.ADDRESS
        acts = requires.acts or request.method not in SAFE_METHODS
        followed = requires.linked and not acts and request.headers.get("sec-fetch-mode") == "navigate"
        if (acts or (requires.needs and not requires.public)) and sent_by_another_page(request) and not followed:
            return Reason.OTHER_PAGE
        user = USER in request.scope and not access.bearer_only
        if not (access.tokens or user or access.off):
            # A page that points its own name here has neither this server's certificate nor a user's password.
            fenced = acts or not requires.public
            if requires.needs and fenced and request.url.scheme != "https" and not self._named_ours(request):
                return Reason.OTHER_HOST
            return Caller(ANONYMOUS, Role.ADMIN)
        if requires.needs is None or (requires.public and not user):
            return Caller(ANONYMOUS, None)
        return _in_role(request, requires.needs, access)

    def _named_ours(self, request: Request) -> bool:
        return self._is_ours(request.headers.get("host", ""))

    async def _act(self, app: ASGIApp, action: str, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers, and records the action before the answer begins."""
        request = Request(scope)
        recorded = False

        async def record(status: int) -> None:
            nonlocal recorded
            if recorded:
                return
            recorded = True
            about = dict(scope.get(_ABOUT, {}))
            on = about.pop("on", None) or "/".join(escaped(str(value)) for value in request.path_params.values())
            if status in _NOTHING_DONE:
                log.info("action refused", who=caller_of(request).name, action=action, on=on, status=status, **about)
                return
            await self.record(caller_of(request), peer_of(request), action, on, status=status, **about)

        async def sending(message: Message) -> None:
            if message["type"] == "http.response.start":
                await record(message["status"])
            await send(message)

        try:
            await app(scope, receive, sending)
        except asyncio.CancelledError:
            await record(_CANCELLED)
            raise
        except Exception:
            await record(500)
            raise


def describe(request: Request, **about: object) -> None:
    """Says what an action is about: `on` for the audit, the rest for the log. Texts of a caller's own are escaped."""
    known = request.scope.setdefault(_ABOUT, {})
    known |= {key: escaped(value) if isinstance(value, str) else value for key, value in about.items()}


def caller_of(request: Request) -> Caller:
    """Who calls, by the guard."""
    caller: Caller = request.scope[_CALLER]
    return caller


def peer_of(request: Request) -> str | None:
    """The address that calls."""
    return request.client.host if request.client else None


def _in_role(request: Request, needs: Role, access: Access) -> Caller | Reason:
    try:
        caller = access.caller(request)
    except SecretUnreadableError:
        return Reason.UNREADABLE
    if caller is None:
        return Reason.WRONG if request.headers.get("authorization") else Reason.MISSING
    if caller.role is None or not caller.role.includes(needs):
        return Reason.ROLE
    return caller


_CREDENTIALS: Final = "a valid token is needed: Authorization: Bearer TOKEN"
_ANSWERS: Final[dict[Reason, tuple[int, str]]] = {
    Reason.MISSING: (401, _CREDENTIALS),
    Reason.WRONG: (401, _CREDENTIALS),
    Reason.ROLE: (403, "the role of this caller does not allow it"),
    Reason.ADDRESS: (403, "this address may not send alerts; see auth.allow_from"),
    Reason.UNREADABLE: (503, "the token file of this server cannot be read"),
    Reason.BUSY: (503, "too many passwords are being checked; try again"),
    Reason.OTHER_PAGE: (403, "another web page may not do this"),
    Reason.OTHER_HOST: (
        403,
        "without credentials, only names of this machine are answered: ask for 127.0.0.1, or set auth.admin_token_file",
    ),
}
