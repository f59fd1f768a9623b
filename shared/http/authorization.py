"""Decides who may call which endpoint, and records refusals and actions.

Each route declares its requirements (`RouteRequirements`); a route without them is for admins. Requests with side
effects are refused to other web pages, whatever credentials a browser adds. A server without credentials answers only
to the names of its own machine. A refusal is counted, and logged with the peer's address at most once in 10 s for each
address. An action is logged and stored in the audit log.
"""

import asyncio
import copy
import time
from collections.abc import Awaitable, Callable, Collection
from dataclasses import dataclass
from typing import Any, Final

import structlog
from prometheus_client import CollectorRegistry
from starlette.datastructures import MutableHeaders
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from shared.config.secret_file import SecretUnreadableError
from shared.config.server_settings import Role
from shared.http.audit_log import AuditEntry, AuditLog, AuditUnavailableError, InMemoryAuditLog, escape_text
from shared.http.authentication import (
    SESSION_SCOPE_KEY,
    USER_HASH_SCOPE_KEY,
    USER_SCOPE_KEY,
    AccessPolicy,
    Caller,
    get_session,
)
from shared.http.csrf import is_cross_origin, is_loopback_host
from shared.http.csrf_token import check_csrf_token, send_csrf_cookie
from shared.http.password_check import find_passwords
from shared.http.refusals import REFUSAL_RESPONSES, RefusalCounter, RefusalReason
from shared.http.sessions import IGNORED_HEADER_SCOPE_KEY, Sessions, SessionsUnavailableError

OTHER_ENDPOINT: Final = "other"
"""The endpoint label of a path without a route."""

log = structlog.get_logger(__name__)


SAFE_METHODS: Final = ("GET", "HEAD", "OPTIONS")
ANONYMOUS_NAME: Final = "anonymous"
"""The caller's name on a server that needs no credentials."""
_CALLER_SCOPE_KEY: Final = "keypulse.caller"
_RECHECK_SCOPE_KEY: Final = "keypulse.recheck"
_UNREADABLE_SCOPE_KEY: Final = "keypulse.session_unreadable"
_IS_ENCRYPTED_SCOPE_KEY: Final = "keypulse.is_encrypted"
"""Whether the server itself got the request by TLS."""
_PROGRAM_PATHS: Final = ("/api/", "/-/")
"""What programs call, too; everything else is a page."""
_ACTION_SCOPE_KEY: Final = "keypulse.about"
_NOT_EXECUTED_STATUSES: Final = (400, 404, 405, 408, 409, 413, 415, 429)
"""Statuses of an action that was refused before it began."""
_CLIENT_CLOSED_REQUEST: Final = 499
"""Logged for an action whose client disconnected, as nginx does."""
_HEADERS: Final = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
"""Of every answer to a caller with a role, and of every refusal; a header of the endpoint's own stays."""


@dataclass(frozen=True, slots=True)
class RouteRequirements:
    """The requirements of an endpoint."""

    role: Role | None
    """None: no more than web.yml requires."""
    is_public: bool = False
    """Whether it needs no token; where web.yml has users, the role is needed all the same."""
    action: str | None = None
    """The action's name in the audit log; None if it changes nothing."""
    has_side_effects: bool = False
    """Whether even a GET changes or costs something."""
    challenges_browser: bool = False
    """Whether a 401 makes a browser prompt for a password."""
    allows_cross_site_link: bool = False
    """Whether a link on another site may lead there."""
    access_policy: AccessPolicy | None = None
    """Overrides the server's policy."""
    on_refusal: Callable[[int], None] = lambda _status: None
    """Called with the status of each refusal."""


class ProtectedRoute(Route):
    """A route with its requirements.

    Args:
        path: as in Starlette.
        endpoint: handles authorized requests.
        requirements: of every request, or a function of the request.
        methods: as in Starlette.
    """

    def __init__(
        self,
        path: str,
        endpoint: Callable[..., Any],
        requirements: RouteRequirements | Callable[[Request], RouteRequirements],
        methods: Collection[str] = ("GET",),
    ) -> None:
        super().__init__(path, endpoint, methods=methods)
        self.requirements = requirements


def get_requirements(route: Route, request: Request) -> RouteRequirements:
    """Return a route's requirements for a request; without its own it is for admins."""
    requires = route.requirements if isinstance(route, ProtectedRoute) else RouteRequirements(Role.ADMIN)
    return requires if isinstance(requires, RouteRequirements) else requires(request)


class Authorizer:
    """Authorizes the requests of one server, across reloads.

    Args:
        metrics: registers the counter of refusals.
        audit_log: stores actions; None keeps the last ones in memory.
        clock: unix seconds.
        is_own_name: whether a server without credentials answers to this `Host`.
    """

    def __init__(
        self,
        metrics: CollectorRegistry,
        audit_log: AuditLog | None = None,
        *,
        clock: Callable[[], float] = time.time,
        is_own_name: Callable[[str], bool] = is_loopback_host,
    ) -> None:
        self.metrics = metrics
        self.sessions: Sessions | None = None
        """The sessions of people who log in; None on a server without a login page."""
        self.audit_log: AuditLog = audit_log or InMemoryAuditLog()
        self.refusals = RefusalCounter(metrics)
        self._clock = clock
        self._is_own_name = is_own_name

    def protect(self, route: Route, get_access_policy: Callable[[], AccessPolicy]) -> Route:
        """Return a copy of the route that only authorized callers reach.

        Args:
            route: a ProtectedRoute; a plain route of Starlette is for admins.
            get_access_policy: the server's policy, if the route's requirements have none.
        """
        app = route.app

        async def authorize_and_run(scope: Scope, receive: Receive, send: Send) -> None:
            request = Request(scope)
            requires = get_requirements(route, request)
            access_policy = requires.access_policy or get_access_policy()
            if self.sessions and requires.access_policy is None:
                send = send_csrf_cookie(request, send)
                if requires.role or requires.is_public:
                    await self.load_session(request)
                    self._count_ignored_header(request, route.path_format)
            if requires.role and requires.access_policy is None:
                send = _add_headers(send)
            caller = self._authorize(request, requires, access_policy)
            if isinstance(caller, Caller) and self._needs_csrf_token(request, route.path_format, requires):
                is_valid, receive = await check_csrf_token(request, receive)
                caller = caller if is_valid else RefusalReason.CSRF
            if isinstance(caller, RefusalReason):
                response = self.refuse(request, caller, route.path_format, requires)
                await response(scope, receive, send)
                return

            async def recheck() -> bool:
                if scope.pop(SESSION_SCOPE_KEY, None):
                    await self.load_session(request)
                caller = self._authorize(request, requires, access_policy)
                return isinstance(caller, Caller) and _is_user_unchanged(scope)

            scope[_CALLER_SCOPE_KEY] = caller
            scope[_RECHECK_SCOPE_KEY] = recheck
            if requires.action is None:
                await app(scope, receive, send)
            else:
                await self._run_action(app, requires.action, scope, receive, send)

        copied = copy.copy(route)
        copied.app = authorize_and_run
        self.refusals.initialise([route.path_format])
        return copied

    async def load_session(self, request: Request) -> None:
        """Find the session of a request, once; `get_session` returns it."""
        if self.sessions is None or SESSION_SCOPE_KEY in request.scope:
            return
        if self.sessions.uses_https:
            request.scope.setdefault(_IS_ENCRYPTED_SCOPE_KEY, request.scope.get("scheme") == "https")
            request.scope["scheme"] = "https"  # as the browser sees it
        request.scope[SESSION_SCOPE_KEY] = None
        try:
            request.scope[SESSION_SCOPE_KEY] = await self.sessions.find_session(request)
        except (SessionsUnavailableError, SecretUnreadableError) as error:
            log.warning("a session cannot be checked now", error=str(error))
            request.scope[_UNREADABLE_SCOPE_KEY] = True

    def refuse(
        self,
        request: Request,
        reason: RefusalReason,
        endpoint: str,
        requirements: RouteRequirements,
        message: str | None = None,
    ) -> Response:
        """Count and log a refusal, and return its response.

        Args:
            request: the request.
            reason: of the refusal.
            endpoint: the pattern of its route.
            requirements: of the route.
            message: for a person; None takes that of the reason.
        """
        self._count_ignored_header(request, endpoint)
        self.refusals.count(get_peer(request) or "unknown", endpoint, reason)
        status, usual = REFUSAL_RESPONSES[reason]
        if (
            requirements.access_policy
            and requirements.access_policy.disabled_reason
            and not requirements.access_policy.tokens
        ):
            usual = requirements.access_policy.disabled_reason
        elif reason is RefusalReason.ROLE and requirements.role:
            usual = f"this needs the role {requirements.role.value}; see auth.roles and auth.tokens"
        requirements.on_refusal(status)
        page = self.sessions and self.sessions.build_refusal(request, status, message or usual)
        if page:
            for name, value in _HEADERS.items():
                page.headers.setdefault(name, value)
            return page
        challenge = 'Basic realm="keypulse"' if requirements.challenges_browser else "Bearer"
        headers = {**_HEADERS, "WWW-Authenticate": challenge} if status == 401 else _HEADERS
        return JSONResponse({"error": message or usual}, status_code=status, headers=headers)

    async def record_action(
        self, caller: Caller, peer: str | None, action: str, on: str = "", *, is_stored: bool = False, **details: object
    ) -> None:
        """Log an action, and store it in the audit log unless it is stored already."""
        log.info("action", who=caller.name, peer=peer, action=action, on=on, **details)
        if is_stored:
            return
        try:
            await self.audit_log.add(AuditEntry(self._clock(), caller.name, peer, action, on))
        except AuditUnavailableError as error:
            log.error("audit entry not stored", action=action, error=str(error))  # noqa: TRY400 - a trace adds nothing

    def _authorize(
        self, request: Request, requirements: RouteRequirements, access_policy: AccessPolicy
    ) -> Caller | RefusalReason:
        """Return the caller, or the reason of the refusal."""
        if not access_policy.allows_address(request):
            return RefusalReason.ADDRESS
        acts = requirements.has_side_effects or request.method not in SAFE_METHODS
        is_followed_link = (
            requirements.allows_cross_site_link and not acts and request.headers.get("sec-fetch-mode") == "navigate"
        )
        if (
            (acts or (requirements.role and not requirements.is_public))
            and is_cross_origin(request)
            and not is_followed_link
        ):
            return RefusalReason.CROSS_ORIGIN
        user = (USER_SCOPE_KEY in request.scope or get_session(request)) and not access_policy.bearer_only
        has_users = find_passwords(request.scope) is not None
        if access_policy.is_open and not has_users and not user:
            # A page that points its own name to this server has neither its certificate nor a user's password.
            needs_own_host = acts or not requirements.is_public
            if requirements.role and needs_own_host and not self._is_own_host(request):
                return RefusalReason.UNKNOWN_HOST
            return Caller(ANONYMOUS_NAME, Role.ADMIN)
        is_for_everybody = requirements.is_public and (requirements.role is None or not (user or has_users))
        if is_for_everybody or (requirements.role is None and not has_users):
            return Caller(ANONYMOUS_NAME, None)
        return _check_role(request, requirements.role, access_policy)

    def _needs_csrf_token(self, request: Request, endpoint: str, requirements: RouteRequirements) -> bool:
        """Whether a browser may have sent it unasked: on a page always, in the API by a session.

        No page makes a browser send a bearer token to another origin.
        """
        if self.sessions is None or request.method in SAFE_METHODS or requirements.access_policy:
            return False
        if request.headers.get("authorization", "").lower().startswith("bearer "):
            return False
        return not endpoint.startswith(_PROGRAM_PATHS) or get_session(request) is not None

    def _count_ignored_header(self, request: Request, endpoint: str) -> None:
        if request.scope.pop(IGNORED_HEADER_SCOPE_KEY, False):
            self.refusals.count(get_peer(request) or "unknown", endpoint, RefusalReason.UNTRUSTED_PROXY)

    def _is_own_host(self, request: Request) -> bool:
        is_encrypted = request.scope.get(_IS_ENCRYPTED_SCOPE_KEY, request.scope.get("scheme") == "https")
        if is_encrypted or self._is_own_name(request.headers.get("host", "")):
            return True
        return self.sessions is not None and self.sessions.uses_https and self.sessions.is_public_host(request)

    async def _run_action(self, app: ASGIApp, action: str, scope: Scope, receive: Receive, send: Send) -> None:
        """Run the action, and record it before the response starts."""
        request = Request(scope)
        recorded = False

        async def record(status: int) -> None:
            nonlocal recorded
            if recorded:
                return
            recorded = True
            about = dict(scope.get(_ACTION_SCOPE_KEY, {}))
            is_stored = about.pop("is_stored", False)
            on = about.pop("on", None) or "/".join(escape_text(str(value)) for value in request.path_params.values())
            if status in _NOT_EXECUTED_STATUSES:
                log.info("action refused", who=get_caller(request).name, action=action, on=on, status=status, **about)
                return
            caller, peer = get_caller(request), get_peer(request)
            await self.record_action(caller, peer, action, on, is_stored=is_stored, status=status, **about)

        async def sending(message: Message) -> None:
            if message["type"] == "http.response.start":
                await record(message["status"])
            await send(message)

        try:
            await app(scope, receive, sending)
        except asyncio.CancelledError:
            await record(_CLIENT_CLOSED_REQUEST)
            raise
        except Exception:
            await record(500)
            raise


def _add_headers(send: Send) -> Send:
    async def send_with_headers(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            for name, value in _HEADERS.items():
                headers.setdefault(name, value)
        await send(message)

    return send_with_headers


def describe_action(request: Request, **details: object) -> None:
    """Describe an action: `on` for the audit log, the rest for the log. Texts are escaped.

    `is_stored=True`: it was committed together with its audit entry, or it changed nothing.
    """
    details_by_name = request.scope.setdefault(_ACTION_SCOPE_KEY, {})
    details_by_name |= {key: escape_text(value) if isinstance(value, str) else value for key, value in details.items()}


def get_caller(request: Request) -> Caller:
    """Return the authorized caller."""
    caller: Caller = request.scope[_CALLER_SCOPE_KEY]
    return caller


async def is_still_authorized(request: Request) -> bool:
    """Whether a request that lasts for long would be authorized again by now."""
    recheck: Callable[[], Awaitable[bool]] = request.scope[_RECHECK_SCOPE_KEY]
    return await recheck()


def get_path_and_query(request: Request) -> str:
    """Return what was asked for; never from the URL that Starlette builds from the header `Host`."""
    query = request.scope.get("query_string", b"").decode("latin-1")
    return f"{request.scope['path']}?{query}" if query else str(request.scope["path"])


def get_peer(request: Request) -> str | None:
    """Return the address of the client."""
    return request.client.host if request.client else None


def _is_user_unchanged(scope: Scope) -> bool:
    """Whether the user of web.yml whose password was checked is still there, with the same password."""
    passwords, stored = find_passwords(scope), scope.get(USER_HASH_SCOPE_KEY)
    return stored is None or (passwords is not None and passwords.get_hash(scope[USER_SCOPE_KEY]) == stored)


def _check_role(request: Request, role: Role | None, access_policy: AccessPolicy) -> Caller | RefusalReason:
    try:
        caller = access_policy.identify_caller(request)
    except SecretUnreadableError:
        return RefusalReason.UNREADABLE
    if caller is None:
        return find_missing_reason(request)
    if role and (caller.role is None or not caller.role.includes(role)):
        return RefusalReason.ROLE
    return caller


def find_missing_reason(request: Request) -> RefusalReason:
    """Return why a request without a valid credential is refused."""
    if "authorization" in request.headers:
        return RefusalReason.WRONG
    return RefusalReason.UNREADABLE if _UNREADABLE_SCOPE_KEY in request.scope else RefusalReason.MISSING
