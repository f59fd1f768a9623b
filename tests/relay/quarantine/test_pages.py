"""What was refused and what was given up, over HTTP: listed, replayed and retried by whoever may."""

import json
import re
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import aiohttp

from services.relay.channels.port import SendError, SendReason, SendScope
from services.relay.model import OWN_SOURCE, Message
from services.relay.outbox.quarantine import MAX_BODY_BYTES
from services.relay.quarantine.pages import PAGE_BYTES, format_body
from tests.relay.served_relay import Scripted, post, reaches, served, settings, until, webhook_of

ADMIN = {"Authorization": "Bearer an-admin-token-of-tests"}
RESPONDER = {"Authorization": "Bearer a-token-of-responders"}


def refused(number: int) -> list[SendError]:
    return [SendError(SendReason.REJECTED, SendScope.MESSAGE, "<b>invalid_blocks</b>") for _ in range(number)]


def find_sent(channel: Scripted) -> list[Message]:
    """What was sent, but for the relay's own notice of what it refused."""
    return [message for message in channel.sent if message.event.source != OWN_SOURCE]


async def call(client: aiohttp.ClientSession, method: str, path: str, **options: Any) -> tuple[int, dict[str, Any]]:
    async with client.request(method, path, **options) as response:
        return response.status, await response.json()


async def show(client: aiohttp.ClientSession, path: str, **options: Any) -> str:
    """A page, or what a form leads to."""
    method = "POST" if "data" in options else "GET"
    async with client.request(method, path, **options) as response:
        return await response.text()


async def test_a_refused_webhook_is_replayed_by_api_once_it_is_repaired_and_confirmed(tmp_path: Path) -> None:
    channel = Scripted()
    async with served(settings(tmp_path, {"one": channel})) as client:
        wrong = webhook_of(version="3")
        await post(client, wrong, "/alerts?source=eu")
        _, listed = await call(client, "GET", "/api/quarantine")
        (entry,) = listed["quarantine"]
        replay = f"/api/quarantine/{entry['id']}/replay"
        assert await call(client, "POST", replay) == (
            400,
            {"error": "version: expected '4', as Alertmanager's webhooks have it"},
        )
        code, answer = await call(client, "POST", replay, data=webhook_of())
        preview = answer["preview"]
        assert (code, preview["channels"], preview["incident_status"], preview["source"]) == (
            409,
            ["one"],
            "unknown",
            "eu",
        )
        assert re.fullmatch(r"\d{4}-.*Z", preview["started_at"])
        confirmed = f"{replay}?confirm={preview['code']}"
        assert (await call(client, "POST", confirmed, data=webhook_of(truncatedAlerts=1)))[0] == 409  # another body
        code, accepted = await call(client, "POST", confirmed, data=webhook_of())
        assert (code, accepted["deliveries"], accepted["duplicate"]) == (202, 1, False)
        await until(lambda: len(find_sent(channel)) == 1)
        (message,) = find_sent(channel)
        assert message.event.source == "eu"
        assert await call(client, "POST", confirmed, data=webhook_of()) == (
            409,
            {"error": "it was replayed already, by anonymous"},
        )
        _, listed = await call(client, "GET", "/api/quarantine")
        (entry,) = listed["quarantine"]
        assert (entry["replayed_by"], entry["incident_id"]) == ("anonymous", message.task.incident_id)
        _, audit = await call(client, "GET", "/api/audit")
        assert [(each["action"], each["on"]) for each in audit["audit"]] == [("replay", f"quarantine {entry['id']}")]
        assert (await call(client, "POST", "/api/quarantine/99/replay"))[0] == 404
        assert (await call(client, "POST", replay, data=b" " * (MAX_BODY_BYTES + 1)))[0] == 413


async def test_a_page_shows_a_body_escaped_previews_and_replays_it(tmp_path: Path) -> None:
    channel = Scripted()
    async with served(settings(tmp_path, {"one": channel})) as client:
        hostile = json.loads(webhook_of(version="3"))
        hostile["alerts"][0]["labels"]["alertname"] = "</textarea><script>alert(1)</script>"
        await post(client, json.dumps(hostile).encode())
        await post(client, b"{" + b"x" * PAGE_BYTES)
        page = await show(client, "/quarantine/1")
        assert "<script>alert(1)" not in page
        assert "&lt;/textarea&gt;&lt;script&gt;alert(1)" in page
        large = await show(client, "/quarantine/2")
        assert "--data-binary @webhook-2.txt" in large
        assert len(large) < 2 * PAGE_BYTES
        assert "invalid JSON" in await show(client, "/quarantine/2/preview", data={"csrf_token": ""})

        body = json.dumps(hostile | {"version": "4"})
        assert "version: expected" in await show(client, "/quarantine/1/preview", data={"csrf_token": ""})
        page = await show(client, "/quarantine/1/preview", data={"csrf_token": "", "body": body})
        assert "Notifies one" in page
        (code,) = re.findall('name="code" value="([0-9a-f]{16})"', page)
        form = {"csrf_token": "", "body": body, "code": code}
        assert "Nothing was done: what it would do has changed." in await show(
            client, "/quarantine/1/replay", data=form
        )  # the box is not checked
        assert find_sent(channel) == []
        page = await show(client, "/quarantine/1/replay", data={**form, "confirmed": "yes"})
        await until(lambda: len(find_sent(channel)) == 1)
        page = await show(client, "/quarantine")
        assert "Replayed by anonymous" in page
        assert f"/incidents/{find_sent(channel)[0].task.incident_id}" in page
        await show(client, "/quarantine/1/replay", data={**form, "confirmed": "yes"})  # a double click
        assert "Repair and replay" not in await show(client, "/quarantine/1")
        assert len(find_sent(channel)) == 1
        assert "No such entry" in await show(client, "/quarantine/77")


async def test_a_channel_with_dead_letters_is_degraded_until_they_are_retried(tmp_path: Path) -> None:
    channel = Scripted()
    async with served(settings(tmp_path, {"one": channel})) as client:

        async def describe() -> tuple[str, str, bool]:
            (listed,) = (await call(client, "GET", "/api/channels"))[1]["channels"]
            return listed["status"], listed["summary"], bool(listed["hint"])

        await post(client, webhook_of())
        await reaches(client, 1, "relay_deliveries_total", channel="one", outcome="delivered")
        channel.script = [*refused(5)]
        for number in range(5):
            await post(client, webhook_of(group=f"{number}"))
        await reaches(client, 5, "relay_outbox_deliveries", channel="one", state="dead")
        why = "the last failure: its provider rejected the message"
        assert await describe() == ("degraded", f"5 dead letters; {why}.", True)
        assert "5 dead letters; the last failure" in await show(client, "/")
        await post(client, webhook_of(group="another"))  # what arrives tells nobody of what did not
        await reaches(client, 2, "relay_deliveries_total", channel="one", outcome="delivered")
        assert (await describe())[0] == "degraded"
        deliveries = (await call(client, "GET", "/api/deliveries?state=dead"))[1]["deliveries"]
        assert (await call(client, "POST", f"/api/deliveries/{deliveries[0]['id']}/retry"))[0] == 202
        await reaches(client, 3, "relay_deliveries_total", channel="one", outcome="delivered")
        assert (await describe())[1] == f"4 dead letters; {why}."
        assert (await call(client, "POST", "/api/deliveries/retry?channel=one")) == (202, {"retried": 4})
        await reaches(client, 7, "relay_deliveries_total", channel="one", outcome="delivered")
        assert await describe() == ("healthy", "Up.", False)


async def test_dead_letters_are_retried_one_by_one_in_groups_and_all_at_once(tmp_path: Path) -> None:
    for name, token in (("admin", ADMIN), ("responder", RESPONDER)):
        (tmp_path / name).write_text(token["Authorization"].removeprefix("Bearer "))
    auth = {
        "admin_token_file": tmp_path / "admin",
        "tokens": [{"name": "rosa", "role": "responder", "file": str(tmp_path / "responder")}],
    }
    channel = Scripted(*refused(5))
    async with served(settings(tmp_path, {"one": channel, "two": Scripted()}, auth=auth)) as client:
        page = await show(client, "/quarantine", headers=RESPONDER)
        assert "Nothing was given up." in page
        assert "Nothing was refused." in page
        for number in range(5):
            await post(client, webhook_of(group=f"{number}"))
        await reaches(client, 5, "relay_outbox_deliveries", channel="one", state="dead")
        page = await show(client, "/quarantine", headers=RESPONDER)
        assert "one: rejected" in page
        assert "The provider does not accept this message." in page
        assert "&lt;b&gt;invalid_blocks&lt;/b&gt;" in page
        assert 'action="/quarantine/retry"' not in page  # for admins
        first = re.findall("/quarantine/retry/([0-9a-f]{32})", page)[0]
        assert "/deliveries/" + first in page

        assert "is sent again on one" in await flash(client, f"/quarantine/retry/{first}", headers=RESPONDER)
        await until(lambda: len(channel.sent) == 1)
        assert "Not retried: " in await flash(client, f"/quarantine/retry/{first}", headers=RESPONDER)
        retry = partial(call, client, "POST", headers=ADMIN)
        assert (await retry("/api/deliveries/retry?channel=one&reason=lost"))[0] == 400
        assert (await retry("/api/deliveries/retry?channel=lost"))[0] == 404
        assert await retry("/api/deliveries/retry?channel=one&reason=timeout") == (202, {"retried": 0})
        retry_by_page = partial(flash, client, "/quarantine/retry", headers=ADMIN)
        assert await retry_by_page(channel="one", reason="timeout") == "0 dead letters are sent again."
        assert "no such channel" in await retry_by_page(channel="\0")
        assert "too large" in await retry_by_page(channel="x" * 70_000)
        assert await retry_by_page() == "4 dead letters are sent again."
        await until(lambda: len(channel.sent) == 5)
        _, audit = await call(client, "GET", "/api/audit", headers=ADMIN)
        assert [(each["who"], each["action"], each["on"]) for each in audit["audit"]] == [
            ("admin", "retry all", "one"),
            ("admin", "retry all", "one timeout"),
            ("admin", "retry all", "one timeout"),
            ("rosa", "retry", first),
        ]  # and none for what was not done


async def flash(client: aiohttp.ClientSession, path: str, *, headers: dict[str, str], **fields: str) -> str:
    """What the next page says of an action."""
    form = {"csrf_token": "", **fields}
    async with client.post(path, data=form, headers=headers, allow_redirects=False) as response:
        assert response.status == 303
        return unquote(response.cookies["keypulse_done"].value)


def test_a_body_is_shown_whatever_it_is() -> None:
    assert format_body(b'{"a":[1,{}]}').text == '{\n  "a": [\n    1,\n    {}\n  ]\n}'
    for body, text in ((b"\xff<", "\ufffd<"), (b'"\\ud800\\u0000"', '"?\\u0000"'), (b"", "")):
        assert format_body(body).text == text
    deep = b"[" * 900 + b"]" * 900
    for hostile in (deep, b"[" * 60_000, b"[" + b",".join([deep] * 30) + b"]", b"NaN,"):
        formatted = format_body(hostile)
        assert len(formatted.text) <= 4 * PAGE_BYTES + 900
    cut = format_body(b"[" + b"1," * PAGE_BYTES)
    assert (cut.is_json, cut.is_whole, len(cut.text)) == (False, False, PAGE_BYTES)
