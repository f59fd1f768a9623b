"""A proxy and a server → a connection to the server by CONNECT, for what is not HTTP.

https://www.rfc-editor.org/rfc/rfc9110#name-connect
"""

import asyncio
import re
import socket
from typing import Final

from shared.config.settings import Address
from shared.net.connect import connect
from shared.net.proxy import EgressError, Proxy, build_refusal
from shared.net.resolver import resolve

_MAX_ANSWER: Final = 16_384
"""Bytes of a proxy's answer, up to the empty line."""
_STATUS: Final = re.compile(rb"HTTP/1\.[01] (\d{3})[ \r]")


async def open_tunnel(proxy: Proxy, target: Address) -> socket.socket:
    """A connection to `target` through the proxy. Has no timeout of its own. Raises EgressError."""
    try:
        connection = await connect(await resolve(*proxy.address))
    except (OSError, UnicodeError) as error:
        cause = (isinstance(error, OSError) and error.strerror) or type(error).__name__
        raise EgressError(f"{proxy} cannot be reached: {cause}") from None
    try:
        await request_tunnel(connection, proxy, target)
    except BaseException:
        connection.close()
        raise
    return connection


async def request_tunnel(connection: socket.socket, proxy: Proxy, target: Address) -> None:
    """Makes a connection to a proxy one to `target`. Has no timeout of its own. Raises EgressError."""
    login = f"Proxy-Authorization: {proxy.authorization}\r\n" if proxy.authorization else ""
    request = f"CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n{login}\r\n"
    loop = asyncio.get_running_loop()
    answer = bytearray()
    try:
        await loop.sock_sendall(connection, request.encode())
        # Byte by byte: what follows the empty line is of the server, which may speak first, as those of mail do.
        while not answer.endswith(b"\r\n\r\n") and len(answer) < _MAX_ANSWER:
            byte = await loop.sock_recv(connection, 1)
            if not byte:
                break
            answer += byte
    except OSError as error:
        raise EgressError(f"{proxy} closed the connection: {error.strerror or type(error).__name__}") from None
    status = _STATUS.match(answer)
    if not answer:
        raise EgressError(f"{proxy} closed the connection")
    if status is None:
        raise EgressError(f"{proxy} does not answer as an HTTP proxy; correct its address", is_permanent=True)
    if not 200 <= int(status[1]) < 300:
        raise build_refusal(proxy, target, int(status[1]))
