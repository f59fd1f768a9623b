"""A port that stays a test's own while nobody listens there."""

import socket
from collections.abc import Iterator
from contextlib import contextmanager

from shared.config.settings import Address


@contextmanager
def reserve_port(port: int = 0) -> Iterator[Address]:
    """An address for servers that come and go; any free port for 0.

    Bound and never listening, its socket lets them listen there, and the system gives the port to nobody else.
    """
    with socket.socket() as reserved:
        reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        reserved.bind(("127.0.0.1", port))
        yield Address(*reserved.getsockname())
