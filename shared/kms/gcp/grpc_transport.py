"""How gRPC connects: the options of a channel, by a proxy or without, and which certificates it trusts."""

import os
import ssl
from functools import cache
from importlib import resources
from typing import Any, Final

from shared.config.settings import Address
from shared.net.proxy import Proxy

CHANNEL_OPTIONS: Final = [
    # Without these, gRPC waits up to 2 minutes before it connects again, long after the service is back.
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.max_reconnect_backoff_ms", 5000),
    # Without this, a new channel may get the connection of the one that was just closed because it was dead.
    ("grpc.use_local_subchannel_pool", 1),
]


def build_channel_options(address: Address, proxy: Proxy | None) -> list[tuple[str, Any]]:
    """The options of a channel to `address`, which with a proxy connects to the proxy's address instead.

    gRPC would choose a proxy itself, by the environment alone, and without capitals: so it chooses none, and CONNECT is
    given to it by the options that its own choice sets.
    https://github.com/grpc/grpc/blob/master/src/core/handshaker/http_connect/http_proxy_mapper.cc
    """
    options: list[tuple[str, Any]] = [*CHANNEL_OPTIONS, ("grpc.enable_http_proxy", 0)]
    if proxy is None:
        return options
    # The authority is also the name that the certificate has to have.
    options += [("grpc.http_connect_server", str(address)), ("grpc.default_authority", str(address))]
    if proxy.authorization:
        options.append(("grpc.http_connect_headers", f"Proxy-Authorization:{proxy.authorization}"))
    return options


@cache  # gRPC, too, reads its roots once
def create_trust_context() -> ssl.SSLContext:
    """A TLS context with the roots that gRPC trusts, which are not those of the host. Raises OSError."""
    bundled_roots = resources.files("grpc._cython") / "_credentials" / "roots.pem"
    return ssl.create_default_context(cafile=os.environ.get("GRPC_DEFAULT_SSL_ROOTS_FILE_PATH") or str(bundled_roots))
