"""`cloudkms.googleapis.com` for a program that insists on it: a proxy and TLS before the emulator.

The program is told of the proxy, of the authority that signed the name, and of a service account's key, which is of
nobody: its token is made without asking Google.
"""

import asyncio
import json
import ssl
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from shared.config.settings import Address
from tests.connections import close_server
from tests.shared.certificates import Authority


@asynccontextmanager
async def served_cloud_kms(folder: Path, emulator: Address) -> AsyncIterator[Mapping[str, str]]:
    """The variables of the program's environment, while the body runs."""
    authority = Authority(folder, "google")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*authority.sign("cloudkms", x509.DNSName("cloudkms.googleapis.com")))
    context.set_alpn_protocols(["h2"])
    tasks: set[asyncio.Task[None]] = set()

    async def pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
        except OSError:
            pass  # one of both is gone
        finally:
            writer.close()

    async def connect(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await pass_both_on(reader, writer)
        finally:
            writer.close()

    async def pass_both_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        request = await reader.readuntil(b"\r\n\r\n")
        assert request.startswith(b"CONNECT cloudkms.googleapis.com:443 "), request
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
        await writer.start_tls(context)
        upstream_reader, upstream_writer = await asyncio.open_connection(emulator.host, emulator.port)
        async with asyncio.TaskGroup() as group:
            group.create_task(pass_on(reader, upstream_writer))
            group.create_task(pass_on(upstream_reader, writer))

    def begin(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(connect(reader, writer))
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    server = await asyncio.start_server(begin, "127.0.0.1", 0)
    try:
        host, port = server.sockets[0].getsockname()[:2]
        yield {
            "HTTPS_PROXY": f"http://{host}:{port}",
            "SSL_CERT_FILE": str(authority.ca),
            "GOOGLE_APPLICATION_CREDENTIALS": str(_write_credentials(folder)),
        }
    finally:
        await close_server(server)
        for task in list(tasks):
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _write_credentials(folder: Path) -> Path:
    key = rsa.generate_private_key(65537, 2048)
    pem = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    ).decode()
    file = folder / "service_account.json"
    account = {"client_email": "bao@demo.iam.gserviceaccount.com", "token_uri": "http://127.0.0.1:1/"}
    file.write_text(json.dumps({"type": "service_account", "private_key": pem, "project_id": "demo", **account}))
    return file
