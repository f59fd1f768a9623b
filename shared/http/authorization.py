"""Decides who may call which endpoint, and records refusals and actions.

Each route declares its requirements (`RouteRequirements`); a route without them is for admins. Requests with side
effects are refused to other web pages, whatever credentials a browser adds. A server without credentials answers only
to the names of its own machine. A refusal is counted, and logged with the peer's address at most once in 10 s for each
address. An action is logged and stored in the audit log.
"""

import asyncio
import copy
import time
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

import structlog
from prometheus_client import CollectorRegistry, Counter
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from shared.config.secret_file import SecretUnreadableError
from shared.config.server_settings import Role
from shared.http.audit_log import AuditEntry, AuditLog, AuditUnavailableError, InMemoryAuditLog, escape_text
from shared.http.authentication import USER_SCOPE_KEY, AccessPolicy, Caller
from shared.http.csrf import is_cross_origin, is_loopback_host

OTHER_ENDPOINT: Final = "other"
"""The label of a path that no route has."""
_LOG_INTERVAL_SECONDS: Final = 10.0
_MAX_PEERS: Final = 100
"""Addresses that are remembered. While all of them were logged within 10 s, no further one is."""

log = structlog.get_logger(__name__)


class RefusalReason(StrEnum):
    """Why a request was refused."""

    MISSING = "missing"
    """No credentials."""
    WRONG = "wrong"
    """Credentials that nobody has."""
    ROLE = "role"
    """The caller's role does not allow it."""
    ADDRESS = "address"
    """Outside of `auth.allow_from`."""
    UNREADABLE = "unreadable"
    """The token file cannot be read."""
    BUSY = "busy"
    """Too many passwords wait to be checked."""
    CROSS_ORIGIN = "other_page"
    """A browser sends it for another web page."""
    UNKNOWN_HOST = "other_host"
    """By a name that somebody may have pointed here."""


class RefusalCounter:
    """Of one server.

    Args:
        metrics: gets the counter.
        clock: seconds.
    """

    def __init__(self, metrics: CollectorRegistry, clock: Callable[[], float] = time.monotonic) -> None:
        self._counter = Counter(
            "keypulse_auth_failures_total",
            "Requests that were refused for who sent them.",
            ["endpoint", "reason"],
            registry=metrics,
        )
        self._clock = clock
        self._last_logged: OrderedDict[str, tuple[float, int]] = OrderedDict()  # peer → when, how many were not since

    def initialise(self, endpoints: Iterable[str]) -> None:
        """Shows each reason of these route patterns, at 0."""
        for endpoint in endpoints:
            for reason in RefusalReason:
                self._counter.labels(endpoint, reason.value)

    def count(self, peer: str, endpoint: str, reason: RefusalReason) -> None:
        """One more.

        Args:
            peer: the address.
            endpoint: the pattern of a route, never a path as it was sent.
            reason: why.
        """
        self._counter.labels(endpoint, reason.value).inc()
        now = self._clock()
        at, more = self._last_logged.get(peer, (None, 0))
        if at is not None and now - at < _LOG_INTERVAL_SECONDS:
            self._last_logged[peer] = at, more + 1
            return
        if at is None and len(self._last_logged) >= _MAX_PEERS:
            oldest = next(iter(self._last_logged.values()))[0]
            if now - oldest < _LOG_INTERVAL_SECONDS:
                return
            self._last_logged.popitem(last=False)
        self._last_logged[peer] = now, 0
        self._last_logged.move_to_end(peer)
        log.warning("request refused", peer=peer, endpoint=endpoint, reason=reason.value, suppressed=more)


SAFE_METHODS: Final = ("GET", "HEAD", "OPTIONS")
ANONYMOUS_NAME: Final = "anonymous"
"""Who calls a server that needs no credentials."""
_CALLER_SCOPE_KEY: Final = "keypulse.caller"
_ACTION_SCOPE_KEY: Final = "keypulse.about"
_NOT_EXECUTED_STATUSES: Final = (400, 404, 405, 408, 409, 413, 415)
"""Answers to an action that was not even begun."""
_CLIENT_CLOSED_REQUEST: Final = 499
"""Logged of an action whose end nobody waits for any more; nginx calls that so."""
_HEADERS: Final = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


@dataclass(frozen=True, slots=True)
class RouteRequirements:
    """What an endpoint requires of its caller."""

    role: Role | None
    """None: nothing but what web.yml asks for."""
    is_public: bool = False
    """Whether it needs no token; a user of web.yml needs the role all the same."""
    action: str | None = None
    """What the audit calls it; None where it changes nothing of the server's."""
    has_side_effects: bool = False
    """Whether a GET of it changes or costs something, too."""
    challenges_browser: bool = False
    """Whether a 401 asks a browser for a password."""
    allows_cross_site_link: bool = False
    """Whether a link of another site may lead there."""
    access_policy: AccessPolicy | None = None
    """Who may call it, where that is not who may call the server."""
    on_refusal: Callable[[int], None] = lambda _status: None
    """Called with the status of each refusal."""


class ProtectedRoute(Route):
    """A route with what it requires.

    Args:
        path: as Starlette's.
        endpoint: what answers once the caller may call.
        requirements: of every request, or what gives that of one.
        methods: as Starlette's.
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
    """What a route requires of a request; one that does not say it is for admins."""
    requires = route.requirements if isinstance(route, ProtectedRoute) else RouteRequirements(Role.ADMIN)
    return requires if isinstance(requires, RouteRequirements) else requires(request)


class Authorizer:
    """Of one server, as long as its process lives.

    Args:
        metrics: gets the counter of refusals.
        audit_log: where actions are kept; None keeps the last ones in memory.
        clock: unix seconds.
        is_own_name: whether a header `Host` is a name by which a server without credentials may be asked.
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
        self.audit_log: AuditLog = audit_log or InMemoryAuditLog()
        self.refusals = RefusalCounter(metrics)
        self._clock = clock
        self._is_own_name = is_own_name

    def protect(self, route: Route, get_access_policy: Callable[[], AccessPolicy]) -> Route:
        """A copy of the route that is answered only to those who may call it.

        Args:
            route: a ProtectedRoute, or one of Starlette's, which is for admins.
            get_access_policy: gives who may call, where what the route requires does not say it.
        """
        app = route.app

        async def guarded(scope: Scope, receive: Receive, send: Send) -> None:
            request = Request(scope)
            requires = get_requirements(route, request)
            caller = self._authorize(request, requires, requires.access_policy or get_access_policy())
            if isinstance(caller, RefusalReason):
                response = self.refuse(request, caller, route.path_format, requires)
                await response(scope, receive, send)
                return
            scope[_CALLER_SCOPE_KEY] = caller
            if requires.action is None:
                await app(scope, receive, send)
            else:
                await self._run_action(app, requires.action, scope, receive, send)

        copied = copy.copy(route)
        copied.app = guarded
        self.refusals.initialise([route.path_format])
        return copied

    def refuse(
        self,
        request: Request,
        reason: RefusalReason,
        endpoint: str,
        requirements: RouteRequirements,
        message: str | None = None,
    ) -> Response:
        """The answer to a request that is refused; it is counted and logged.

        Args:
            request: the request.
            reason: why.
            endpoint: the pattern of its route.
            requirements: what the route requires.
            message: why, for a person; None takes that of the reason.
        """
        self.refusals.count(get_peer(request) or "unknown", endpoint, reason)
        status, usual = _REFUSAL_RESPONSES[reason]
        if (
            requirements.access_policy
            and requirements.access_policy.disabled_reason
            and not requirements.access_policy.tokens
        ):
            usual = requirements.access_policy.disabled_reason
        elif reason is RefusalReason.ROLE and requirements.role:
            usual = f"this needs the role {requirements.role.value}; see auth.roles and auth.tokens"
        challenge = 'Basic realm="keypulse"' if requirements.challenges_browser else "Bearer"
        headers = {**_HEADERS, "WWW-Authenticate": challenge} if status == 401 else _HEADERS
        requirements.on_refusal(status)
        return JSONResponse({"error": message or usual}, status_code=status, headers=headers)

    async def record_action(
        self, caller: Caller, peer: str | None, action: str, on: str = "", **details: object
    ) -> None:
        """Logs an action, and keeps it."""
        log.info("action", who=caller.name, peer=peer, action=action, on=on, **details)
        try:
            await self.audit_log.add(AuditEntry(self._clock(), caller.name, peer, action, on))
        except AuditUnavailableError as error:
            log.error("audit entry not stored", action=action, error=str(error))  # noqa: TRY400 - a trace adds nothing

    def _authorize(
        self, request: Request, requirements: RouteRequirements, access_policy: AccessPolicy
    ) -> Caller | RefusalReason:
        """Who calls, or why nobody may."""
        if not access_policy.allows_address(request):
            return RefusalReason.ADDRESS
        acts = requirements.has_side_effects or request.method not in SAFE_METHODS
        followed = (
            requirements.allows_cross_site_link and not acts and request.headers.get("sec-fetch-mode") == "navigate"
        )
        if (acts or (requirements.role and not requirements.is_public)) and is_cross_origin(request) and not followed:
            return RefusalReason.CROSS_ORIGIN
        user = USER_SCOPE_KEY in request.scope and not access_policy.bearer_only
        if not (access_policy.tokens or user or access_policy.disabled_reason):
            # A page that points its own name here has neither this server's certificate nor a user's password.
            fenced = acts or not requirements.is_public
            if requirements.role and fenced and request.url.scheme != "https" and not self._is_own_host(request):
                return RefusalReason.UNKNOWN_HOST
            return Caller(ANONYMOUS_NAME, Role.ADMIN)
        if requirements.role is None or (requirements.is_public and not user):
            return Caller(ANONYMOUS_NAME, None)
        return _check_role(request, requirements.role, access_policy)

    def _is_own_host(self, request: Request) -> bool:
        return self._is_own_name(request.headers.get("host", ""))

    async def _run_action(self, app: ASGIApp, action: str, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers, and records the action before the answer begins."""
        request = Request(scope)
        recorded = False

        async def record(status: int) -> None:
            nonlocal recorded
            if recorded:
                return
            recorded = True
            about = dict(scope.get(_ACTION_SCOPE_KEY, {}))
            on = about.pop("on", None) or "/".join(escape_text(str(value)) for value in request.path_params.values())
            if status in _NOT_EXECUTED_STATUSES:
                log.info("action refused", who=get_caller(request).name, action=action, on=on, status=status, **about)
                return
            await self.record_action(get_caller(request), get_peer(request), action, on, status=status, **about)

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


def describe_action(request: Request, **details: object) -> None:
    """Says what an action is about: `on` for the audit, the rest for the log. Texts of a caller's own are escaped."""
    known = request.scope.setdefault(_ACTION_SCOPE_KEY, {})
    known |= {key: escape_text(value) if isinstance(value, str) else value for key, value in details.items()}


def get_caller(request: Request) -> Caller:
    """Who calls, by the guard."""
    caller: Caller = request.scope[_CALLER_SCOPE_KEY]
    return caller


def get_peer(request: Request) -> str | None:
    """The address that calls."""
    return request.client.host if request.client else None


def _check_role(request: Request, role: Role, access_policy: AccessPolicy) -> Caller | RefusalReason:
    try:
        caller = access_policy.identify_caller(request)
    except SecretUnreadableError:
        return RefusalReason.UNREADABLE
    if caller is None:
        return RefusalReason.WRONG if request.headers.get("authorization") else RefusalReason.MISSING
    if caller.role is None or not caller.role.includes(role):
        return RefusalReason.ROLE
    return caller


_CREDENTIALS_NEEDED: Final = "a valid token is needed: Authorization: Bearer TOKEN"
_REFUSAL_RESPONSES: Final[dict[RefusalReason, tuple[int, str]]] = {
    RefusalReason.MISSING: (401, _CREDENTIALS_NEEDED),
    RefusalReason.WRONG: (401, _CREDENTIALS_NEEDED),
    RefusalReason.ROLE: (403, "the role of this caller does not allow it"),
    RefusalReason.ADDRESS: (403, "this address may not send alerts; see auth.allow_from"),
    RefusalReason.UNREADABLE: (503, "the token file of this server cannot be read"),
    RefusalReason.BUSY: (503, "too many passwords are being checked; try again"),
    RefusalReason.CROSS_ORIGIN: (403, "another web page may not do this"),
    RefusalReason.UNKNOWN_HOST: (
        403,
        "without credentials, only names of this machine are answered: ask for 127.0.0.1, or set auth.admin_token_file",
    ),
}
