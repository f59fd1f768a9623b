"""A door before PostgreSQL that breaks in the middle of a commit, or lets nothing through for a while."""

import asyncio
import socket
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from enum import Enum, auto
from pathlib import Path

from services.relay.outbox.database import Database


class Cut(Enum):
    """When a connection is reset."""

    BEFORE_THE_COMMIT = auto()
    """PostgreSQL never hears of it: nothing was committed."""
    BEFORE_THE_ANSWER = auto()
    """PostgreSQL has committed, and nobody is told."""


class Proxy:
    """Carries bytes both ways; `address` is where it listens."""

    def __init__(self, upstream: Path) -> None:
        self._upstream = upstream
        self._cut: Cut | None = None
        self.open = asyncio.Event()
        """Cleared, nothing gets through, and nobody is told."""
        self.open.set()
        self.cut_off = 0
        """How many connections were reset."""

    def cut(self, how: Cut) -> None:
        """Resets the connection that sends the next COMMIT."""
        self._cut = how

    async def connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serves one connection until one side ends it."""
        server_reader, server_writer = await asyncio.open_unix_connection(self._upstream)
        silenced = asyncio.Event()
        ways = [
            asyncio.create_task(self._to_server(reader, server_writer, silenced)),
            asyncio.create_task(self._to_client(server_reader, writer, silenced)),
        ]
        try:
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for way in ways:
                way.cancel()
            await asyncio.gather(*ways, return_exceptions=True)
            writer.transport.abort()
            server_writer.transport.abort()

    async def _to_server(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, silenced: asyncio.Event
    ) -> None:
        while data := await reader.read(65536):
            await self.open.wait()
            if b"COMMIT" in data and self._cut is not None:
                how, self._cut = self._cut, None
                if how is Cut.BEFORE_THE_COMMIT:
                    self.cut_off += 1
                    return
                silenced.set()
            writer.write(data)
            await writer.drain()

    async def _to_client(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, silenced: asyncio.Event
    ) -> None:
        while data := await reader.read(65536):
            await self.open.wait()
            if silenced.is_set():
                self.cut_off += 1
                return
            writer.write(data)
            await writer.drain()


@asynccontextmanager
async def before(database: Database) -> AsyncIterator[tuple[Proxy, Database]]:
    """A proxy before a database that listens on a socket of the file system; and the database's address through it."""
    proxy = Proxy(Path(str(database.query["host"]), ".s.PGSQL.5432"))
    connections: set[asyncio.Task[None]] = set()

    def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        # A connection that is reset and not merely closed: https://man7.org/linux/man-pages/man7/socket.7.html
        client: socket.socket = writer.get_extra_info("socket")
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        task = asyncio.create_task(proxy.connected(reader, writer))
        connections.add(task)
        task.add_done_callback(connections.discard)

    server = await asyncio.start_server(connected, "127.0.0.1", 0)
    host, port = server.sockets[0].getsockname()
    try:
        yield proxy, database.set(host=host, port=port, query={})
    finally:
        server.close()
        for task in [*connections]:
            task.cancel()
            with suppress(asyncio.CancelledError, OSError):
                await task
        await server.wait_closed()
