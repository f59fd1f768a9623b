"""The API of the page: the state, the live stream, the providers' faults, and who may call it."""

import asyncio
import json

import aiohttp
import pytest
from slack_sdk.web.async_client import AsyncWebClient

from ops.demo.stand_ins.app import StandIns, run_stand_ins
from shared.http import server

CRITICAL = "#security-critical"


async def test_the_state_shows_what_arrived_with_the_time_of_its_arrival(http: aiohttp.ClientSession) -> None:
    async with run_stand_ins(clock=lambda: 1_700_000_000.25) as stand_ins:
        slack = AsyncWebClient("xoxb-test", base_url=stand_ins.slack_api_url, retry_handlers=[])
        await slack.chat_postMessage(channel=CRITICAL, text="x")
        async with http.get(f"http://{stand_ins.http}/api/state") as answer:
            state = await answer.json()
    assert state["slack"][0]["channel"] == CRITICAL
    (message,) = state["slack"][0]["messages"]
    assert (message["at"], message["ts"], message["text"]) == (1_700_000_000.25, "1700000000.250000", "x")
    assert (message["blocks"], message["thread_ts"], message["metadata"]) == ([], None, None)
    assert state["mailbox"] == []
    assert state["pagerduty"] == {"incidents": [], "events": []}
    assert state["faults"] == []


async def test_messages_of_one_moment_have_different_timestamps() -> None:
    async with run_stand_ins(clock=lambda: 1_700_000_000.0) as stand_ins:
        slack = AsyncWebClient("xoxb-test", base_url=stand_ins.slack_api_url, retry_handlers=[])
        posted = [(await slack.chat_postMessage(channel=CRITICAL, text="x"))["ts"] for _ in range(3)]
    assert posted == ["1700000000.000000", "1700000000.000001", "1700000000.000002"]


async def test_a_routing_key_is_not_part_of_the_state(http: aiohttp.ClientSession) -> None:
    payload = {"summary": "s", "source": "x", "severity": "info"}
    event = {"routing_key": "0" * 32, "event_action": "trigger", "payload": payload}
    async with http.post("/pagerduty/v2/enqueue", json=event) as answer:
        assert answer.status == 202
    async with http.get("/api/state") as answer:
        assert answer.status == 200
        text = await answer.text()
    assert "0" * 32 not in text
    (incident,) = json.loads(text)["pagerduty"]["incidents"]
    assert [entry["event_action"] for entry in incident["log"]] == ["trigger"]


async def test_the_live_stream_reports_each_change(
    http: aiohttp.ClientSession, slack: AsyncWebClient, stand_ins: StandIns
) -> None:
    async with http.get("/api/changes") as answer:
        first = await answer.content.readline()
        await slack.chat_postMessage(channel=CRITICAL, text="x")
        async with asyncio.timeout(20):
            assert await answer.content.readline() == b"\n"
            second = await answer.content.readline()
    assert (first, second) == (b"data: 0\n", b"data: 1\n")


async def test_an_open_live_stream_does_not_hold_up_the_stop(
    http: aiohttp.ClientSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "DRAIN_SECONDS", 600.0)
    async with asyncio.timeout(30):
        async with run_stand_ins() as stand_ins:
            answer = await http.get(f"http://{stand_ins.http}/api/changes")
            await answer.content.readline()
        answer.close()


async def test_a_fault_is_put_in_force_shown_and_healed(http: aiohttp.ClientSession) -> None:
    fault = {"provider": "slack", "kind": "error", "error": "invalid_auth", "count": 2, "target": CRITICAL}
    async with http.post("/api/faults", json=fault) as answer:
        assert answer.status == 201
        number = (await answer.json())["id"]
    async with http.get("/api/state") as answer:
        assert (await answer.json())["faults"] == [{"id": number, **fault}]
    async with http.delete("/api/faults") as answer:
        assert answer.status == 204
    async with http.get("/api/state") as answer:
        assert (await answer.json())["faults"] == []


async def test_a_fault_that_is_too_long_is_refused(http: aiohttp.ClientSession) -> None:
    async with http.post("/api/faults", data=b" " * (64 * 1024 + 1)) as answer:
        assert answer.status == 413


FAULT = {"provider": "slack", "kind": "status"}


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "https://evil.example.org"},
        {"Origin": "null"},
        {"Origin": "http://127.0.0.1:1"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
    ],
)
@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/api/faults"),
        ("DELETE", "/api/faults"),
        ("POST", "/api/kms/break"),
        ("POST", "/api/kms/heal"),
    ],
)
async def test_another_web_page_changes_nothing(
    http: aiohttp.ClientSession, stand_ins: StandIns, method: str, path: str, headers: dict[str, str]
) -> None:
    async with http.request(method, path, json=FAULT, headers=headers) as answer:
        assert answer.status == 403
    assert stand_ins.faults.get_state() == []


async def test_our_own_page_may_change_things(http: aiohttp.ClientSession, stand_ins: StandIns) -> None:
    headers = {"Origin": f"http://{stand_ins.http}", "Sec-Fetch-Site": "same-origin"}
    async with http.post("/api/faults", json=FAULT, headers=headers) as answer:
        assert answer.status == 201


@pytest.mark.parametrize("path", ["/", "/api/state", "/mail/1", "/docs/a.md"])
async def test_a_name_that_somebody_pointed_at_this_machine_reads_nothing(
    http: aiohttp.ClientSession, path: str
) -> None:
    async with http.get(path, headers={"Host": "evil.example.org:9913"}) as answer:
        assert answer.status == 403


@pytest.mark.parametrize("host", ["localhost:9913", "127.0.0.1", "[::1]:9913"])
async def test_every_name_of_this_machine_opens_the_page(http: aiohttp.ClientSession, host: str) -> None:
    async with http.get("/", headers={"Host": host}) as answer:
        assert answer.status == 200
