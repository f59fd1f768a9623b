"""Resolves names for aiohttp by `shared.net.resolver`: aiohttp's own resolver shares its threads with all lookups."""

import socket

from aiohttp.abc import AbstractResolver, ResolveResult

from shared.net.resolver import resolve


class AiohttpResolver(AbstractResolver):
    """For a connector."""

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        """See aiohttp. Raises OSError and UnicodeError."""
        numeric = socket.AI_NUMERICHOST | socket.AI_NUMERICSERV
        return [
            ResolveResult(hostname=host, host=address[0], port=port, family=of, proto=0, flags=numeric)
            for of, address in await resolve(host, port)
            if family in {socket.AF_UNSPEC, of}
        ]

    async def close(self) -> None:
        """Has nothing to close."""
