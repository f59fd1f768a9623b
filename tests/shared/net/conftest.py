"""Servers behind a proxy."""

import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from ipaddress import ip_address
from pathlib import Path

import pytest
from aiohttp import web
from cryptography import x509

from shared.config.settings import Address
from tests.shared.certificates import LOCALHOST, Authority
from tests.tinyproxy import NOT_LOOPBACK

StartServer = Callable[..., Awaitable[Address]]
NAMES = (*LOCALHOST, x509.IPAddress(ip_address(NOT_LOOPBACK)))


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


@pytest.fixture
async def start_server() -> AsyncIterator[StartServer]:
    """Starts servers that answer `hello`, with TLS where an authority is given."""
    runners: list[web.ServerRunner] = []

    async def answer(request: web.BaseRequest) -> web.Response:
        assert "Proxy-Authorization" not in request.headers
        return web.Response(text="hello")

    async def start(authority: Authority | None = None) -> Address:
        context = None
        if authority:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(*authority.sign("server", *NAMES))
        runners.append(web.ServerRunner(web.Server(answer), shutdown_timeout=0))
        await runners[-1].setup()
        await web.TCPSite(runners[-1], NOT_LOOPBACK, 0, ssl_context=context).start()
        return Address(NOT_LOOPBACK, runners[-1].addresses[0][1])

    yield start
    for runner in runners:
        await runner.cleanup()
