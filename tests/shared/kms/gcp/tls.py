"""The emulator behind TLS, as Cloud KMS is."""

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from ops.kms_emulator.emulator import Emulator
from shared.config.settings import Address
from tests.connections import close_server
from tests.shared.certificates import LOCALHOST, Authority


@asynccontextmanager
async def tls_before(emulator: Emulator, authority: Authority) -> AsyncIterator[Address]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*authority.sign("kms", *LOCALHOST))
    context.set_alpn_protocols(["h2"])
    connections: set[asyncio.Task[None]] = set()

    async def pump(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        while data := await source.read(65536):
            sink.write(data)
        sink.close()

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_connection(*emulator.address)
        await asyncio.gather(pump(reader, back), pump(there, writer), return_exceptions=True)
        for end in (writer, back):
            end.close()
        await asyncio.gather(writer.wait_closed(), back.wait_closed(), return_exceptions=True)

    def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(connected(reader, writer))
        connections.add(task)
        task.add_done_callback(connections.discard)

    server = await asyncio.start_server(accept, "127.0.0.1", 0, ssl=context)
    try:
        yield Address("localhost", server.sockets[0].getsockname()[1])
    finally:
        await close_server(server)
        await asyncio.wait_for(asyncio.gather(*connections), 10)  # each ends when its client has closed it
