"""A host's addresses → a socket that is connected to one of them; none that hangs keeps the others from their turn.

https://www.rfc-editor.org/rfc/rfc8305
"""

import asyncio
import socket
from collections.abc import Mapping
from itertools import zip_longest
from typing import Any, Final

from shared.net.resolver import ResolvedAddress

ATTEMPT_DELAY_SECONDS: Final = 0.25
"""Seconds until the next address gets its turn beside one that has not answered: RFC 8305, section 5."""


class ConnectError(OSError):
    """No address took the connection; in the words of the first."""

    def __init__(self, errors: Mapping[Any, BaseException | None]) -> None:
        first = next(iter(errors.values()), None)
        super().__init__(getattr(first, "errno", None), getattr(first, "strerror", None) or repr(first))
        self.errors = errors
        """By address."""


async def connect(addresses: list[ResolvedAddress]) -> socket.socket:
    """The first connection that comes about; the others are closed. Has no bound of its own.

    A next attempt begins when one has failed, or `ATTEMPT_DELAY_SECONDS` later.

    Args:
        addresses: at least one.

    Raises:
        ConnectError: each of them refused.
    """
    waiting = _interleave_families(addresses)
    attempts: dict[asyncio.Task[socket.socket], Any] = {}
    won: asyncio.Task[socket.socket] | None = None
    try:
        while waiting or not all(attempt.done() for attempt in attempts):
            if waiting:
                family, address = waiting.pop(0)
                attempts[asyncio.create_task(_open_socket(family, address))] = address
            running = [attempt for attempt in attempts if not attempt.done()]
            done, _ = await asyncio.wait(
                running, timeout=ATTEMPT_DELAY_SECONDS if waiting else None, return_when=asyncio.FIRST_COMPLETED
            )
            won = next((attempt for attempt in done if not attempt.exception()), None)
            if won:
                return won.result()
        raise ConnectError({address: attempt.exception() for attempt, address in attempts.items()})
    finally:
        for attempt in attempts:
            attempt.cancel()
        try:
            await asyncio.gather(*attempts, return_exceptions=True)
        except asyncio.CancelledError:
            won = None
            raise
        finally:
            for attempt in attempts:
                if attempt is not won and attempt.done() and not attempt.cancelled() and not attempt.exception():
                    attempt.result().close()


async def _open_socket(family: socket.AddressFamily, address: Any) -> socket.socket:
    connection = socket.socket(family, socket.SOCK_STREAM)
    try:
        connection.setblocking(False)  # noqa: FBT003 - as the socket module has it
        await asyncio.get_running_loop().sock_connect(connection, address)
    except BaseException:
        connection.close()
        raise
    return connection


def _interleave_families(addresses: list[ResolvedAddress]) -> list[ResolvedAddress]:
    """IPv6 and IPv4 in turn, the resolver's first choice first: RFC 8305, section 4."""
    preferred = [one for one in addresses if one[0] == addresses[0][0]]
    others = [one for one in addresses if one[0] != addresses[0][0]]
    return [one for pair in zip_longest(preferred, others) for one in pair if one]
