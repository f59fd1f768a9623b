"""A name server that does not answer for some names."""

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest


@contextmanager
def hanging_for(name: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """Whoever asks for a host that ends with `name` waits, a minute at most, for the event that this gives."""
    real, end = socket.getaddrinfo, threading.Event()

    def look_up(host: str, *arguments: Any, **named: Any) -> Any:
        if host.endswith(name):
            end.wait(60)
            raise OSError
        return real(host, *arguments, **named)

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    try:
        yield end
    finally:
        end.set()
