"""Whom gRPC trusts."""

import os
import ssl
from functools import cache
from importlib import resources


@cache  # gRPC, too, reads its roots once
def create_trust_context() -> ssl.SSLContext:
    """Trusts what gRPC trusts, which is not what the machine does. Raises OSError."""
    own = resources.files("grpc._cython") / "_credentials" / "roots.pem"
    return ssl.create_default_context(cafile=os.environ.get("GRPC_DEFAULT_SSL_ROOTS_FILE_PATH") or str(own))
