"""What a request says of the web page that made a browser send it.

A browser adds the credentials that it holds, and reaches loopback: neither says that the person meant it. What a
browser says of itself does: `Origin`, and `Sec-Fetch-Site` (https://www.w3.org/TR/fetch-metadata/). Programs send
neither. The latter counts where both are sent: no page can set it, and behind a proxy that ends TLS the former names
`https`. A page that points its own name at 127.0.0.1 (DNS rebinding) shows in `Host`.
"""

import ipaddress
from urllib.parse import urlsplit

from starlette.requests import Request

from shared.config.settings import Address


def is_cross_origin(request: Request) -> bool:
    """Whether a browser says that it comes from another origin."""
    site = request.headers.get("sec-fetch-site")
    if site is not None:
        return site not in ("same-origin", "none")
    origin = request.headers.get("origin")
    return origin is not None and origin != f"{request.url.scheme}://{request.headers.get('host', '')}"


def is_loopback_host(host: str) -> bool:
    """Whether a header `Host` is a name of loopback."""
    name = _parse_host_name(host)
    return name is not None and Address(name, 0).is_loopback


def is_private_host(host: str) -> bool:
    """Whether a header `Host` is an address, or a name without a dot: nobody outside can point either here."""
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
