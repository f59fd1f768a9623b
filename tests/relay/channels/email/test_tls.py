"""Alerts and password travel encrypted, to a server whose certificate is verified."""

import asyncio
import ssl
from pathlib import Path

import pytest

from services.relay.channels.port import SendReason, SendScope
from tests.relay.channels.conftest import TcpServer
from tests.relay.channels.email.mail_server import StartServer, connect
from tests.relay.channels.examples import message
from tests.relay.channels.recording_attempt import refuse, send


@pytest.mark.parametrize("greeting", [b"220 mail, without TLS\r\n", b"HTTP/1.1 400 Bad Request\r\n"])
async def test_a_port_without_tls_is_the_channels_error_and_says_what_to_check(
    greeting: bytes, secret_file: Path, tcp: TcpServer
) -> None:
    async def plain(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(greeting)
        await reader.read()

    error = await refuse(connect(secret_file, await tcp(plain), tls="implicit"))
    assert (error.reason, error.scope) == (SendReason.MISCONFIGURED, SendScope.CHANNEL)
    assert str(error) == (
        "the mail server speaks no TLS that fits `tls: implicit` (WRONG_VERSION_NUMBER); check `port` and `tls`"
    )


async def test_a_connection_that_breaks_off_during_the_handshake_is_retried(secret_file: Path, tcp: TcpServer) -> None:
    async def hangs_up(reader: asyncio.StreamReader, _writer: asyncio.StreamWriter) -> None:
        await reader.read(1)

    error = await refuse(connect(secret_file, await tcp(hangs_up), tls="implicit"))
    assert (error.reason, error.scope) == (SendReason.CONNECTION, SendScope.ATTEMPT)


async def test_starttls_is_the_default_and_the_certificate_is_verified(
    secret_file: Path,
    mail_server: StartServer,
    certificate: tuple[ssl.SSLContext, Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    context, certificate_file = certificate
    server = await mail_server(starttls=context)
    encrypted = {"host": "localhost", "port": server.address.port, "tls": "starttls"}
    error = await refuse(connect(secret_file, server.address, **encrypted))
    assert (error.reason, error.scope) == (SendReason.MISCONFIGURED, SendScope.CHANNEL)
    assert str(error) == "the mail server's certificate is not trusted; name its authority in `ca_file`"
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate_file))
    await send(connect(secret_file, server.address, **encrypted), message())
    assert len(server.accepted) == 1


async def test_implicit_tls_is_spoken_and_its_certificate_verified(
    secret_file: Path,
    mail_server: StartServer,
    certificate: tuple[ssl.SSLContext, Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    context, certificate_file = certificate
    server = await mail_server(implicit=context)
    encrypted = {"host": "localhost", "port": server.address.port, "tls": "implicit"}
    plain = {"username": None, "password_file": None}
    error = await refuse(connect(secret_file, server.address, **encrypted, **plain))
    assert str(error) == "the mail server's certificate is not trusted; name its authority in `ca_file`"
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate_file))
    await send(connect(secret_file, server.address, **encrypted, **plain), message())
    assert len(server.accepted) == 1


async def test_ca_file_is_trusted_and_the_environments_proxy_is_none_for_mail(
    secret_file: Path,
    mail_server: StartServer,
    certificate: tuple[ssl.SSLContext, Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    context, certificate_file = certificate
    server = await mail_server(starttls=context)
    trusted = {"host": "localhost", "port": server.address.port, "tls": "starttls", "ca_file": certificate_file}
    await send(connect(secret_file, server.address, **trusted), message())
    assert len(server.accepted) == 1


async def test_a_server_without_starttls_gets_neither_password_nor_mail(
    secret_file: Path, mail_server: StartServer
) -> None:
    server = await mail_server()
    error = await refuse(connect(secret_file, server.address, tls="starttls"))
    assert (error.reason, error.scope) == (SendReason.MISCONFIGURED, SendScope.CHANNEL)
    assert "STARTTLS" in str(error)
    assert server.accepted == []
