"""A server's end leaves no connection open."""

import asyncio
import gc
import socket


async def test_a_connection_whose_server_is_closed_while_it_is_accepted_is_closed() -> None:
    server = await asyncio.start_server(lambda *_: None, "127.0.0.1", 0)
    with socket.create_connection(server.sockets[0].getsockname()) as client:
        for _ in range(2):
            await asyncio.sleep(0)  # after the second one it is accepted, and has no transport yet
        server.close()
        await asyncio.sleep(0)
        gc.collect()
        client.settimeout(20)
        assert client.recv(1) == b""
