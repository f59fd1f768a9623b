"""Who gets past a web.yml: users by Basic, or the holder of the admin token; and the headers of every answer.

It stands before the whole server, so that no page can be forgotten. `/-/healthy` and `/-/ready` stay open.
"""

from collections.abc import Callable, Collection
from typing import Final

from starlette.datastructures import MutableHeaders
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from shared.auth import USER, basic, refusal
from shared.basic_auth import BusyError, Users
from shared.secret_file import SecretFile
from shared.web_file import WebFile

_OPEN: Final = ("/-/healthy", "/-/ready")


class Gate:
    """An ASGI application before another.

    Args:
        app: what is behind it.
        web: says who gets in.
        admin: gives the admin token, which opens everything too, if there is one.
        own_credentials: paths that check credentials of their own, where a user is not the only one let in; one that
            ends with a slash stands for all below it.
    """

    def __init__(
        self,
        app: ASGIApp,
        web: WebFile,
        admin: Callable[[], SecretFile | None],
        own_credentials: Collection[str],
    ) -> None:
        self._app = app
        self._web = web
        self._admin = admin
        self._own_credentials = own_credentials

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Lets the request through, or answers it with 401 or 503."""
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
            refused = await self._refusal(Request(scope), web.users)
        await (refused or self._app)(scope, receive, with_headers)

    async def _refusal(self, request: Request, users: Users) -> Response | None:
        admin = self._admin()
        by_token = refusal(request, admin, browser=True) if admin else None
        if admin and by_token is None:
            return None
        name, password = basic(request)
        try:
            if name and await users.admits(name, password):
                request.scope[USER] = name
                return None
        except BusyError:
            return JSONResponse({"error": "too many passwords are being checked; try again"}, status_code=503)
        path = request.url.path
        if any(path == own or (own.endswith("/") and path.startswith(own)) for own in self._own_credentials):
            return None
        return by_token or JSONResponse(
            {"error": "a user and a password are needed; see basic_auth_users in web.yml"},
            status_code=401,
            headers={"WWW-Authenticate": 'Basic realm="keypulse"'},
        )
