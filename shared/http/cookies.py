"""Cookies of the servers' pages: for scripts invisible, for other sites useless, on https bound to this very host.

`__Host-` makes a browser refuse the cookie from a subdomain or from plain http
(https://datatracker.ietf.org/doc/html/draft-ietf-httpbis-rfc6265bis#name-the-__host-prefix).
"""

from starlette.requests import Request


def read_cookie(request: Request, name: str) -> str | None:
    """Return the value of a cookie that `format_cookie` made, or None."""
    return request.cookies.get(_build_name(request, name))


def list_cookies(request: Request, prefix: str) -> list[str]:
    """Return the names of the cookies of a request that begin so."""
    own = _build_name(request, "")
    return [name.removeprefix(own) for name in request.cookies if name.startswith(own + prefix)]


def format_cookie(request: Request, name: str, value: str, *, max_age: int | None = None) -> str:
    """Return the header `Set-Cookie`.

    Args:
        request: that is answered; its scheme decides.
        name: of the cookie, without prefixes.
        value: letters, digits and characters that need no quotes.
        max_age: seconds; 0 removes it, None keeps it until the browser ends.
    """
    secure = "; Secure" if request.scope.get("scheme") == "https" else ""
    age = "" if max_age is None else f"; Max-Age={max_age}"
    return f"{_build_name(request, name)}={value}; Path=/; HttpOnly; SameSite=Lax{secure}{age}"


def _build_name(request: Request, name: str) -> str:
    prefix = "__Host-" if request.scope.get("scheme") == "https" else ""
    return f"{prefix}keypulse_{name}"
