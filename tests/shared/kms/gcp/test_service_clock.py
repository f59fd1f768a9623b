"""The clock of Cloud KMS, read by TLS as its front ends answer; an emulator's cannot be."""

import asyncio
import ssl
from collections.abc import AsyncIterator
from email.utils import formatdate
from pathlib import Path

import pytest

from shared.check import CheckError
from shared.config.settings import Address
from shared.kms.diagnosis import list_key_checks
from shared.kms.gcp.client import GcpKmsKey, read_date
from shared.net.egress import Proxy
from tests.shared.certificates import LOCALHOST, Authority
from tests.shared.keyring.fake_kms import FakeKms
from tests.tinyproxy import tinyproxy

KEY = "projects/demo/locations/global/keyRings/app/cryptoKeys/ledger"


class FrontEnd:
    """Answers HTTP/1.1 over TLS, with the date that the test says."""

    def __init__(self) -> None:
        self.answer = b""
        self.address = Address("localhost", 0)
        self.requests: list[bytes] = []

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.requests.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(self.answer)
        writer.close()


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


@pytest.fixture
async def front_end(authority: Authority) -> AsyncIterator[FrontEnd]:
    certificate, key = authority.sign("server", *LOCALHOST)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate, key)
    found = FrontEnd()
    server = await asyncio.start_server(found.serve, "localhost", 0, ssl=context)
    found.address = Address("localhost", server.sockets[0].getsockname()[1])
    yield found
    server.close()


def build_answer(moment: float) -> bytes:
    return f"HTTP/1.1 404 Not Found\r\nDate: {formatdate(moment, usegmt=True)}\r\nContent-Length: 0\r\n\r\n".encode()


async def read(front_end: FrontEnd, authority: Authority, proxy: Proxy | None = None) -> float | None:
    context = ssl.create_default_context(cafile=authority.ca)
    context.set_alpn_protocols(["h2"])  # as connectivity sets it
    return await read_date(front_end.address, proxy, context, 5.0)


async def test_the_date_of_any_answer_is_the_time_and_no_credentials_are_sent(
    front_end: FrontEnd, authority: Authority
) -> None:
    front_end.answer = build_answer(1_800_000_000)
    assert await read(front_end, authority) == 1_800_000_000
    (request,) = front_end.requests
    assert request.startswith(b"HEAD / HTTP/1.1\r\n")
    assert b"authorization" not in request.lower()


async def test_it_is_read_through_the_proxy(front_end: FrontEnd, authority: Authority, tmp_path: Path) -> None:
    front_end.answer = build_answer(1_800_000_000)
    with tinyproxy(tmp_path) as proxy:
        assert await read(front_end, authority, Proxy(proxy.address, "proxy")) == 1_800_000_000
        assert proxy.requests == [f"CONNECT {front_end.address}"]


@pytest.mark.parametrize("answer", [b"", b"HTTP/1.1 404 Not Found\r\n\r\n", b"HTTP/1.1 404 N\r\nDate: today\r\n\r\n"])
async def test_an_answer_without_a_date_is_no_time(answer: bytes, front_end: FrontEnd, authority: Authority) -> None:
    front_end.answer = answer
    assert await read(front_end, authority) is None


async def test_an_emulator_reports_no_clock() -> None:
    key = GcpKmsKey(KEY, endpoint="127.0.0.1:1", insecure=True)
    assert await key.read_service_clock(timeout=5.0) is None


@pytest.mark.parametrize(
    ("skew", "error"),
    [
        (59.0, None),
        (-59.0, None),
        (301.0, "this machine's clock is 301 s ahead of that of Cloud KMS"),
        (-301.0, "this machine's clock is 301 s behind that of Cloud KMS"),
    ],
)
async def test_a_clock_that_is_off_by_over_a_minute_is_an_error(skew: float, error: str | None) -> None:
    class Clocked(FakeKms):
        async def read_service_clock(self, *, timeout: float) -> float | None:  # noqa: ARG002  # the port's
            return 1_000.0

    *_, check = list_key_checks("kms", Clocked(), (), timeout=5.0, clock=lambda: 1_000.0 + skew)
    assert check.name == "kms clock"
    if error is None:
        assert await check.run() == "within 60 s of that of Cloud KMS"
        return
    with pytest.raises(CheckError, match=error) as failed:
        await check.run()
    assert "NTP" in failed.value.hint
