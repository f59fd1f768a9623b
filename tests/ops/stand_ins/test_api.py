"""The API of the page: the state, the live stream, the providers' faults, and who may call it."""

import json

import aiohttp
import pytest

from ops.demo.stand_ins.app import StandIns

CRITICAL = "#security-critical"


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


@pytest.mark.parametrize("path", ["/", "/api/state", "/mail/1", "/docs/a.md"])
async def test_a_name_that_somebody_pointed_at_this_machine_reads_nothing(
    http: aiohttp.ClientSession, path: str
) -> None:
    async with http.get(path, headers={"Host": "evil.example.org:9913"}) as answer:
        assert answer.status == 403
