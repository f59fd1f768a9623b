"""Connections of aiohttp by the proxy and with the authorities of an `Egress`; it is apart since aiohttp takes 10 MB.

aiohttp's own resolver shares its threads with all lookups, and its `trust_env` knows neither networks nor ports.
"""

import socket
from typing import Any

import aiohttp
from aiohttp import hdrs
from aiohttp.abc import AbstractResolver, ResolveResult
from aiohttp.connector import Connection
from aiohttp.tracing import Trace
from multidict import CIMultiDict
from yarl import URL

from shared import VERSION
from shared.config.settings import Address
from shared.net.egress import Egress, EgressError, Proxy, build_refusal, describe_os_error, resolve


class ClientEgressError(aiohttp.ClientError, EgressError):
    """An EgressError among aiohttp's own errors, which it lets through as it is."""


class Connector(aiohttp.TCPConnector):
    """Where a session gets its connections; a request raises ClientEgressError if its proxy does not connect.

    Args:
        egress: the settings; without them, the environment.
        options: of aiohttp's own connector; a context in `ssl` counts instead of `ca_file`.
    """

    def __init__(self, egress: Egress | None = None, **options: Any) -> None:
        self._egress = egress or Egress()
        tls = options.pop("ssl", None) or self._egress.create_lasting_tls_context() or True
        super().__init__(resolver=_Resolver(), ssl=tls, **options)

    async def connect(
        self, req: aiohttp.ClientRequest, traces: list[Trace], timeout: aiohttp.ClientTimeout
    ) -> Connection:
        try:
            proxy = self._egress.find_proxy(str(req.url))
            if req.is_ssl():
                self._egress.load_tls_context()
        except EgressError as error:
            raise _translate(error) from None
        if proxy is None:
            return await super().connect(req, traces, timeout)
        login = {hdrs.PROXY_AUTHORIZATION: proxy.authorization} if proxy.authorization else {}
        req.update_proxy(URL(f"http://{proxy.address}"), None, CIMultiDict(login))
        if not req.is_ssl():
            req.headers.update(login)
        return await self._connect_by_proxy(req, proxy, traces, timeout)

    async def _connect_by_proxy(
        self, req: aiohttp.ClientRequest, proxy: Proxy, traces: list[Trace], timeout: aiohttp.ClientTimeout
    ) -> Connection:
        try:
            return await super().connect(req, traces, timeout)
        except aiohttp.ClientHttpProxyError as error:
            target = Address(req.url.host or "", req.url.port or 0)
            raise _translate(build_refusal(proxy, target, error.status)) from None
        except aiohttp.ClientProxyConnectionError as error:
            raise ClientEgressError(f"{proxy} cannot be reached: {describe_os_error(error)}") from None


def _translate(error: EgressError) -> ClientEgressError:
    return ClientEgressError(error.strerror, is_permanent=error.is_permanent, is_login=error.is_login)


def open_session(connector: Connector, **options: Any) -> aiohttp.ClientSession:
    """A client without cookies, named keypulse. Nothing is decompressed, so no answer grows after it was measured."""
    headers = {"Accept-Encoding": "identity", "User-Agent": f"keypulse/{VERSION}", **options.pop("headers", {})}
    jar = aiohttp.DummyCookieJar()
    return aiohttp.ClientSession(connector=connector, headers=headers, auto_decompress=False, cookie_jar=jar, **options)


async def read_bounded(response: aiohttp.ClientResponse, max_bytes: int, excess: Exception) -> bytes:
    """The body; raises `excess` where it has more bytes."""
    body = bytearray()
    async for chunk in response.content.iter_any():
        body += chunk
        if len(body) > max_bytes:
            raise excess
    return bytes(body)


class _Resolver(AbstractResolver):
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
