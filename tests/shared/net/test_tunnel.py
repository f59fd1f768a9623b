"""A tunnel through a proxy that answers as a test says."""

import asyncio
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager

import pytest

from shared.config.settings import Address
from shared.net.egress import EgressError, Proxy, open_tunnel

TARGET = Address("mail.example.org", 587)
OPEN = b"HTTP/1.1 200 Connection established\r\nVia: 1.1 proxy\r\n\r\n"
Answering = Callable[[bytes], AbstractAsyncContextManager[tuple[Proxy, list[bytes]]]]


@pytest.fixture
def answering() -> Answering:
    @asynccontextmanager
    async def answering(answer: bytes) -> AsyncIterator[tuple[Proxy, list[bytes]]]:
        requests: list[bytes] = []

        async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            requests.append(await reader.readuntil(b"\r\n\r\n"))
            writer.write(answer)
            writer.close()

        server = await asyncio.start_server(connected, "127.0.0.1", 0)
        try:
            yield Proxy(Address(*server.sockets[0].getsockname()), "proxy", "me:s3cret"), requests
        finally:
            server.close()

    return answering


async def read_all(connection: socket.socket) -> bytes:
    received = b""
    while more := await asyncio.get_running_loop().sock_recv(connection, 1024):
        received += more
    return received


async def test_what_the_server_says_first_is_not_read_away(answering: Answering) -> None:
    async with answering(OPEN + b"220 hello\r\n") as (proxy, requests):
        connection = await open_tunnel(proxy, TARGET)
        with connection:
            assert await read_all(connection) == b"220 hello\r\n"
    (request,) = requests
    assert request.split(b"\r\n")[:3] == [
        b"CONNECT mail.example.org:587 HTTP/1.1",
        b"Host: mail.example.org:587",
        b"Proxy-Authorization: Basic bWU6czNjcmV0",
    ]


@pytest.mark.parametrize(
    ("answer", "sentence", "is_permanent"),
    [
        (b"HTTP/1.0 403 Forbidden\r\n\r\n", "refuses mail.example.org:587 (HTTP 403); allow it there, or", True),
        (b"HTTP/1.1 407 Login\r\n\r\n", "wants another user and password (HTTP 407); put them into its URL", True),
        (b"HTTP/1.1 429 Slow\r\n\r\n", "refuses mail.example.org:587 (HTTP 429)", False),
        (b"HTTP/1.1 502 Bad\r\n\r\n", "cannot connect to mail.example.org:587 (HTTP 502)", False),
        (b"SSH-2.0-OpenSSH\r\n", "does not answer as an HTTP proxy; correct its address", True),
        (b"", "closed the connection", False),
        (b"x" * 20_000, "does not answer as an HTTP proxy", True),
    ],
)
async def test_each_answer_that_opens_no_tunnel_is_a_sentence(
    answer: bytes, sentence: str, is_permanent: bool, answering: Answering
) -> None:
    async with answering(answer) as (proxy, _):
        with pytest.raises(EgressError) as raised:
            await open_tunnel(proxy, TARGET)
    assert str(raised.value).startswith(f"the proxy {proxy.address} (proxy) {sentence}")
    assert raised.value.is_permanent is is_permanent
    assert "s3cret" not in f"{raised.value!r}"


async def test_a_proxy_whose_name_is_unknown_cannot_be_reached() -> None:
    with pytest.raises(EgressError, match=r"^the proxy proxy\.invalid:3128 \(HTTPS_PROXY\) cannot be reached: "):
        await open_tunnel(Proxy(Address("proxy.invalid", 3128), "HTTPS_PROXY"), TARGET)
