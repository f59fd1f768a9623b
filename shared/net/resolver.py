"""A host's name → its addresses, by the system's resolver, which may hang: that delays nothing else."""

import asyncio
import socket
from concurrent.futures import Future
from ipaddress import ip_address
from typing import Any, Final

from shared.process.concurrency import start_in_thread

ResolvedAddress = tuple[socket.AddressFamily, Any]
"""Family of an address, and the address as a socket of that family wants it."""

_pending_lookups: Final[dict[tuple[str, int], Future[list[ResolvedAddress]]]] = {}
"""The last lookup of each name; while one hangs, no second one starts."""
_own_name_lookup: Final[list[Future[str]]] = []
_OWN_NAME_SECONDS: Final = 1.0


async def resolve(host: str, port: int = 0) -> list[ResolvedAddress]:
    """Return all addresses, in the resolver's order. Has no timeout of its own; an address resolves to itself.

    Raises:
        OSError: the name is unknown, or no name server answers.
        UnicodeError: no host can have such a name.
    """
    if (literal := _parse_address_literal(host, port)) is not None:
        return [literal]
    lookup = _pending_lookups.get((host, port))
    if lookup is None or lookup.done():
        lookup = _pending_lookups[host, port] = start_in_thread("name lookup", lambda: _query_resolver(host, port))
    return await asyncio.wrap_future(lookup)


async def get_own_name() -> str:
    """Return this machine's full name; the short one if a name server does not answer in a second."""
    if not _own_name_lookup:
        _own_name_lookup.append(start_in_thread("own name", socket.getfqdn))
    try:
        async with asyncio.timeout(_OWN_NAME_SECONDS):
            return await asyncio.wrap_future(_own_name_lookup[0])
    except TimeoutError:
        return socket.gethostname()


def _parse_address_literal(host: str, port: int) -> ResolvedAddress | None:
    try:
        address = ip_address(host)
    except ValueError:
        return None
    if address.version == 4:
        return socket.AF_INET, (host, port)
    return None if "%" in host else (socket.AF_INET6, (host, port, 0, 0))  # the system knows the interface's number


def _query_resolver(host: str, port: int) -> list[ResolvedAddress]:
    return [(family, address) for family, *_, address in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]
