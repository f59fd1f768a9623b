"""A URL → the proxy that leads to it, by HTTPS_PROXY, HTTP_PROXY and NO_PROXY in the environment, in capitals or not.

NO_PROXY is read as by Go's programs, so that one value fits Prometheus, Alertmanager and keypulse:
https://pkg.go.dev/golang.org/x/net/http/httpproxy#Config. Loopback addresses are always direct.
"""

import os
import re
from base64 import b64encode
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from ipaddress import ip_address, ip_network
from typing import Final
from urllib.parse import unquote, urlsplit

from shared.config.settings import Address

_DEFAULT_PORT: Final = 80
_VARIABLES: Final = {"http": "HTTP_PROXY", "https": "HTTPS_PROXY"}
_DEFAULT_PORTS: Final = {"http": 80, "https": 443}
_LOGIN_STATUSES: Final = {401, 407}
"""Of a proxy that wants a login; tinyproxy answers 401 to a wrong one."""


class EgressError(OSError):
    """No connection, for its proxy or its authorities; `strerror` is a sentence without credentials.

    Args:
        sentence: what went wrong, and what to do.
        is_permanent: whether a person has to act.
        is_login: whether the proxy wants another user or password.
    """

    strerror: str

    def __init__(self, sentence: str, *, is_permanent: bool = False, is_login: bool = False) -> None:
        super().__init__(sentence)
        self.strerror = sentence
        self.is_permanent = is_permanent
        self.is_login = is_login


@dataclass(frozen=True, slots=True)
class Proxy:
    """An HTTP proxy."""

    address: Address
    source: str
    """What names it: HTTPS_PROXY, or a setting."""
    login: str | None = field(default=None, repr=False)
    """`USER:PASSWORD`."""

    def __str__(self) -> str:
        """For people: without the login."""
        return f"the proxy {self.address} ({self.source})"

    @property
    def authorization(self) -> str | None:
        """The value of `Proxy-Authorization`, if it has a login."""
        return None if self.login is None else f"Basic {b64encode(self.login.encode()).decode()}"


def parse_proxy_url(url: str, source: str) -> Proxy:
    """The proxy of `http://HOST:PORT`, perhaps with `USER:PASSWORD@`. Raises ValueError, which does not repeat it."""
    expected = "expected http://HOST:PORT of a proxy"
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        raise ValueError(expected) from None
    # What follows the port may be the rest of a password that is not encoded, and the host its user.
    follows = parts.path not in {"", "/"} or re.search("[?#]", url)
    if parts.scheme != "http" or not host or port == 0 or follows or not url.isprintable():
        raise ValueError(expected)
    login = None if parts.username is None else f"{unquote(parts.username)}:{unquote(parts.password or '')}"
    return Proxy(Address(host, port or _DEFAULT_PORT), source, login)


def find_environment_proxy(url: str, environment: Mapping[str, str] = os.environ) -> Proxy | None:
    """The proxy to a URL by the environment; None: none leads there, or its scheme is neither http nor https.

    Raises:
        EgressError: the variable names no HTTP proxy.
    """
    parts = urlsplit(url)
    host = (parts.hostname or "").rstrip(".").lower()
    name = _VARIABLES.get(parts.scheme, "")
    value = _read_variable(name, environment)
    if not value or Address(host, 0).is_loopback:
        return None
    port = parts.port or _DEFAULT_PORTS[parts.scheme]
    if any(_matches(entry.strip().lower(), host, port) for entry in _read_variable("NO_PROXY", environment).split(",")):
        return None
    try:
        return parse_proxy_url(value if "://" in value else f"http://{value}", name)
    except ValueError as error:
        raise EgressError(f"{name} in the environment: {error}", is_permanent=True) from None


def build_refusal(proxy: Proxy, target: Address, status: int) -> EgressError:
    """The error for a proxy that answers CONNECT with an HTTP status other than 200."""
    if status in _LOGIN_STATUSES:
        sentence = f"{proxy} wants another user and password (HTTP {status}); put them into its URL"
    elif status < 500:
        sentence = f"{proxy} refuses {target} (HTTP {status}); allow it there, or set `proxy: none`"
    else:
        sentence = f"{proxy} cannot connect to {target} (HTTP {status})"
    is_permanent = status < 500 and status not in {408, 425, 429}
    return EgressError(sentence, is_permanent=is_permanent, is_login=status in _LOGIN_STATUSES)


def _read_variable(name: str, environment: Mapping[str, str]) -> str:
    return (environment.get(name) or environment.get(name.lower()) or "").strip()


def _matches(entry: str, host: str, port: int) -> bool:
    """Whether an entry of NO_PROXY covers a host: `*`, an address, a network, a domain; perhaps with a port."""
    if entry == "*":
        return True
    with suppress(ValueError):
        return ip_address(host) in ip_network(entry.strip("[]"), strict=False)
    if with_port := re.fullmatch(r"(.+):(\d+)", entry):
        return int(with_port[2]) == port and _matches(with_port[1], host, port)
    domain = entry.removeprefix("*")
    if domain.startswith("."):  # of subdomains alone
        return host.endswith(domain)
    return bool(domain) and (host == domain or host.endswith(f".{domain}"))
