"""The time by Cloud KMS's clock: the header `Date` of an answer over HTTP/1.1, since gRPC's answers have none."""

import asyncio
import re
import ssl
from email.utils import parsedate_to_datetime
from typing import Final

from shared.config.settings import Address
from shared.net.connect import connect
from shared.net.proxy import Proxy
from shared.net.resolver import resolve
from shared.net.tunnel import open_tunnel

_DATE: Final = re.compile(rb"^date:[ \t]*([^\r]*)\r$", re.IGNORECASE | re.MULTILINE)


async def read_date(address: Address, proxy: Proxy | None, trusted: ssl.SSLContext, timeout: float) -> float | None:
    """Return the unix seconds of the answer to a request without credentials; None without such an answer.

    Args:
        address: of the service.
        proxy: that leads to it; None: the connection is direct.
        trusted: a context with the authorities. It may be one for HTTP/2, and is not used itself.
        timeout: seconds for all of it.
    """
    context = ssl.create_default_context(cadata=b"".join(trusted.get_ca_certs(binary_form=True)))
    try:
        async with asyncio.timeout(timeout):
            found = _DATE.search(await _read_head(address, proxy, context))
            return parsedate_to_datetime(found[1].decode("ascii")).timestamp() if found else None
    except (OSError, ValueError, EOFError, asyncio.LimitOverrunError):  # TimeoutError and UnicodeError among them
        return None


async def _read_head(address: Address, proxy: Proxy | None, context: ssl.SSLContext) -> bytes:
    connection = await (open_tunnel(proxy, address) if proxy else connect(await resolve(*address)))
    reader, writer = await asyncio.open_connection(sock=connection, ssl=context, server_hostname=address.host)
    try:
        writer.write(f"HEAD / HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n".encode())
        return await reader.readuntil(b"\r\n\r\n")
    finally:
        writer.close()
