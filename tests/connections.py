"""The kernel's own list of connections, so that what a library leaves open is seen; and a server's end."""

import asyncio
from pathlib import Path

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
