"""The kernel's own list of connections, so that what a library leaves open is seen; and a server's end."""

import asyncio
import socket
from asyncio.selector_events import BaseSelectorEventLoop
from pathlib import Path
from typing import Any

from shared.config.settings import Address

_ESTABLISHED = "01"


def connections(to: Address) -> int:
    """How many TCP connections lead to a port of this machine."""
    lists = [Path(f"/proc/self/net/{name}").read_text().splitlines()[1:] for name in ("tcp", "tcp6")]
    rows = [line.split() for lines in lists for line in lines]
    return sum(row[2].endswith(f":{to.port:04X}") and row[3] == _ESTABLISHED for row in rows)


async def close_server(server: asyncio.Server) -> None:
    """Accepts no connection any more, and leaves none open that was just accepted.

    asyncio of Python 3.11 forgets the socket of a connection whose server is closed between its accept and the next
    iteration of the loop. A client such as gRPC's connects again at any moment.
    """
    for listener in server.sockets:
        server.get_loop().remove_reader(listener.fileno())
    for _ in range(3):  # the transport, its protocol, and then the handler
        await asyncio.sleep(0)
    server.close()


def close_late_connections() -> None:
    """From now on a connection whose server is closed while it is accepted is closed, too, whoever made the server.

    Else its ResourceWarning would fail whichever test runs when it is found. Other programs connect at any moment.
    """
    accept = BaseSelectorEventLoop._accept_connection2  # type: ignore[attr-defined]

    async def accept_or_close(
        loop: Any,
        create_protocol: Any,
        accepted: socket.socket,
        extra: Any,
        tls: Any = None,
        server: asyncio.Server | None = None,
        *timeouts: float,
    ) -> None:
        if server and not server.sockets:
            accepted.close()
        else:
            await accept(loop, create_protocol, accepted, extra, tls, server, *timeouts)

    BaseSelectorEventLoop._accept_connection2 = accept_or_close  # type: ignore[attr-defined]
