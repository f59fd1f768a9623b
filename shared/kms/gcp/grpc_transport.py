"""How gRPC connects: the options of a channel, which proxy it uses, and which certificates it trusts."""

import os
import ssl
from collections.abc import Mapping
from functools import cache
from importlib import resources
from ipaddress import ip_address, ip_network
from typing import Final
from urllib.parse import urlsplit

CHANNEL_OPTIONS: Final = [
    # Without these, gRPC waits up to 2 minutes before it connects again, long after the service is back.
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.max_reconnect_backoff_ms", 5000),
    # Without this, a new channel may get the connection of the one that was just closed because it was dead.
    ("grpc.use_local_subchannel_pool", 1),
]
# Plaintext to an emulator on this machine must not go through a proxy that the environment names.
PLAINTEXT_CHANNEL_OPTIONS: Final = [*CHANNEL_OPTIONS, ("grpc.enable_http_proxy", 0)]


def find_proxy(host: str, environment: Mapping[str, str]) -> tuple[str, str] | None:
    """The environment variable that names the proxy to `host`, and its HOST:PORT without a password; None: no proxy.

    As gRPC itself finds it, which differs from other programs (no capitals, no `https://` proxies):
    https://github.com/grpc/grpc/blob/master/src/core/handshaker/http_connect/http_proxy_mapper.cc
    """
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
    """A TLS context with the roots that gRPC trusts, which are not those of the host. Raises OSError."""
    bundled_roots = resources.files("grpc._cython") / "_credentials" / "roots.pem"
    return ssl.create_default_context(cafile=os.environ.get("GRPC_DEFAULT_SSL_ROOTS_FILE_PATH") or str(bundled_roots))
