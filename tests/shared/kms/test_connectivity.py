"""The phases of a connection to a service that speaks TLS."""

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from shared.config.settings import Address
from shared.kms.connectivity import measure_connectivity
from tests.shared.certificates import LOCALHOST, Authority


@asynccontextmanager
async def tls_server(authority: Authority, *protocols: str) -> AsyncIterator[Address]:
    """It agrees to one of `protocols`."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(*authority.sign("server", *LOCALHOST))
    context.set_alpn_protocols(protocols)

    async def accept(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.close()

    async with await asyncio.start_server(accept, "127.0.0.1", 0, ssl=context) as server:
        yield Address(*server.sockets[0].getsockname()[:2])


async def test_only_a_provider_that_needs_a_protocol_fails_without_it(tmp_path: Path) -> None:
    authority = Authority(tmp_path)

    async def measure(address: Address, alpn: str | None) -> list[tuple[str, str | None]]:
        phases = await measure_connectivity(
            address,
            create_trust_context=lambda: ssl.create_default_context(cafile=authority.ca),
            timeout=10,
            alpn=alpn,
        )
        return [(phase.name, phase.error) for phase in phases]

    connected = [("dns", None), ("tcp", None), ("tls", None)]
    async with tls_server(authority, "http/1.1") as address:
        assert await measure(address, None) == connected
        assert await measure(address, "h2") == [
            *connected[:2],
            ("tls", f"{address} speaks TLS, but not the protocol h2, which this KMS needs"),
        ]
    async with tls_server(authority, "h2") as address:
        assert await measure(address, "h2") == connected
