"""Deliveries over the API and as pages: sent elsewhere once and on the record, shown with what is known."""

import asyncio
import re
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import aiohttp
import pytest
from starlette.requests import Request
from starlette.responses import Response

from services.relay.channels.port import SendError, SendReason, SendScope
from services.relay.console.frame import Console
from services.relay.deliveries.pages import parse_form_query
from services.relay.deliveries.queries import Position
from services.relay.outbox.tables import DeliveryState
from tests.relay.console.test_api import get
from tests.relay.served_relay import Scripted, metric, post, reaches, served, settings, until, webhook_of

REFUSED = SendError(SendReason.REJECTED, SendScope.MESSAGE, "invalid_blocks <b>& more")


async def send(client: aiohttp.ClientSession, delivery: str, body: Any) -> tuple[int, dict[str, Any]]:
    options = {"data": body} if isinstance(body, bytes) else {"json": body}
    async with client.post(f"/api/deliveries/{delivery}/send", **options) as response:
        return response.status, await response.json()


async def read_page(client: aiohttp.ClientSession, path: str, **headers: str) -> tuple[int, str]:
    async with client.get(path, headers=headers) as response:
        return response.status, await response.text()


async def test_a_delivery_is_sent_elsewhere_once(tmp_path: Path) -> None:
    other = Scripted()
    configuration = settings(
        tmp_path, {"one": Scripted(REFUSED), "two": other, "three": Scripted()}, default_channels=["one"]
    )
    async with served(configuration) as client:
        await post(client, webhook_of())
        await reaches(client, 1, "relay_outbox_deliveries", channel="one", state="dead")
        ((_, listed),) = [await get(client, "/api/deliveries")]
        delivery = listed["deliveries"][0]["id"]
        code, sent = await send(client, delivery, {"channel": "two"})
        assert (code, sent["channel"]) == (202, "two")
        await reaches(client, 1, "relay_deliveries_total", channel="two", outcome="delivered")
        assert (await get(client, f"/api/deliveries/{sent['id']}"))[1]["remark"] == (
            "Sent elsewhere by anonymous; it was for one."
        )
        assert [message.event.status.value for message in other.sent] == ["firing"]
        assert await send(client, delivery, {"channel": "two"}) == (
            409,
            {"error": f"two has the current state of its incident: delivery {sent['id']}, delivered"},
        )
        assert (await send(client, delivery, {"channel": "one"}))[0] == 409
        assert await send(client, delivery, {"channel": "no"}) == (
            404,
            {"error": "no such channel; expected one of one, three, two"},
        )
        code, answer = await send(client, "unknown", {"channel": "two"})
        assert (code, answer["error"]) == (404, "no such delivery")
        for wrong in (b"", b"[]", {"channel": 1}, {}):
            assert (await send(client, delivery, wrong))[0] == 400
        too_large = {"error": 'expected {"channel": NAME} in at most 4096 bytes'}
        assert await send(client, delivery, {"channel": "x" * 5000}) == (413, too_large)
        _, audit = await get(client, "/api/audit")
        assert [(entry["action"], entry["on"]) for entry in audit["audit"]] == [
            ("send elsewhere", f"{delivery} to two")
        ]
        assert await metric(client, "relay_deliveries_total", channel="two", outcome="delivered") == 1
        await post(client, webhook_of("resolved"))  # goes there, too
        await until(lambda: [message.event.status.value for message in other.sent] == ["firing", "resolved"])


async def test_the_list_keeps_its_filters_from_page_to_page(tmp_path: Path) -> None:
    async with served(settings(tmp_path, {"one": Scripted(), "two": Scripted()})) as client:
        for number in range(60):
            await post(client, webhook_of(group=f"{number}"))
        code, first = await read_page(client, "/deliveries?channel=one&text=KMS")
        assert (code, first.count("<tr>")) == (200, 51)
        (older,) = re.findall(r'<a href="([^"]+)" rel="next"', first)
        assert older.startswith("/deliveries?text=KMS&amp;channel=one&amp;before=")
        _, second = await read_page(client, older.replace("&amp;", "&"))
        assert second.count("<tr>") == 11
        assert 'hx-trigger="sse:changed' not in second.partition("delivery_list")[2]  # only the newest are live
        (newer,) = re.findall(r'<a href="([^"]+)" rel="prev"', second)
        _, back = await read_page(client, newer.replace("&amp;", "&"))
        assert re.findall(r'id="delivery-(\w+)"', back) == re.findall(r'id="delivery-(\w+)"', first)
        assert "No delivery matches" in (await read_page(client, "/deliveries?alertname=unknown"))[1]
        code, wrong = await read_page(client, "/deliveries?state=lost&since=monday&before=zz")
        assert code == 400
        for problem in ("state: expected one of queued", "since: expected a time in UTC", "before: expected a link"):
            assert problem in wrong
        for time in ("since=0001-01-01T00:00%2B14:00", "until=9999-12-31T23:59-14:00"):  # the year 0, and 10000
            assert (await read_page(client, f"/deliveries?{time}"))[0] == 400
        fragment = (await read_page(client, "/deliveries", **{"HX-Request": "true", "HX-Target": "delivery_list"}))[1]
        assert fragment.lstrip().startswith("<section")
        assert "<form" not in fragment


async def test_one_delivery_is_shown_with_all_that_is_known_and_nothing_else(tmp_path: Path) -> None:
    async with served(settings(tmp_path, {"good": Scripted(), "bad": Scripted(REFUSED)})) as client:
        await post(client, webhook_of())
        await reaches(client, 1, "relay_outbox_deliveries", channel="bad", state="dead")
        await reaches(client, 1, "relay_deliveries_total", channel="good", outcome="delivered")
        _, listed = await get(client, "/api/deliveries")
        ids = {row["channel"]: row["id"] for row in listed["deliveries"]}
        _, dead = await read_page(client, f"/deliveries/{ids['bad']}")
        assert "invalid_blocks &lt;b&gt;&amp; more" in dead
        assert "<b>& more" not in dead
        assert "Retry</button>" in dead
        assert "the provider has not accepted it" in dead
        _, good = await read_page(client, f"/deliveries/{ids['good']}")
        assert "Retry</button>" not in good
        assert "Open in Slack" not in good
        assert f"{ids['good']}: firing" in good  # what was sent
        for path, code in (
            ("/deliveries/unknown", 404),
            ("/deliveries/%00", 404),
            (f"/deliveries/{ids['good']}/mail", 404),
            ("/deliveries/unknown/open", 404),
        ):
            assert (await read_page(client, path))[0] == code, path
        async with client.get(f"/deliveries/{ids['good']}/open", allow_redirects=False) as response:
            assert (response.status, response.headers["Location"]) == (303, f"/deliveries/{ids['good']}")
        for path, channel in ((ids["good"], ""), ("unknown", ""), (ids["good"], "good"), (ids["good"], "no")):
            url = f"/deliveries/{path}/send" if channel else f"/deliveries/{path}/retry"
            form = {"csrf_token": "", "channel": channel}
            async with client.post(url, data=form, allow_redirects=False) as response:
                assert unquote(response.cookies["keypulse_done"].value).startswith("Not ")
        assert (await get(client, "/api/audit"))[1]["audit"] == []  # nothing was done


def test_a_query_is_read_as_a_form_writes_it() -> None:
    query = parse_form_query(
        {"since": "2026-11-24T22:46", "until": "2026-11-24T23:46:30+01:00", "state": "dead", "after": "a"}, 0
    )
    assert (query.filter.since, query.filter.until) == (1795560360.0, 1795560390.0)
    assert (query.filter.state, query.position) == (DeliveryState.DEAD, Position(after=10))
    assert (query.get("since"), query.get("until"), query.get("channel")) == (
        "2026-11-24T22:46",
        "2026-11-24T22:46",
        "",
    )
    assert parse_form_query({"since": "1h"}, 5000).filter.since == 1400
    wrong = {"text": "x" * 300, "channel": "a\0b", "alert": "the list of incidents has it"}
    assert parse_form_query(wrong, 0).problems.keys() == wrong.keys()


async def test_viewers_of_one_list_share_what_is_rendered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rendered: list[str] = []
    render = Console.render

    async def count(renderer: Console, request: Request, *arguments: Any, **options: Any) -> Response:
        rendered.append(request.url.query)
        return await render(renderer, request, *arguments, **options)

    monkeypatch.setattr(Console, "render", count)
    monkeypatch.setattr("services.relay.console.frame._SHARED_SECONDS", 60.0)  # of twenty that come at once, the last
    part = {"HX-Request": "true", "HX-Target": "delivery_list"}
    async with served(settings(tmp_path, {"one": Scripted()})) as client:
        await asyncio.gather(*(read_page(client, "/deliveries?channel=one", **part) for _ in range(20)))
        assert len(rendered) == 1
        for number in range(30):
            await read_page(client, f"/deliveries?text={number}", **part)
        assert "Deliveries</h1>" in (await read_page(client, "/deliveries", **{**part, "HX-Target": "other"}))[1]
        assert "</h1>" not in (await read_page(client, "/deliveries", **part))[1]


async def test_a_viewer_sees_no_actions(tmp_path: Path) -> None:
    for role in ("viewer", "responder"):
        (tmp_path / role).write_text(f"a-token-of-a-{role}-of-tests")
    tokens = [{"name": role, "role": role, "file": tmp_path / role} for role in ("viewer", "responder")]
    configuration = settings(tmp_path, {"one": Scripted(REFUSED), "two": Scripted()}, auth={"tokens": tokens})
    async with served(configuration) as client:
        await post(client, webhook_of())
        found = {}
        for role in ("viewer", "responder"):
            bearer = {"Authorization": f"Bearer a-token-of-a-{role}-of-tests"}

            async def read_dead(bearer: dict[str, str] = bearer) -> list[dict[str, Any]]:
                _, listed = await get(client, "/api/deliveries?state=dead", headers=bearer)
                rows: list[dict[str, Any]] = listed["deliveries"]
                return rows

            async def is_dead() -> bool:
                return bool(await read_dead())

            await until(is_dead)
            _, found[role] = await read_page(client, f"/deliveries/{(await read_dead())[0]['id']}", **bearer)
        assert "Retry</button>" in found["responder"]
        assert "Send elsewhere" in found["responder"]
        assert "<form" not in found["viewer"].partition("<main")[2]
