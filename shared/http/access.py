"""Who may call which endpoint: roles, refusals, the audit log.

Each route declares its `RouteRequirements`; one without them is for admins.
"""

import asyncio
import copy
import itertools
import time
from collections import OrderedDict, deque
from collections.abc import Awaitable, Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final, Protocol

import structlog
from prometheus_client import CollectorRegistry, Metric
from prometheus_client.core import CounterMetricFamily
from prometheus_client.registry import Collector
from starlette.datastructures import MutableHeaders
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from shared.config.secret_file import SecretUnreadableError
from shared.config.server_settings import Role
from shared.http.authentication import (
    SESSION_SCOPE_KEY,
    USER_HASH_SCOPE_KEY,
    USER_SCOPE_KEY,
    AccessPolicy,
    Caller,
    Session,
    check_csrf_token,
    find_passwords,
    get_session,
    is_cross_origin,
    is_loopback_host,
    send_csrf_cookie,
)
from shared.http.json_api import (
    PageQuery,
    RefusedError,
    build_error_response,
    format_cursor,
    format_json_time,
    parse_query,
)

MAX_TEXT_LENGTH: Final = 200
"""Characters that are stored of a caller's text."""
_MAX_ENTRIES: Final = 1000
"""Entries in memory."""


@dataclass(frozen=True, slots=True)
class AuditEntry:
    at: float
    """Unix seconds."""
    who: str
    """The name of the credential."""
    peer: str | None
    """The address that called."""
    action: str
    on: str
    """The object of the action; empty if it has none."""


class AuditUnavailableError(Exception):
    """The entries cannot be written or read now; the message says why."""


class AuditLog(Protocol):
    async def add(self, entry: AuditEntry) -> None:
        """Store an entry. Raises AuditUnavailableError."""

    async def list_entries(self, limit: int, before: int | None) -> tuple[Sequence[AuditEntry], int | None]:
        """Return the newest with numbers under `before`, and the next `before`. Raises AuditUnavailableError."""


class InMemoryAuditLog:
    def __init__(self, max_entries: int = _MAX_ENTRIES) -> None:
        self._entries: deque[tuple[int, AuditEntry]] = deque(maxlen=max_entries)
        self._numbers = itertools.count(1)

    async def add(self, entry: AuditEntry) -> None:
        self._entries.append((next(self._numbers), entry))

    async def list_entries(self, limit: int, before: int | None) -> tuple[Sequence[AuditEntry], int | None]:
        older = [each for each in reversed(self._entries) if before is None or each[0] < before]
        following = older[limit - 1][0] if len(older) > limit else None
        return [entry for _, entry in older[:limit]], following


async def handle_audit_request(audit_log: AuditLog, request: Request) -> Response:
    try:
        page = parse_query(PageQuery, request.query_params)
        entries, before = await audit_log.list_entries(page.limit, page.cursor)
    except RefusedError as error:
        return build_error_response(error.status, str(error))
    except AuditUnavailableError as error:
        return build_error_response(503, f"the audit cannot be read now, try again: {error}")
    listed = [
        {"at": format_json_time(each.at), "who": each.who, "from": each.peer, "action": each.action, "on": each.on}
        for each in entries
    ]
    return JSONResponse({"audit": listed, "next_cursor": format_cursor(before)})


def escape_text(text: str) -> str:
    """Return a caller's text for a log or an entry: printable ASCII, shortened."""
    return text[:MAX_TEXT_LENGTH].encode("unicode_escape").decode()[:MAX_TEXT_LENGTH]


_LOG_INTERVAL_SECONDS: Final = 10.0
_MAX_PEERS: Final = 100
"""Addresses to remember. While all of them were logged within 10 s, no other one is logged."""

log = structlog.get_logger(__name__)


class RefusalReason(StrEnum):
    MISSING = "missing"
    """No credentials."""
    WRONG = "wrong"
    """Invalid credentials."""
    ROLE = "role"
    """The caller's role does not allow it."""
    ADDRESS = "address"
    """Outside of `auth.allow_from`."""
    UNREADABLE = "unreadable"
    """A token file, or the sessions, cannot be read."""
    BUSY = "busy"
    """Too many password checks are waiting."""
    CROSS_ORIGIN = "cross_origin"
    """A browser sent it for a page of another origin."""
    UNKNOWN_HOST = "unknown_host"
    """A `Host` that an outsider may have pointed at this machine (DNS rebinding)."""
    CSRF = "csrf"
    """An action without the token of the page that it should come from."""
    UNTRUSTED_PROXY = "untrusted_proxy"
    """The header of a trusted proxy, sent by somebody else. It is ignored, which refuses nothing by itself."""


class RefusalCounter(Collector):
    """Counts and logs the refused requests of one server."""

    def __init__(self, metrics: CollectorRegistry, clock: Callable[[], float] = time.monotonic) -> None:
        # Not a Counter of prometheus_client: an object for each reason of each route takes eight times as long.
        self._counts: dict[tuple[str, str], int] = {}
        self._clock = clock
        self._last_logged: OrderedDict[str, tuple[float, int]] = (
            OrderedDict()
        )  # peer → time of the last line, refusals since
        metrics.register(self)

    def collect(self) -> Iterator[Metric]:
        family = CounterMetricFamily(
            "keypulse_auth_failures", "Requests that were refused for who sent them.", labels=["endpoint", "reason"]
        )
        for labels, count in list(self._counts.items()):  # a scrape has a thread of its own
            family.add_metric(labels, count)
        yield family

    def initialise(self, endpoints: Iterable[str]) -> None:
        """Expose each reason for these route patterns, at 0."""
        for endpoint in endpoints:
            for reason in RefusalReason:
                self._counts.setdefault((endpoint, reason.value), 0)

    def count(self, peer: str, endpoint: str, reason: RefusalReason) -> None:
        """Count a refusal, and log it; `endpoint` is the pattern of a route, never a path as it was sent."""
        self._counts[endpoint, reason.value] = self._counts.get((endpoint, reason.value), 0) + 1
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
        event = "proxy header ignored" if reason is RefusalReason.UNTRUSTED_PROXY else "request refused"
        log.warning(event, peer=peer, endpoint=endpoint, reason=reason.value, suppressed=more)


_CREDENTIALS_REQUIRED: Final = "this needs a token of {tokens_setting}: Authorization: Bearer TOKEN"
REFUSAL_RESPONSES: Final[dict[RefusalReason, tuple[int, str]]] = {
    RefusalReason.MISSING: (401, _CREDENTIALS_REQUIRED),
    RefusalReason.WRONG: (401, _CREDENTIALS_REQUIRED),
    RefusalReason.ROLE: (403, "the role of this caller does not allow it"),
    RefusalReason.ADDRESS: (403, "this address may not send alerts; see auth.allow_from"),
    RefusalReason.UNREADABLE: (503, "a token file or the sessions of this server cannot be read now; see its log"),
    RefusalReason.BUSY: (503, "too many passwords are being checked; try again"),
    RefusalReason.CROSS_ORIGIN: (403, "another web page may not do this"),
    RefusalReason.UNKNOWN_HOST: (
        403,
        "without credentials, only names of this machine are answered: use 127.0.0.1, or set auth.admin_token_file",
    ),
    RefusalReason.CSRF: (403, "the token of the page is missing or too old; reload the page, and try again"),
}
"""Status and message of each reason that refuses a request."""


IGNORED_HEADER_SCOPE_KEY: Final = "keypulse.ignored_proxy_header"
"""The key in a request's scope that says that somebody else sent the header of a trusted proxy."""


class SessionsUnavailableError(Exception):
    """The sessions cannot be read now; the message says why."""


class Sessions(Protocol):
    """Finds sessions, and leads those who have none to the login page."""

    @property
    def uses_https(self) -> bool:
        """Whether browsers reach the server by https, even if a proxy before it ends TLS."""

    @property
    def public_path(self) -> str:
        """The path below which browsers see the server; empty for none."""

    def is_public_host(self, request: Request) -> bool:
        """Whether a request came for the server's address, as browsers see it."""

    async def find_session(self, request: Request) -> Session | None:
        """Return the session of a request; None if it has none, or none that is valid now.

        Raises:
            SessionsUnavailableError: the sessions cannot be read.
            SecretUnreadableError: the file of the session's token cannot be read.
        """

    def build_refusal(self, request: Request, status: int, message: str) -> Response | None:
        """Return the answer to a browser, such as a redirect to the login page; None for a program."""


OTHER_ENDPOINT: Final = "other"
"""The endpoint label of a path without a route."""


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
    """A route of Starlette with its requirements: of every request, or a function of the request."""

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
        """Return a copy of the route that only authorized callers reach; a plain route of Starlette is for admins.

        The server's policy counts where the route's requirements have none.
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
                send = add_headers(send, _HEADERS)
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
        """Count and log a refusal, and return its response; without `message` it has that of the reason."""
        self._count_ignored_header(request, endpoint)
        self.refusals.count(get_peer(request) or "unknown", endpoint, reason)
        policy = requirements.access_policy or AccessPolicy()
        status, usual = REFUSAL_RESPONSES[reason]
        usual = usual.format(tokens_setting=policy.tokens_setting)
        if policy.disabled_reason and not policy.tokens:
            usual = policy.disabled_reason
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


def add_headers(send: Send, headers: Mapping[str, str]) -> Send:
    """A `send` that adds headers to a response; one of the endpoint's own stays."""

    async def send_with_headers(message: Message) -> None:
        if message["type"] == "http.response.start":
            answer = MutableHeaders(scope=message)
            for name, value in headers.items():
                answer.setdefault(name, value)
        await send(message)

    return send_with_headers


def describe_action(request: Request, **details: object) -> None:
    """Describe an action: `on` for the audit log, the rest for the log. Texts are escaped.

    `is_stored=True`: it was committed together with its audit entry, or it changed nothing.
    """
    details_by_name = request.scope.setdefault(_ACTION_SCOPE_KEY, {})
    details_by_name |= {key: escape_text(value) if isinstance(value, str) else value for key, value in details.items()}


def get_caller(request: Request) -> Caller:
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
