"""A mail server for each test, and a certificate for it."""

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
from aiosmtpd.smtp import SMTP

from shared.config.settings import Address
from tests.relay.channels.email.mail_server import MailServer, StartServer
from tests.shared.certificates import LOCALHOST, Authority


@pytest.fixture
async def mail_server() -> AsyncIterator[StartServer]:
    """Starts a MailServer; `starttls` and `implicit` take its certificate."""
    loop = asyncio.get_running_loop()
    async with AsyncExitStack() as stack:

        async def serve(
            *, starttls: ssl.SSLContext | None = None, implicit: ssl.SSLContext | None = None, **replies: str
        ) -> MailServer:
            server = MailServer({key.replace("_", " "): reply for key, reply in replies.items()})
            connections: list[SMTP] = []

            def connection() -> SMTP:
                smtp = SMTP(
                    server,
                    loop=loop,
                    hostname="mail",
                    authenticator=server.authenticate,
                    auth_require_tls=starttls is not None,
                    tls_context=starttls,
                    require_starttls=starttls is not None,
                )
                connections.append(smtp)
                return smtp

            listener = await loop.create_server(connection, "127.0.0.1", 0, ssl=implicit)
            server.address = Address(*listener.sockets[0].getsockname()[:2])

            async def stop() -> None:
                listener.close()
                for smtp in connections:
                    if smtp.transport is not None:
                        smtp.transport.close()
                await listener.wait_closed()

            stack.push_async_callback(stop)
            return server

        yield serve


@pytest.fixture
def certificate(tmp_path: Path) -> tuple[ssl.SSLContext, Path]:
    """A server's TLS context for this machine, and the file of the authority that signed its certificate."""
    authority, context = Authority(tmp_path), ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*authority.sign("mail", *LOCALHOST))
    return context, authority.ca
