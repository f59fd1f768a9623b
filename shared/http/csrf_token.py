"""The token that every action of a page carries, so that no other page makes a browser act (CSRF).

It is bound to the caller's session, or to a cookie of its own for callers without one (double submit). It comes in the
header `X-CSRF-Token`, or in the field `csrf_token`, the first of a form: of the body no more than that is read here.
"""

import asyncio
import hmac
import re
import secrets
from collections import deque
from typing import Final

from starlette.datastructures import MutableHeaders
from starlette.requests import Request
from starlette.types import Message, Receive, Send

from shared.http.authentication import get_session
from shared.http.cookies import format_cookie, read_cookie

CSRF_HEADER: Final = "x-csrf-token"
CSRF_FIELD: Final = "csrf_token"
_COOKIE: Final = "csrf"
_COOKIE_SECONDS: Final = 7 * 86400
_NEW_VALUE_SCOPE_KEY: Final = "keypulse.new_csrf_cookie"
_SECRET: Final = re.compile("[A-Za-z0-9_-]{43}")
_TOKEN_BYTES: Final = 64
_FIRST_BYTES: Final = len(CSRF_FIELD) + 1 + _TOKEN_BYTES + 1
"""Name, value, and what ends it."""
_READ_SECONDS: Final = 30.0
"""How long the beginning of a form may take to arrive."""


def get_csrf_token(request: Request) -> str:
    """Return the token for the forms of a page; the response sets the cookie that it needs, if any."""
    secret = _find_secret(request)
    if secret is None:
        secret = request.scope[_NEW_VALUE_SCOPE_KEY] = secrets.token_urlsafe(32)
    return _derive_token(secret)


def send_csrf_cookie(request: Request, send: Send) -> Send:
    """Return a `send` that adds the cookie, if `get_csrf_token` needed a new one."""

    async def send_with_cookie(message: Message) -> None:
        secret = request.scope.get(_NEW_VALUE_SCOPE_KEY)
        if secret and message["type"] == "http.response.start":
            cookie = format_cookie(request, _COOKIE, secret, max_age=_COOKIE_SECONDS)
            MutableHeaders(scope=message).append("set-cookie", cookie)
        await send(message)

    return send_with_cookie


async def check_csrf_token(request: Request, receive: Receive) -> tuple[bool, Receive]:
    """Return whether a request has the token, and a `receive` that begins with what was read of its body."""
    sent = request.headers.get(CSRF_HEADER)
    if sent is None:
        try:
            async with asyncio.timeout(_READ_SECONDS):
                sent, receive = await _read_field(receive)
        except TimeoutError:
            return False, receive
    secret = _find_secret(request)
    return secret is not None and hmac.compare_digest(_derive_token(secret).encode(), sent.encode()), receive


async def _read_field(receive: Receive) -> tuple[str, Receive]:
    beginning = b""
    messages: deque[Message] = deque()
    while len(beginning) < _FIRST_BYTES:
        messages.append(message := await receive())
        beginning += message.get("body", b"")
        if not message.get("more_body"):
            break

    async def replay() -> Message:
        return messages.popleft() if messages else await receive()

    name, _, value = beginning.partition(b"&")[0].partition(b"=")
    return value.decode("latin-1") if name == CSRF_FIELD.encode() else "", replay


def _find_secret(request: Request) -> str | None:
    session = get_session(request)
    secret = (
        (session and session.secret) or request.scope.get(_NEW_VALUE_SCOPE_KEY) or read_cookie(request, _COOKIE) or ""
    )
    return secret if _SECRET.fullmatch(secret) else None


def _derive_token(secret: str) -> str:
    return hmac.digest(secret.encode(), b"csrf", "sha256").hex()
