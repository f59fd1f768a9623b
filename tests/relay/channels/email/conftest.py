"""A mail server for each test, and a certificate for it."""

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from aiosmtpd.smtp import SMTP
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from shared.config.settings import Address
from tests.relay.channels.email.mail_server import MailServer, StartServer


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
    """A server's TLS context for 127.0.0.1, and the file of its self-signed certificate."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    now = datetime.now(UTC)
    settings = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .sign(key, hashes.SHA256())
    )
    certificate_file, key_file = tmp_path / "server.crt", tmp_path / "server.key"
    certificate_file.write_bytes(settings.public_bytes(serialization.Encoding.PEM))
    key_file.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate_file, key_file)
    return context, certificate_file
