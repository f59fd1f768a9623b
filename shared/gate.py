"""Who gets past a web.yml: users by Basic, or the holder of a token; and the headers of every answer.

It stands before the whole server, so that no page can be forgotten. `/-/healthy` and `/-/ready` stay open. What a user
may do then is the guard's business.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Collection, Coroutine, Iterable
from dataclasses import replace
from typing import Any, Final

from starlette.datastructures import MutableHeaders
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Match, Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from shared.auth import USER, Access, basic
from shared.basic_auth import BusyError, Users
from shared.guard import Guard, Requires, peer_of, required
from shared.refusals import UNKNOWN, Reason
from shared.secret_file import SecretUnreadableError
from shared.web_file import WebFile

_OPEN: Final = ("/-/healthy", "/-/ready")
_AHEAD_BYTES: Final = 16 * 1024
"""What is read of a body while its sender's password waits to be checked: only so it shows that the sender is gone."""
_NOTHING: Final = Requires(None, browser=True)


class Gate:
    """An ASGI application before another.

    Args:
        app: what is behind it.
        web: says who gets in.
        access: gives those whose tokens open everything too.
        guard: counts and logs who does not get in.
        routes: gives the routes behind it: a refusal is counted for the one that would have answered.
        own_credentials: paths that check credentials of their own, where a user is not the only one let in; one that
            ends with a slash stands for all below it.
    """

    def __init__(
        self,
        app: ASGIApp,
        web: WebFile,
        access: Callable[[], Access],
        guard: Guard,
        routes: Callable[[], Iterable[Route]],
        own_credentials: Collection[str],
    ) -> None:
        self._app = app
        self._web = web
        self._access = access
        self._guard = guard
        self._routes = routes
        self._own_credentials = own_credentials

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Lets the request through, or answers it with 401 or 503; one whose sender is gone is dropped."""
        web = self._web.current()
        headers = web.config.http_server_config.headers

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                answer = MutableHeaders(scope=message)
                for name, value in headers.items():
                    answer.setdefault(name, value)
            await send(message)

        refused = None
        if web.users and scope["path"] not in _OPEN:
            ahead = _Ahead(receive)
            try:
                refused = await self._refusal(Request(scope), web.users, ahead)
            except _GoneError:
                return
            receive = ahead.receive
        await (refused or self._app)(scope, receive, with_headers)

    async def _refusal(self, request: Request, users: Users, ahead: "_Ahead") -> Response | None:
        unreadable = False
        try:
            if self._access().caller(request):
                return None
        except SecretUnreadableError:
            unreadable = True
        name, password = basic(request)
        try:
            if name and await ahead.unless_gone(users.admits(name, password, peer_of(request) or "")):
                request.scope[USER] = name
                return None
        except BusyError:
            return self._refuse(request, Reason.BUSY)
        path = request.url.path
        if any(path == own or (own.endswith("/") and path.startswith(own)) for own in self._own_credentials):
            return None
        if unreadable:
            return self._refuse(request, Reason.UNREADABLE)
        reason = Reason.WRONG if request.headers.get("authorization") else Reason.MISSING
        return self._refuse(request, reason, "a user of basic_auth_users in web.yml is needed, or a valid token")

    def _refuse(self, request: Request, reason: Reason, sentence: str | None = None) -> Response:
        scope = request.scope
        route = next((route for route in self._routes() if route.matches(scope)[0] is not Match.NONE), None)
        requires = replace(_NOTHING, refused=required(route, request).refused) if route else _NOTHING
        return self._guard.refuse(request, reason, route.path_format if route else UNKNOWN, requires, sentence)


class _GoneError(Exception):
    """Nobody waits for the answer any more."""


class _Ahead:
    """What a request's `receive` gives, of which some may have been read before its turn."""

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._read: deque[Message] = deque()

    async def receive(self) -> Message:
        """The next message."""
        return self._read.popleft() if self._read else await self._receive()

    async def unless_gone(self, checking: Coroutine[Any, Any, bool]) -> bool:
        """What `checking` gives. Raises _GoneError where the client disconnects before, and cancels it."""
        check = asyncio.ensure_future(checking)
        gone = asyncio.ensure_future(self._disconnected())
        try:
            await asyncio.wait((check, gone), return_when=asyncio.FIRST_COMPLETED)
            if not check.done():
                raise _GoneError
            return check.result()
        finally:
            for task in (check, gone):
                task.cancel()
            await asyncio.gather(check, gone, return_exceptions=True)

    async def _disconnected(self) -> None:
        size = 0
        while True:
            message = await self._receive()
            self._read.append(message)
            if message["type"] == "http.disconnect":
                return
            size += len(message.get("body", b""))
            if size > _AHEAD_BYTES:
                await asyncio.Event().wait()
