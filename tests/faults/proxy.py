"""A door before PostgreSQL or Slack: it breaks in the middle of a commit, holds a request, or lets nothing through."""

import asyncio
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from enum import Enum, auto
from pathlib import Path

from ops.demo.stand_ins.app import StandIns
from shared.sql.database_url import DatabaseUrl


class Cut(Enum):
    """When a connection is reset."""

    BEFORE_THE_COMMIT = auto()
    """PostgreSQL never hears of it: nothing was committed."""
    BEFORE_THE_ANSWER = auto()
    """PostgreSQL has committed, and its answer reaches nobody."""


class BlockedStep(Enum):
    """What stands still where a connection is held."""

    REQUEST = auto()
    """The server does not hear of it before the release."""
    ANSWER = auto()
    """The server does what it was asked, and nobody is told before the release."""


Connect = Callable[[], Awaitable[tuple[asyncio.StreamReader, asyncio.StreamWriter]]]


class Proxy:
    """Carries bytes both ways."""

    def __init__(self, connect: Connect) -> None:
        self._connect = connect
        self._cut: Cut | None = None
        self._hold: tuple[BlockedStep, tuple[bytes, ...]] | None = None
        self._released = asyncio.Event()
        self.blocked = 0
        """How many connections stand still, or stood."""
        self.open = asyncio.Event()
        """Cleared, nothing gets through, and nobody is told."""
        self.open.set()
        self.cut_off = 0
        """How many connections were reset."""

    def cut(self, how: Cut) -> None:
        """Resets the connection that sends the next COMMIT."""
        self._cut = how

    def hold(self, what: BlockedStep, *markers: bytes) -> None:
        """Every connection on which a client says these words, one after the other, stands still at the last one."""
        self._hold = (what, markers)

    def release(self) -> None:
        """What stood still goes on, and nothing is held any more."""
        self._hold = None
        self._released.set()

    async def connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serves one connection until one side ends it."""
        try:
            server_reader, server_writer = await self._connect()
        except BaseException:
            writer.transport.abort()
            raise
        connection = _Connection()
        ways = [
            asyncio.create_task(self._to_server(reader, server_writer, connection)),
            asyncio.create_task(self._to_client(server_reader, writer, connection)),
        ]
        try:
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for direction in ways:
                direction.cancel()
            await asyncio.gather(*ways, return_exceptions=True)
            writer.transport.abort()
            server_writer.transport.abort()

    async def _to_server(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, connection: "_Connection"
    ) -> None:
        while data := await reader.read(65536):
            await self.open.wait()
            if b"COMMIT" in data and self._cut is not None:
                how, self._cut = self._cut, None
                if how is Cut.BEFORE_THE_COMMIT:
                    self.cut_off += 1
                    return
                connection.silenced = True
            if self._find_blocked_step(data, connection) is BlockedStep.REQUEST:
                await self._released.wait()
            writer.write(data)
            await writer.drain()

    async def _to_client(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, connection: "_Connection"
    ) -> None:
        while data := await reader.read(65536):
            await self.open.wait()
            if connection.silenced:
                self.cut_off += 1
                return
            if connection.blocked:
                await self._released.wait()
            writer.write(data)
            await writer.drain()

    def _find_blocked_step(self, data: bytes, connection: "_Connection") -> BlockedStep | None:
        if self._hold is None:
            return None
        what, markers = self._hold
        connection.markers_passed += markers[connection.markers_passed] in data
        if connection.markers_passed < len(markers):
            return None
        connection.markers_passed, connection.blocked = 0, what is BlockedStep.ANSWER
        self.blocked += 1
        return what


@dataclass
class _Connection:
    silenced: bool = False
    """Whether its answers are lost."""
    blocked: bool = False
    """Whether its answers wait for the release."""
    markers_passed: int = 0
    """How many of the words were said at which it is held."""


@asynccontextmanager
async def before(database: DatabaseUrl) -> AsyncIterator[tuple[Proxy, DatabaseUrl]]:
    """A proxy before a database that listens on a socket of the file system; and the database's address through it."""
    file = Path(str(database.query["host"]), ".s.PGSQL.5432")
    async with _serving(lambda: asyncio.open_unix_connection(file)) as (proxy, (host, port)):
        yield proxy, database.set(host=host, port=port, query={})


@asynccontextmanager
async def before_slack(providers: StandIns) -> AsyncIterator[tuple[Proxy, str]]:
    """A proxy before the stand-in Slack, and its base URL through it."""
    host, port = providers.http
    async with _serving(lambda: asyncio.open_connection(host, port)) as (proxy, address):
        yield proxy, providers.slack_api_url.replace(f"{host}:{port}", "{}:{}".format(*address))


@asynccontextmanager
async def _serving(connect: Connect) -> AsyncIterator[tuple[Proxy, tuple[str, int]]]:
    proxy = Proxy(connect)
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
        yield proxy, (host, port)
    finally:
        server.close()
        for task in [*connections]:
            task.cancel()
            with suppress(asyncio.CancelledError, OSError):
                await task
        await server.wait_closed()
