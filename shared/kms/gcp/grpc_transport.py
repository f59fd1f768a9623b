"""Which proxy gRPC takes to a host, by the environment. Pure.

As gRPC itself looks for it, which is not quite as others do (no capitals, no `https://` proxies):
https://github.com/grpc/grpc/blob/master/src/core/handshaker/http_connect/http_proxy_mapper.cc

Whom gRPC trusts.
"""

import os
import ssl
from collections.abc import Mapping
from functools import cache
from importlib import resources
from ipaddress import ip_address, ip_network
from urllib.parse import urlsplit


def find_proxy(host: str, environment: Mapping[str, str]) -> tuple[str, str] | None:
    """Name of the variable that says so, and HOST:PORT of the proxy, without its password; None where there is none."""
    name = next((name for name in ("grpc_proxy", "https_proxy", "http_proxy") if name in environment), None)
    if name is None:
        return None
    url = urlsplit(environment[name])
    passed_by = environment.get("no_grpc_proxy", environment.get("no_proxy", ""))
    if url.scheme != "http" or not url.netloc or any(_matches_no_proxy(host, e) for e in passed_by.split(",") if e):
        return None
    return name, url.netloc.rpartition("@")[2]


def _matches_no_proxy(host: str, entry: str) -> bool:
    """Whether an entry of `no_proxy` is the end of the host's name, or a network that holds its address."""
    entry = entry.strip()
    if host.lower().endswith(entry.lower()):
        return True
    try:
        return "/" in entry and ip_address(host) in ip_network(entry, strict=False)
    except ValueError:
        return False


@cache  # gRPC, too, reads its roots once
def create_trust_context() -> ssl.SSLContext:
    """Trusts what gRPC trusts, which is not what the machine does. Raises OSError."""
    own = resources.files("grpc._cython") / "_credentials" / "roots.pem"
    return ssl.create_default_context(cafile=os.environ.get("GRPC_DEFAULT_SSL_ROOTS_FILE_PATH") or str(own))
