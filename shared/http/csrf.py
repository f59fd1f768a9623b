"""Detects requests that a foreign web page made a browser send (CSRF, DNS rebinding).

A browser adds its credentials and reaches loopback, so neither shows that a person meant the request. `Origin` and
`Sec-Fetch-Site` do (https://www.w3.org/TR/fetch-metadata/); programs send neither. `Sec-Fetch-Site` wins if both are
sent: no page can set it, and behind a proxy that ends TLS `Origin` has `https`. A page that points its own name at
127.0.0.1 is recognised by `Host`.
"""

import ipaddress
from urllib.parse import urlsplit

from starlette.requests import Request

from shared.config.settings import Address


def is_cross_origin(request: Request) -> bool:
    """Whether a browser sent it for a page of another origin."""
    site = request.headers.get("sec-fetch-site")
    if site is not None:
        return site not in ("same-origin", "none")
    origin = request.headers.get("origin")
    return origin is not None and origin != f"{request.scope.get('scheme', 'http')}://{request.headers.get('host', '')}"


def is_loopback_host(host: str) -> bool:
    """Whether a header `Host` is a name of loopback."""
    name = _parse_host_name(host)
    return name is not None and Address(name, 0).is_loopback


def is_private_host(host: str) -> bool:
    """Whether a header `Host` is an address, or a name without a dot: no outsider can point either at this machine."""
    name = _parse_host_name(host)
    if name is None:
        return False
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return "." not in name
    return True


def _parse_host_name(host: str) -> str | None:
    try:
        return urlsplit(f"//{host}").hostname
    except ValueError:
        return None
