"""The stand-in PagerDuty, over HTTP as every client of the Events API talks to it."""

from typing import Any

import aiohttp
import pytest

from ops.demo.stand_ins.app import StandIns

KEY = "0" * 32


def event(action: str = "trigger", **changes: Any) -> dict[str, Any]:
    payload = {"summary": "ledger is down", "source": "prod/ledger", "severity": "critical"}
    return {"routing_key": KEY, "event_action": action, "dedup_key": "k1", "payload": payload, **changes}


def with_payload(**changes: Any) -> dict[str, Any]:
    return event(payload={**event()["payload"], **changes})


async def send(http: aiohttp.ClientSession, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
    async with http.post("/pagerduty/v2/enqueue", json=body) as answer:
        return answer.status, await answer.json()


async def test_triggers_of_one_dedup_key_are_one_incident(http: aiohttp.ClientSession, stand_ins: StandIns) -> None:
    await send(http, event())
    await send(http, with_payload(summary="still down"))
    (incident,) = stand_ins.pagerduty.incidents
    assert incident.summary == "ledger is down"
    assert [entry["summary"] for entry in incident.log] == ["ledger is down", "still down"]


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({}, ""),
        ({"routing_key": "1" * 32}, "Invalid routing key"),
        ({"payload": None}, "'payload' is missing or blank"),
        ({"payload": {"source": "x"}}, "'payload.summary' is missing or blank"),
        ({"payload": {"summary": "x" * 1025}}, "'payload.summary' is too long (maximum is 1024 characters)"),
        ({"links": [{"href": "javascript:x"}]}, "'links[0].href' is invalid (must be a URL: http or https)"),
    ],
)
async def test_a_change_event_needs_a_key_and_a_summary_and_opens_no_incident(
    http: aiohttp.ClientSession, stand_ins: StandIns, changes: dict[str, Any], error: str
) -> None:
    body = {"routing_key": KEY, "payload": {"summary": "a deployment"}, **changes}
    async with http.post("/pagerduty/v2/change/enqueue", json=body) as answer:
        assert (answer.status, (await answer.json()).get("errors", [""])) == (400 if error else 202, [error])
    assert len(stand_ins.pagerduty.change_events) == (not error)
    assert (list(stand_ins.pagerduty.incidents), list(stand_ins.pagerduty.events)) == ([], [])


@pytest.mark.parametrize(
    ("body", "error"),
    [
        (event(routing_key=None), "'routing_key' is missing or blank"),
        (event(routing_key="short"), "Length of 'routing_key' is incorrect (should be 32 characters)"),
        (event(routing_key="1" * 32), "Invalid routing key"),
        (event("shout"), "'event_action' is invalid (must be one of the following: trigger, acknowledge, resolve)"),
        (event(dedup_key="x" * 256), "'dedup_key' is invalid (must be a string of at most 255 characters)"),
        (event("resolve", dedup_key=None), "'dedup_key' is missing or blank"),
        (event(payload=None), "'payload' is missing or blank"),
        (with_payload(summary=None), "'payload.summary' is missing or blank"),
        (with_payload(source=""), "'payload.source' is missing or blank"),
        (with_payload(summary="x" * 1025), "'payload.summary' is too long (maximum is 1024 characters)"),
        (
            with_payload(severity="page"),
            "'payload.severity' is invalid (must be one of the following: critical, error, warning, info)",
        ),
        (event(links=[{"href": "javascript:x"}]), "'links[0].href' is invalid (must be a URL: http or https)"),
        (event(links={}), "'links' is invalid (must be an array)"),
        (event(images=[{"src": "http://example.org/x.png"}]), "'images[0].src' is invalid (must be a URL: https)"),
    ],
)
async def test_an_invalid_event_is_refused_with_its_error(
    http: aiohttp.ClientSession, stand_ins: StandIns, body: dict[str, Any], error: str
) -> None:
    status, answer = await send(http, body)
    assert status == 400
    assert answer == {"status": "invalid event", "message": "Event object is invalid", "errors": [error]}
    assert not stand_ins.pagerduty.events
