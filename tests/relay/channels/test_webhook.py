import asyncio
import json
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
from aiohttp import web
from hypothesis import given
from hypothesis import settings as hypothesis_settings

from services.relay.channels.port import SendReason, SendScope
from services.relay.channels.webhook import MAX_BODY, build_body
from services.relay.model import Message
from shared import VERSION
from tests.iterations import LONG
from tests.relay.channels.conftest import Answering, OpenChannel, TcpServer, WebServer
from tests.relay.channels.examples import (
    HUGE,
    SECRET,
    change,
    critical,
    example,
    message,
    messages,
    rotate,
    with_text,
)
from tests.relay.channels.kinds import failure
from tests.relay.channels.recording_attempt import Recorded, send


def test_the_documented_body_has_each_field_with_its_kind_of_value() -> None:
    page = (Path(__file__).parents[3] / "docs/configuration/channels.md").read_text(encoding="utf-8")
    example = re.search(r"```json\n(.*?)```", page, re.DOTALL)
    assert example
    documented, body = json.loads(example[1]), json.loads(json.dumps(build_body(critical(message()))))
    for shown, sent in ((documented, body), (documented["alerts"][0], body["alerts"][0])):
        assert {key: type(value) for key, value in shown.items()} == {key: type(value) for key, value in sent.items()}
    assert documented["alerts"][0]["links"].keys() <= body["alerts"][0]["links"].keys()


def size(message: Message) -> int:
    return len(json.dumps(build_body(message), ensure_ascii=False, separators=(",", ":")).encode())


@given(messages())
@hypothesis_settings(max_examples=200 if LONG else 50)
def test_no_body_passes_its_limit(any_message: Message) -> None:
    body = build_body(any_message)
    assert size(any_message) <= MAX_BODY
    assert len(body["alerts"]) + body["unlisted_count"] == (
        len(any_message.event.alerts) + any_message.event.truncated_alerts
    )


@pytest.mark.parametrize("text", HUGE)
def test_alerts_that_do_not_fit_are_counted(text: str) -> None:
    labels = {f"{number}{text}": text for number in range(70)}
    wide = critical(with_text(text, 120))
    event = replace(
        wide.event,
        group_labels=labels,
        common_labels=labels,
        alerts=tuple(replace(alert, labels=labels, annotations=labels) for alert in wide.event.alerts),
    )
    body, body_size = build_body(replace(wide, event=event)), size(replace(wide, event=event))
    assert body_size <= MAX_BODY  # of numbers: the message in the text of a failure takes gigabytes
    assert 1 <= len(body["alerts"]) < 120
    assert body["unlisted_count"] == 120 - len(body["alerts"])


async def test_the_token_and_the_key_of_the_delivery_stand_in_the_headers(
    open_channel: OpenChannel, secret_file: Path, answering: Answering
) -> None:
    received: list[Mapping[str, str]] = []

    async def answer(request: web.Request) -> web.Response:
        received.append(request.headers.copy())
        return web.Response(status=202)

    values = example("webhook", secret_file, await answering(answer))
    with_token, without = open_channel(values), open_channel({**values, "token_file": None})
    assert await send(with_token, message()) == {"status": "202"}
    rotate(secret_file, "rotated")
    await send(with_token, message())
    await send(without, change(message(), maybe_sent=True))  # the next attempt of the same
    assert [headers.get("Authorization") for headers in received] == [f"Bearer {SECRET}", "Bearer rotated", None]
    assert {headers["Idempotency-Key"] for headers in received} == {"0192-delivery"}
    assert {headers["Content-Type"] for headers in received} == {"application/json"}
    assert {headers["User-Agent"] for headers in received} == {f"keypulse/{VERSION}"}
    assert without.read_secret_versions() == ((None, None),)


@pytest.mark.parametrize("status", [200, 201, 204, 299])
@pytest.mark.parametrize("body", ["", "<h1>Thanks</h1>", "{"])
async def test_every_2xx_takes_the_event(
    status: int, body: str, open_channel: OpenChannel, secret_file: Path, website: WebServer
) -> None:
    channel = open_channel(example("webhook", secret_file, await website(status, body)))
    assert await send(channel, message()) == {"status": str(status)}


async def test_what_follows_a_success_is_not_waited_for(
    open_channel: OpenChannel, secret_file: Path, tcp: TcpServer
) -> None:
    async def slow(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n{")
        await reader.read(10_000_000)
        await asyncio.Event().wait()

    channel = open_channel(example("webhook", secret_file, await tcp(slow)))
    assert await send(channel, message()) == {"status": "200"}


async def test_the_text_of_a_refusal_is_passed_on(secret_file: Path, website: WebServer) -> None:
    address, attempt = await website(422, f"no field `team` ({SECRET})"), Recorded(message())
    raised = await failure("webhook", secret_file, address, attempt=attempt)
    assert (raised.reason, raised.scope) == (SendReason.REJECTED, SendScope.MESSAGE)
    assert str(raised) == "the webhook answered HTTP 422: no field `team` ([secret])"
    assert attempt.answers == ["HTTP 422 no field `team` ([secret])"]
