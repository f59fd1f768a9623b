"""Names for aiohttp, by `shared.net.resolver`: where one hangs, its own would take the threads that serve all others."""

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
