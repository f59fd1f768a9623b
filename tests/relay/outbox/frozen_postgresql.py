"""A PostgreSQL that hangs: its connections stay open, take what is sent, and answer nothing."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from os import kill
from pathlib import Path

from tests.postgres import Postgres


@contextmanager
def frozen(server: Postgres) -> Iterator[None]:
    """Stops the server and the process of each of its connections while the body runs."""
    parent = server.process.pid
    kill(parent, signal.SIGSTOP)  # first: from now on it makes no other
    children = [int(pid) for pid in Path(f"/proc/{parent}/task/{parent}/children").read_text().split()]
    for child in children:
        kill(child, signal.SIGSTOP)
    try:
        yield
    finally:
        for process in (*children, parent):
            kill(process, signal.SIGCONT)
