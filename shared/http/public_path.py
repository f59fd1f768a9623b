"""A server below a path of its proxy, such as https://tools.example.org/keypulse.

In the server all addresses begin at `/`. This layer removes the path from a request where the proxy has not, and puts
it before the addresses in pages and redirects. A request for another host came past the proxy, for example by a
port-forward, and gets them as they are.
"""

import re
from typing import Final

from starlette.datastructures import MutableHeaders
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from shared.http.access import Authorizer

# What others wrote is escaped, its quotes, too: only a template writes such an attribute.
_OWN_ADDRESS: Final = re.compile(rb'((?:href|src|action|formaction|hx-get|sse-connect)=")/')


class PublicPathMiddleware:
    """ASGI middleware that puts `public_path` of the sessions before the addresses in answers.

    Args:
        app: a page of it is one message, with its length.
        authorizer: has the sessions, which a reload may replace.
    """

    def __init__(self, app: ASGIApp, authorizer: Authorizer) -> None:
        self._app = app
        self._authorizer = authorizer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        sessions = self._authorizer.sessions
        path = sessions.public_path if sessions else ""
        if not sessions or not path or not sessions.is_public_host(Request(scope)):
            await self._app(scope, receive, send)
            return
        if scope["path"] == path or scope["path"].startswith(f"{path}/"):
            raw: bytes = scope["raw_path"]
            scope = {**scope, "path": scope["path"][len(path) :] or "/", "raw_path": raw[len(path) :] or b"/"}
        head: Message | None = None
        """Of a page; sent together with it, because the length changes."""

        async def send_below(message: Message) -> None:
            nonlocal head
            if message["type"] == "http.response.start":
                headers = MutableHeaders(raw=message["headers"])
                for name in ("location", "hx-redirect"):
                    if headers.get(name, "").startswith("/"):
                        headers[name] = path + headers[name]
                if headers.get("content-type", "").startswith("text/html"):
                    head = message
                    return
            elif head is not None:
                body = _OWN_ADDRESS.sub(rb"\1" + path.encode() + b"/", message["body"])
                MutableHeaders(raw=head["headers"])["content-length"] = str(len(body))
                await send(head)
                message, head = {**message, "body": body}, None
            await send(message)

        await self._app(scope, receive, send_below)
