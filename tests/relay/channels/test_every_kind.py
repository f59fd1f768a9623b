"""What is true of every kind of channel: the tests iterate over the registry, so a new kind is tested at once."""

import asyncio
import gc
import logging
import socket
from pathlib import Path

import pytest

from ops.demo.stand_ins.server import StandIns
from services.relay.channels.channel import Reason, Scope, SendError
from shared.settings import Address
from tests.relay.channels.conftest import TcpServer, WebServer
from tests.relay.channels.examples import HUGE, KINDS, NASTY, SECRET, example, kind_of, message, settings, with_text

EVERY_KIND = pytest.mark.parametrize("kind", [kind_of(settings) for settings in KINDS])
HTTP_KINDS = [
    kind_of(kind) for kind in KINDS if {"url", "api_url"} & kind.model_fields.keys()
]  # those of which a status can be asked


async def failure(kind: str, secret_file: Path, provider: Address, timeout: float = 5) -> SendError:
    """The error of one send to `provider`; the channel is closed again."""
    channel = settings(example(kind, secret_file, provider)).connect(timeout)
    try:
        with pytest.raises(SendError) as raised:
            await channel.send(message())
    finally:
        await channel.close()
    return raised.value


def unused_address() -> Address:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return Address("127.0.0.1", free.getsockname()[1])


async def silence(reader: asyncio.StreamReader, _writer: asyncio.StreamWriter) -> None:
    """Takes everything and says nothing, until the other side leaves."""
    while await reader.read(65_536):
        pass


@EVERY_KIND
async def test_a_provider_that_never_answers_costs_no_more_than_the_timeout(
    kind: str, secret_file: Path, tcp: TcpServer
) -> None:
    begun = asyncio.get_running_loop().time()
    error = await failure(kind, secret_file, await tcp(silence), timeout=0.2)
    assert (error.reason, error.scope) == (Reason.TIMEOUT, Scope.ATTEMPT)
    assert asyncio.get_running_loop().time() - begun < 2


@EVERY_KIND
async def test_a_refused_connection_is_tried_again(kind: str, secret_file: Path) -> None:
    error = await failure(kind, secret_file, unused_address())
    assert (error.reason, error.scope) == (Reason.CONNECTION, Scope.ATTEMPT)


@EVERY_KIND
@pytest.mark.parametrize("said", [b"", b"\x00\xff nonsense\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n{"])
async def test_an_answer_that_is_none_is_tried_again(kind: str, said: bytes, secret_file: Path, tcp: TcpServer) -> None:
    async def hangs_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if kind in HTTP_KINDS:
            await reader.read(1)
        writer.write(said)
        await writer.drain()

    error = await failure(kind, secret_file, await tcp(hangs_up))
    assert error.scope is Scope.ATTEMPT
    assert error.reason in {Reason.CONNECTION, Reason.SERVER_ERROR}


@EVERY_KIND
@pytest.mark.parametrize("content", [None, "", "\n \n", "a\x00b", b"\xff\xfe"])
async def test_an_unusable_secret_is_the_channels_trouble_until_it_is_mended(
    kind: str, content: str | bytes | None, tmp_path: Path
) -> None:
    file = tmp_path / "mended"
    if content is not None:
        file.write_bytes(content if isinstance(content, bytes) else content.encode())
    channel = settings(example(kind, file, unused_address())).connect(5)
    with pytest.raises(SendError) as unusable:
        await channel.send(message())
    assert (unusable.value.reason, unusable.value.scope) == (Reason.UNAUTHORIZED, Scope.CHANNEL)
    assert str(file) in unusable.value.detail

    file.write_text(SECRET)
    with pytest.raises(SendError) as mended:
        await channel.send(message())
    assert mended.value.reason is Reason.CONNECTION
    await channel.close()


@EVERY_KIND
async def test_cancelling_a_send_lets_go_of_the_provider(kind: str, secret_file: Path, tcp: TcpServer) -> None:
    connected, left = asyncio.Event(), asyncio.Event()

    async def provider(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connected.set()
        await silence(reader, writer)
        left.set()

    channel = settings(example(kind, secret_file, await tcp(provider))).connect(60)
    sending = asyncio.create_task(channel.send(message()))
    await asyncio.wait_for(connected.wait(), 5)
    sending.cancel()
    with pytest.raises(asyncio.CancelledError):
        await sending
    await asyncio.wait_for(left.wait(), 5)
    await channel.close()


@EVERY_KIND
async def test_closing_twice_or_before_any_send_is_no_error(kind: str, secret_file: Path) -> None:
    channel = settings(example(kind, secret_file, unused_address())).connect(5)
    await channel.close()
    await channel.close()


@EVERY_KIND
@pytest.mark.parametrize("text", [*NASTY, *HUGE])
@pytest.mark.parametrize("alerts", [1, 60])
async def test_no_text_and_no_size_is_refused(
    kind: str, text: str, alerts: int, secret_file: Path, stand_ins: StandIns
) -> None:
    channel = settings(reaching(kind, secret_file, stand_ins)).connect(20)
    assert await channel.send(with_text(text, alerts))
    await channel.close()
    assert len(arrived(kind, stand_ins)) == 1


@EVERY_KIND
@pytest.mark.parametrize("payload", ["01-firing-1", "03-resolved-1", "07-firing-3", "09-firing-5", "11-firing-1"])
async def test_what_alertmanager_sends_arrives_with_its_links(
    kind: str, payload: str, secret_file: Path, stand_ins: StandIns
) -> None:
    channel = settings(reaching(kind, secret_file, stand_ins)).connect(5)
    receipt = await channel.send(message(payload))
    await channel.close()
    gc.collect()  # an unclosed session would speak up now
    assert all(isinstance(value, str) for value in receipt.values())
    assert SECRET not in str(receipt)
    (one,) = arrived(kind, stand_ins)
    assert "KMS_OPERATIONS.md" in one
    assert "grafana.example.org" in one


@EVERY_KIND
async def test_an_alert_that_is_over_says_so_and_when_it_fired(
    kind: str, secret_file: Path, stand_ins: StandIns
) -> None:
    channel = settings(reaching(kind, secret_file, stand_ins)).connect(5)
    await channel.send(message("03-resolved-1"))
    await channel.close()
    (one,) = arrived(kind, stand_ins)
    said = "resolved; fired from 2026-11-24 22:46:10 UTC to 2026-11-24 22:46:18 UTC (8 s)"
    assert one.count(said) == (2 if kind == "email" else 1)  # in both parts of a mail


@EVERY_KIND
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
        providers.append(await website(status, body, Content_Type="application/json"))
        providers.append(await website(status, SECRET, Content_Type="text/plain"))
    for provider in providers:
        error = await failure(kind, secret_file, provider)
        assert SECRET not in f"{error} {error!r} {error.detail} {error.__cause__!r}"


@EVERY_KIND
async def test_no_log_holds_the_secret(
    kind: str, secret_file: Path, stand_ins: StandIns, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    channel = settings(reaching(kind, secret_file, stand_ins)).connect(5)
    await channel.send(message())
    await channel.close()
    await failure(kind, secret_file, unused_address())
    assert caplog.records
    assert SECRET not in caplog.text


@pytest.mark.parametrize("kind", HTTP_KINDS)
@pytest.mark.parametrize(
    ("status", "reason", "scope"),
    [
        (301, Reason.MISCONFIGURED, Scope.CHANNEL),
        (400, Reason.REJECTED, Scope.MESSAGE),
        (401, Reason.UNAUTHORIZED, Scope.CHANNEL),
        (403, Reason.UNAUTHORIZED, Scope.CHANNEL),
        (404, Reason.MISCONFIGURED, Scope.CHANNEL),
        (405, Reason.MISCONFIGURED, Scope.CHANNEL),
        (408, Reason.TIMEOUT, Scope.ATTEMPT),
        (410, Reason.MISCONFIGURED, Scope.CHANNEL),
        (413, Reason.REJECTED, Scope.MESSAGE),
        (422, Reason.REJECTED, Scope.MESSAGE),
        (429, Reason.RATE_LIMITED, Scope.ATTEMPT),
        (500, Reason.SERVER_ERROR, Scope.ATTEMPT),
        (502, Reason.SERVER_ERROR, Scope.ATTEMPT),
        (503, Reason.SERVER_ERROR, Scope.ATTEMPT),
        (504, Reason.SERVER_ERROR, Scope.ATTEMPT),
        (599, Reason.SERVER_ERROR, Scope.ATTEMPT),
    ],
)
@pytest.mark.parametrize("body", ["", "<h1>Oops</h1>", '{"message": "Oops"}', "[1]", "null"])
async def test_each_http_status_has_its_reason_and_scope(
    kind: str, status: int, reason: Reason, scope: Scope, body: str, secret_file: Path, website: WebServer
) -> None:
    content_type = "application/json" if body[:1] in "[{n" else "text/html"
    provider = await website(status, body, Content_Type=content_type)
    error = await failure(kind, secret_file, provider)
    assert (error.reason, error.scope) == (reason, scope)


@pytest.mark.parametrize("kind", HTTP_KINDS)
@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_a_redirect_is_not_followed(
    kind: str, status: int, secret_file: Path, website: WebServer, requests: list[bytes]
) -> None:
    elsewhere = await website(200, '{"ok": true}', Content_Type="application/json")
    provider = await website(status, Location=f"http://{elsewhere}/")
    error = await failure(kind, secret_file, provider)
    gc.collect()  # an unclosed answer would speak up now
    assert (error.reason, error.scope) == (Reason.MISCONFIGURED, Scope.CHANNEL)
    assert f"HTTP {status}" in error.detail
    assert len(requests) == 1


@pytest.mark.parametrize("kind", HTTP_KINDS)
@pytest.mark.parametrize(
    ("given", "seconds"),
    [("30", 30.0), ("0", 0.0), ("soon", None), ("-1", None), ("1e9", None), ("٣", None), ("99999999999", None)],
)
async def test_retry_after_is_obeyed_where_it_is_a_number_of_seconds(
    kind: str, given: str, seconds: float | None, secret_file: Path, website: WebServer
) -> None:
    error = await failure(kind, secret_file, await website(429, "", Retry_After=given))
    assert error.retry_after == seconds


@pytest.mark.parametrize("kind", HTTP_KINDS)
@pytest.mark.parametrize("body", ["", "fine", "[1]", "null", "{}", '{"ok": 1', b"\xff\xfe"])
@pytest.mark.parametrize("content_type", ["application/json", "text/plain", "text/html", "application/gzip"])
async def test_a_page_in_the_providers_place_is_no_receipt(
    kind: str, body: str | bytes, content_type: str, secret_file: Path, website: WebServer
) -> None:
    error = await failure(kind, secret_file, await website(200, body, Content_Type=content_type))
    assert error.scope is Scope.ATTEMPT


@pytest.mark.parametrize("kind", HTTP_KINDS)
@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("http://hooks.example.org/", "plaintext"),
        ("http://10.0.0.1/", "plaintext"),
        ("ftp://127.0.0.1/", "such as https"),
        ("https://", "such as https"),
        ("https://user:password@example.org/", "without a user"),
        ("https://example.org/a b", "such as https"),
        ("https://[::1/", "such as https"),
        ("https://example.org:port/", "such as https"),
    ],
)
def test_an_address_that_would_give_the_secret_away_is_refused(
    kind: str, url: str, expected: str, secret_file: Path
) -> None:
    values = example(kind, secret_file, Address("127.0.0.1", 1))
    key = "api_url" if "api_url" in values else "url"
    with pytest.raises(ValueError, match=expected):
        settings({**values, key: url})


def test_an_unknown_kind_names_those_that_exist() -> None:
    with pytest.raises(ValueError, match="'slack', 'email', 'pagerduty'"):
        settings({"kind": "pigeon"})


def reaching(kind: str, secret_file: Path, stand_ins: StandIns) -> dict[str, object]:
    """The example of this kind, reaching the stand-in, which asks nobody for a password."""
    values = example(kind, secret_file, stand_ins.smtp if kind == "email" else stand_ins.http)
    return {key: value for key, value in values.items() if key not in {"username", "password_file"}}


def arrived(kind: str, stand_ins: StandIns) -> list[str]:
    """Everything of this kind that the stand-ins took, as text."""
    slack = [str(message) for channel in stand_ins.slack.channels.values() for message in channel.messages]
    mails = [f"{mail.text} {mail.html}" for mail in stand_ins.mailbox.mails]
    return {"slack": slack, "email": mails, "pagerduty": [str(event) for event in stand_ins.pagerduty.events]}[kind]
