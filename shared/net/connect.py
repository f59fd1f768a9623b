"""A host's addresses → a socket that is connected to one of them: an address that hangs does not delay the others.

By aiohappyeyeballs: https://www.rfc-editor.org/rfc/rfc8305
"""

import socket
from typing import Final

from aiohappyeyeballs import start_connection

from shared.net.resolver import ResolvedAddress

ATTEMPT_DELAY_SECONDS: Final = 0.25
"""Seconds until the next address is tried beside one that has not answered: RFC 8305, section 5."""


async def connect(addresses: list[ResolvedAddress]) -> socket.socket:
    """Return the first connection that opens, and close the others. Has no timeout of its own.

    Args:
        addresses: at least one.

    Raises:
        OSError: no address accepted a connection; its errno is that of all of them, or None if they differ.
    """
    infos = [(family, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", address) for family, address in addresses]
    return await start_connection(infos, happy_eyeballs_delay=ATTEMPT_DELAY_SECONDS)
