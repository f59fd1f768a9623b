"""Who may call: `Authorization: Bearer TOKEN`, or, for a browser, Basic with the token as its password."""

import base64
import binascii
from collections.abc import Awaitable, Callable

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from shared.secret_file import SecretFile, SecretUnreadableError

USER = "keypulse.user"
"""The key of a request's scope under which the name of a user of web.yml stands, once the password was right."""
Endpoint = Callable[[Request], Awaitable[Response]]


def refusal(
    request: Request, secret: SecretFile, *, browser: bool = False, bearer_only: bool = False
) -> Response | None:
    """The answer to a caller that may not come in: 401, or 503 where the token file cannot be read; else None.

    Args:
        request: only its `Authorization` header is read, never its body. A user of web.yml may come in everywhere.
        secret: the tokens that are let in.
        browser: whether a 401 asks a browser for a password.
        bearer_only: whether a user of web.yml, or the password that a browser sends by itself, is not enough.
    """
    if USER in request.scope and not bearer_only:
        return None
    scheme, _, credentials = request.headers.get("authorization", "").partition(" ")
    # The bytes as they came: Starlette reads headers as latin-1.
    bearer = credentials.strip().encode("latin-1") if scheme.lower() == "bearer" else b""
    token = bearer if bearer or bearer_only else basic(request)[1]
    try:
        if secret.matches(token):
            return None
    except SecretUnreadableError:
        return JSONResponse({"error": "the token file of this server cannot be read"}, status_code=503)
    challenge = 'Basic realm="keypulse"' if browser else "Bearer"
    return JSONResponse(
        {"error": "a valid token is needed: Authorization: Bearer TOKEN"},
        status_code=401,
        headers={"WWW-Authenticate": challenge},
    )


def guarded(endpoint: Endpoint, secret: SecretFile | None, *, browser: bool = False) -> Endpoint:
    """`endpoint` behind `secret`; with no secret it stays open (settings allow that on loopback only)."""
    if secret is None:
        return endpoint

    async def guard(request: Request) -> Response:
        return refusal(request, secret, browser=browser) or await endpoint(request)

    return guard


def basic(request: Request) -> tuple[str, bytes]:
    """Name and password of a Basic header; both empty where there is none."""
    scheme, _, credentials = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() != "basic":
        return "", b""
    try:
        name, _, password = base64.b64decode(credentials, validate=True).partition(b":")
        return name.decode(), password
    except (binascii.Error, ValueError):
        return "", b""
