"""How every kind of channel fails: with which reason, about what, and whether the message may have arrived."""

import asyncio
import gc
import gzip
import tracemalloc
from email.utils import formatdate
from itertools import product
from pathlib import Path
from time import time

import pytest

from services.relay.channels.port import DeliveryLeaseLostError, SendError, SendReason, SendScope
from tests.relay.channels.conftest import Providers, TcpServer, WebServer
from tests.relay.channels.examples import SECRET, example, message, settings
from tests.relay.channels.kinds import (
    EVERY_HTTP_KIND,
    EVERY_HTTP_KIND_THAT_READS_ANSWERS,
    EVERY_KIND,
    EVERY_KIND_THAT_READS_ANSWERS,
    EVERY_KIND_WITH_A_SECRET_FILE,
    EVERY_KIND_WITH_A_URL,
    EVERY_REMOTE_KIND,
    HTTP_KINDS,
    REMOTE_KINDS,
    STATUS_DECIDES,
    failure,
    unused_address,
)
from tests.relay.channels.recording_attempt import Recorded, send
from tests.stopwatch import Stopwatch

JSON = {"Content_Type": "application/json"}
HTML = {"Content_Type": "text/html"}


async def silence(reader: asyncio.StreamReader, _writer: asyncio.StreamWriter) -> None:
    """Takes everything and says nothing, until the other side leaves."""
    while await reader.read(65_536):
        pass


async def test_a_provider_that_never_answers_costs_no_more_than_the_timeout(secret_file: Path, tcp: TcpServer) -> None:
    provider, watch = await tcp(silence), Stopwatch()
    errors = await asyncio.gather(*(failure(kind, secret_file, provider, timeout=1) for kind in REMOTE_KINDS))
    assert watch.seconds < 2.8
    for kind, error in zip(REMOTE_KINDS, errors, strict=True):
        assert (error.reason, error.scope) == (SendReason.TIMEOUT, SendScope.ATTEMPT), kind
        assert error.maybe_arrived is (kind in HTTP_KINDS), kind  # a mail server that does not greet was told nothing


async def test_what_was_taken_and_answered_too_late_may_have_arrived(secret_file: Path, providers: Providers) -> None:
    async def send_late(kind: str) -> SendError:
        channel = settings(providers.example(kind, secret_file)).connect(1.5)  # in which it arrives
        with pytest.raises(SendError) as raised:
            await send(channel, message())
        await channel.close()
        return raised.value

    for kind in REMOTE_KINDS:
        providers.answer_late(kind)
    errors = await asyncio.gather(*(send_late(kind) for kind in REMOTE_KINDS))
    for kind, error in zip(REMOTE_KINDS, errors, strict=True):
        assert (error.reason, error.scope) == (SendReason.TIMEOUT, SendScope.ATTEMPT), kind
        assert error.maybe_arrived, kind
    arrived = [tuple(providers.arrived(kind)) for kind in REMOTE_KINDS]  # the same for those that share a provider
    assert all(len(each) == arrived.count(each) for each in arrived)


@EVERY_HTTP_KIND_THAT_READS_ANSWERS
async def test_an_answer_that_would_grow_when_it_is_unpacked_is_not(
    kind: str, secret_file: Path, website: WebServer
) -> None:
    bomb = gzip.compress(b" " * 100_000_000, 1)
    tracemalloc.start()
    address = await website(500, bomb, **{"Content-Encoding": "gzip", "Content-Type": "application/json"})
    await failure(kind, secret_file, address)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 20_000_000


@EVERY_HTTP_KIND
async def test_an_answer_without_end_is_read_in_part(kind: str, secret_file: Path, tcp: TcpServer) -> None:
    sent = 0

    async def endless(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        await reader.read(65_536)
        writer.write(b"HTTP/1.1 500 trouble\r\nContent-Type: application/json\r\n\r\n")
        while sent < 100_000_000:
            writer.write(b" " * 65_536)
            await writer.drain()
            sent += 65_536

    error = await failure(kind, secret_file, await tcp(endless))
    assert error.maybe_arrived
    assert sent < 100_000_000


@EVERY_REMOTE_KIND
async def test_a_refused_connection_is_retried_and_nothing_arrived(kind: str, secret_file: Path) -> None:
    error = await failure(kind, secret_file, unused_address())
    assert (error.reason, error.scope, error.maybe_arrived) == (SendReason.CONNECTION, SendScope.ATTEMPT, False)


@EVERY_REMOTE_KIND
async def test_an_uncertainty_of_an_earlier_attempt_is_not_settled_by_a_refused_connection(
    kind: str, secret_file: Path
) -> None:
    error = await failure(kind, secret_file, unused_address(), attempt=Recorded(message(), maybe_sent=True))
    assert error.maybe_arrived


@EVERY_HTTP_KIND
async def test_a_lease_that_ends_while_it_connects_writes_no_request(
    kind: str, secret_file: Path, website: WebServer, requests: list[bytes]
) -> None:
    channel = settings(example(kind, secret_file, await website(200))).connect(5)
    try:
        with pytest.raises(DeliveryLeaseLostError):
            await channel.send(Recorded(message(), stopped=True))
    finally:
        await channel.close()
    assert requests == []


@EVERY_KIND_WITH_A_URL
async def test_without_a_secure_connection_nothing_arrived(kind: str, secret_file: Path, tcp: TcpServer) -> None:
    async def plain(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.write(b"HTTP/1.1 400 no TLS here\r\n\r\n")
        await writer.drain()

    values = example(kind, secret_file, await tcp(plain))
    key = "api_url" if "api_url" in values else "url"
    channel = settings({**values, key: values[key].replace("http://", "https://")}).connect(5)
    with pytest.raises(SendError) as raised:
        await send(channel, message())
    await channel.close()
    assert (raised.value.reason, raised.value.scope) == (SendReason.MISCONFIGURED, SendScope.CHANNEL)
    assert not raised.value.maybe_arrived


@EVERY_KIND_THAT_READS_ANSWERS
@pytest.mark.parametrize("reply", [b"", b"\x00\xff nonsense\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n{"])
async def test_an_answer_that_is_none_is_retried(kind: str, reply: bytes, secret_file: Path, tcp: TcpServer) -> None:
    async def hangs_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if kind in HTTP_KINDS:
            await reader.read(1)
        writer.write(reply)
        await writer.drain()

    error = await failure(kind, secret_file, await tcp(hangs_up))
    assert error.scope is SendScope.ATTEMPT
    assert error.reason in {SendReason.CONNECTION, SendReason.SERVER_ERROR}
    assert error.maybe_arrived is (kind in HTTP_KINDS)  # a mail server that greets like this was told nothing


@EVERY_KIND_WITH_A_SECRET_FILE
@pytest.mark.parametrize("content", [None, "", "\n \n", "a\x00b", b"\xff\xfe"])
async def test_an_unusable_secret_is_the_channels_error_until_it_is_fixed(
    kind: str, content: str | bytes | None, tmp_path: Path
) -> None:
    file = tmp_path / "mended"
    if content is not None:
        file.write_bytes(content if isinstance(content, bytes) else content.encode())
    channel = settings(example(kind, file, unused_address())).connect(5)
    with pytest.raises(SendError) as unusable:
        await send(channel, message())
    assert (unusable.value.reason, unusable.value.scope) == (SendReason.UNAUTHORIZED, SendScope.CHANNEL)
    assert str(file) in str(unusable.value)

    file.write_text(SECRET)
    with pytest.raises(SendError) as second:
        await send(channel, message())
    assert second.value.reason is SendReason.CONNECTION
    await channel.close()


@EVERY_REMOTE_KIND
async def test_cancelling_a_send_lets_go_of_the_provider(kind: str, secret_file: Path, tcp: TcpServer) -> None:
    connected, left = asyncio.Event(), asyncio.Event()

    async def provider(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connected.set()
        await silence(reader, writer)
        left.set()

    channel = settings(example(kind, secret_file, await tcp(provider))).connect(60)
    sending = asyncio.create_task(send(channel, message()))
    await asyncio.wait_for(connected.wait(), 30)
    sending.cancel()
    done, _ = await asyncio.wait({sending}, timeout=5)
    assert sending in done
    assert sending.cancelled()
    await asyncio.wait_for(left.wait(), 30)
    await channel.close()


@EVERY_KIND
async def test_closing_twice_or_before_any_send_is_no_error(kind: str, secret_file: Path) -> None:
    channel = settings(example(kind, secret_file, unused_address())).connect(5)
    await channel.close()
    await channel.close()


@EVERY_REMOTE_KIND
async def test_a_provider_that_repeats_the_secret_does_not_bring_it_into_an_error(
    kind: str, secret_file: Path, tcp: TcpServer, website: WebServer
) -> None:
    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"220 hello\r\n")
        while line := await reader.read(65_536):
            writer.write(b"535 " + line.replace(b"\r\n", b" ") + SECRET.encode() + b"\r\n")

    body = f'{{"ok": false, "error": "{SECRET}", "errors": ["{SECRET}"], "message": "{SECRET}", "needed": "{SECRET}"}}'
    providers = [await tcp(echo)] if kind not in HTTP_KINDS else []
    for status in (200, 400, 403, 503) if kind in HTTP_KINDS else ():
        if kind in STATUS_DECIDES and status == 200:
            continue  # which is a success
        providers.append(await website(status, body, Content_Type="application/json"))
        providers.append(await website(status, SECRET, Content_Type="text/plain"))
    for provider in providers:
        attempt = Recorded(message())
        error = await failure(kind, secret_file, provider, attempt=attempt)
        assert SECRET not in f"{error} {error!r} {error!s} {error.__cause__!r} {attempt}"


@EVERY_HTTP_KIND
@pytest.mark.parametrize(
    ("status", "reason", "scope"),
    [
        (301, SendReason.MISCONFIGURED, SendScope.CHANNEL),
        (400, SendReason.REJECTED, SendScope.MESSAGE),
        (401, SendReason.UNAUTHORIZED, SendScope.CHANNEL),
        (403, SendReason.UNAUTHORIZED, SendScope.CHANNEL),
        (404, SendReason.MISCONFIGURED, SendScope.CHANNEL),
        (405, SendReason.MISCONFIGURED, SendScope.CHANNEL),
        (408, SendReason.TIMEOUT, SendScope.ATTEMPT),
        (409, SendReason.SERVER_ERROR, SendScope.ATTEMPT),
        (410, SendReason.MISCONFIGURED, SendScope.CHANNEL),
        (413, SendReason.REJECTED, SendScope.MESSAGE),
        (422, SendReason.REJECTED, SendScope.MESSAGE),
        (423, SendReason.SERVER_ERROR, SendScope.ATTEMPT),
        (425, SendReason.SERVER_ERROR, SendScope.ATTEMPT),
        (429, SendReason.RATE_LIMITED, SendScope.ATTEMPT),
        (500, SendReason.SERVER_ERROR, SendScope.ATTEMPT),
        (502, SendReason.SERVER_ERROR, SendScope.ATTEMPT),
        (503, SendReason.SERVER_ERROR, SendScope.ATTEMPT),
        (504, SendReason.SERVER_ERROR, SendScope.ATTEMPT),
        (599, SendReason.SERVER_ERROR, SendScope.ATTEMPT),
    ],
)
async def test_each_http_status_has_its_reason_and_scope(
    kind: str, status: int, reason: SendReason, scope: SendScope, secret_file: Path, website: WebServer
) -> None:
    error = await failure(kind, secret_file, await website(status, '{"message": "Oops"}', **JSON))
    assert (error.reason, error.scope) == (reason, scope)
    assert error.maybe_arrived is (status >= 500)  # which a proxy may have given after the request went through
    assert f"HTTP {status}" in str(error)


@EVERY_HTTP_KIND
@pytest.mark.parametrize(
    ("status", "reason"), [(400, SendReason.REJECTED), (429, SendReason.RATE_LIMITED), (503, SendReason.SERVER_ERROR)]
)
@pytest.mark.parametrize(
    ("body", "headers"), [("", HTML), ("<h1>Oops</h1>", HTML), ("[1]", JSON), ("null", JSON)], ids=repr
)
async def test_the_body_beside_an_http_status_changes_nothing(
    kind: str,
    status: int,
    reason: SendReason,
    body: str,
    headers: dict[str, str],
    secret_file: Path,
    website: WebServer,
) -> None:
    error = await failure(kind, secret_file, await website(status, body, **headers))
    assert error.reason is reason
    assert f"HTTP {status}" in str(error)


@EVERY_HTTP_KIND
async def test_a_redirect_is_not_followed(
    kind: str, secret_file: Path, website: WebServer, requests: list[bytes]
) -> None:
    elsewhere = await website(200, '{"ok": true}', Content_Type="application/json")
    for number, status in enumerate((301, 302, 303, 307, 308), 1):
        provider = await website(status, Location=f"http://{elsewhere}/")
        error = await failure(kind, secret_file, provider)
        assert (error.reason, error.scope) == (SendReason.MISCONFIGURED, SendScope.CHANNEL), status
        assert f"HTTP {status}" in str(error)
        assert len(requests) == number
    gc.collect()  # an unclosed answer would speak up now


@EVERY_HTTP_KIND
@pytest.mark.parametrize("status", [429, 503])
async def test_retry_after_is_passed_on_in_seconds_and_as_a_date(
    kind: str, status: int, secret_file: Path, website: WebServer
) -> None:
    given = await failure(kind, secret_file, await website(status, "", Retry_After="30"))
    assert given.retry_after == 30.0
    for ahead in (0, 3600, -3600):  # by how much the provider's clock is
        now, then = (formatdate(time() + ahead + wait, usegmt=True) for wait in (0, 30))
        dated = await failure(kind, secret_file, await website(status, "", Date=now, Retry_After=then))
        assert dated.retry_after is not None
        assert 29 <= dated.retry_after <= 31


@EVERY_HTTP_KIND_THAT_READS_ANSWERS
@pytest.mark.parametrize(
    ("body", "content_type"),
    [
        *product(["", "fine", "[1]", "null", "{}", '{"ok": 1', b"\xff\xfe"], ["application/json"]),
        *product(["fine", "{}"], ["text/plain", "text/html", "application/gzip"]),
    ],
)
async def test_an_answer_that_is_not_the_providers_is_no_receipt(
    kind: str, body: str | bytes, content_type: str, secret_file: Path, website: WebServer
) -> None:
    error = await failure(kind, secret_file, await website(200, body, Content_Type=content_type))
    assert error.scope is SendScope.ATTEMPT
    assert error.maybe_arrived
