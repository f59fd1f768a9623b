"""Middleware for web.yml: requires one of its users or a token, and adds its headers to every response.

It protects the whole server, so no page can be forgotten. `/-/healthy` and `/-/ready` stay open. `Authorizer` then
decides what a user may do.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Collection, Coroutine, Iterable
from dataclasses import replace
from typing import Any, Final

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Match, Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from shared.config.secret_file import SecretUnreadableError
from shared.http.access import (
    OTHER_ENDPOINT,
    Authorizer,
    RefusalReason,
    RouteRequirements,
    add_headers,
    find_missing_reason,
    get_peer,
    get_requirements,
)
from shared.http.authentication import (
    USER_HASH_SCOPE_KEY,
    USER_SCOPE_KEY,
    AccessPolicy,
    parse_basic_credentials,
    set_passwords,
)
from shared.http.fair_queue import QueueFullError
from shared.http.limits import RECEIVED_AT
from shared.http.password_check import PasswordChecker
from shared.http.web_config import WebConfigFile

_PUBLIC_PATHS: Final = ("/-/healthy", "/-/ready")
PASSWORD_CHECK_SECONDS: Final = 7.5
"""From a request's first byte to the end of its password check; then it is answered 503. Sixty checks before it may
take longer than Alertmanager waits for the answer to a webhook."""
_MAX_BUFFERED_BYTES: Final = 16 * 1024
"""Bytes of a body that are read while a password check waits: only reading shows that the client has disconnected."""
_DEFAULT_REQUIREMENTS: Final = RouteRequirements(None, challenges_browser=True)


class WebConfigMiddleware:
    """ASGI middleware.

    Args:
        app: the application.
        web_config_file: has the users.
        get_access_policy: has the tokens.
        authorizer: counts and logs refusals.
        get_routes: the application's routes: a refusal is counted for the one that would have answered.
        self_authenticated_paths: paths that check credentials of their own beside the users; one that ends with a
            slash includes all below it.
    """

    def __init__(
        self,
        app: ASGIApp,
        web_config_file: WebConfigFile,
        get_access_policy: Callable[[], AccessPolicy],
        authorizer: Authorizer,
        get_routes: Callable[[], Iterable[Route]],
        self_authenticated_paths: Collection[str],
    ) -> None:
        self._app = app
        self._web_config_file = web_config_file
        self._get_access_policy = get_access_policy
        self._authorizer = authorizer
        self._get_routes = get_routes
        self._self_authenticated_paths = self_authenticated_paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or answer 401 or 503; drop it if the client has disconnected."""
        web = self._web_config_file.get_state()
        refused = None
        # Whoever passes without a password is nobody all the same, as long as there are users.
        set_passwords(scope, lambda: self._web_config_file.get_state().password_checker)
        if web.password_checker and scope["path"] not in _PUBLIC_PATHS:
            ahead = _BufferedReceive(receive)
            try:
                refused = await self._authenticate(Request(scope), web.password_checker, ahead)
            except _ClientDisconnectedError:
                return
            receive = ahead.receive
        await (refused or self._app)(scope, receive, add_headers(send, web.config.http_server_config.headers))

    async def _authenticate(
        self, request: Request, users: PasswordChecker, buffered: "_BufferedReceive"
    ) -> Response | None:
        await self._authorizer.load_session(request)
        unreadable = False
        try:
            if self._get_access_policy().identify_caller(request):
                return None
        except SecretUnreadableError:
            unreadable = True
        name, password = parse_basic_credentials(request)
        began = request.scope.get(RECEIVED_AT, asyncio.get_running_loop().time())
        try:
            async with asyncio.timeout_at(began + PASSWORD_CHECK_SECONDS):
                if name and await buffered.run_until_disconnect(
                    users.check_password(name, password, get_peer(request) or "")
                ):
                    request.scope[USER_SCOPE_KEY] = name
                    request.scope[USER_HASH_SCOPE_KEY] = users.get_hash(name)
                    return None
        except (QueueFullError, TimeoutError):
            return self._refuse(request, RefusalReason.BUSY)
        path = request.scope["path"]
        if any(path == own or (own.endswith("/") and path.startswith(own)) for own in self._self_authenticated_paths):
            return None
        reason = RefusalReason.UNREADABLE if unreadable else find_missing_reason(request)
        if reason is RefusalReason.UNREADABLE:
            return self._refuse(request, reason)
        return self._refuse(request, reason, "a user of basic_auth_users in web.yml is needed, or a token for it")

    def _refuse(self, request: Request, reason: RefusalReason, message: str | None = None) -> Response:
        scope = request.scope
        route = next((route for route in self._get_routes() if route.matches(scope)[0] is not Match.NONE), None)
        requires = (
            replace(_DEFAULT_REQUIREMENTS, on_refusal=get_requirements(route, request).on_refusal)
            if route
            else _DEFAULT_REQUIREMENTS
        )
        return self._authorizer.refuse(
            request, reason, route.path_format if route else OTHER_ENDPOINT, requires, message
        )


class _ClientDisconnectedError(Exception):
    """The client has disconnected."""


class _BufferedReceive:
    """Buffers messages of `receive` that were read before the application calls it."""

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._buffer: deque[Message] = deque()

    async def receive(self) -> Message:
        return self._buffer.popleft() if self._buffer else await self._receive()

    async def run_until_disconnect(self, check: Coroutine[Any, Any, bool]) -> bool:
        """Return the result of `check`. Raises _ClientDisconnectedError and cancels it if the client disconnects."""
        checking = asyncio.ensure_future(check)
        disconnecting = asyncio.ensure_future(self._wait_for_disconnect())
        try:
            await asyncio.wait((checking, disconnecting), return_when=asyncio.FIRST_COMPLETED)
            if not checking.done():
                raise _ClientDisconnectedError
            return checking.result()
        finally:
            for task in (checking, disconnecting):
                task.cancel()
            await asyncio.gather(checking, disconnecting, return_exceptions=True)

    async def _wait_for_disconnect(self) -> None:
        size = 0
        while True:
            message = await self._receive()
            self._buffer.append(message)
            if message["type"] == "http.disconnect":
                return
            size += len(message.get("body", b""))
            if size > _MAX_BUFFERED_BYTES:
                await asyncio.Event().wait()
