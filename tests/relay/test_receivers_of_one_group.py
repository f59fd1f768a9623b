"""Two receivers of one group are one incident, in PagerDuty, too: a receiver only chooses channels."""

import hashlib
import json
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from ops.demo.stand_ins.app import StandIns, run_stand_ins
from ops.demo.stand_ins.provider_faults import FaultKind, Provider, ProviderFault
from services.relay.config import RelaySettings
from shared.sql.database_url import DatabaseUrl
from tests.faults.deduplication_keys import dedup_key
from tests.relay.served_relay import TOKEN, payload, post, served, until
from tests.stores import each_store

KEY = "0" * 32
GROUP_KEY = json.loads(payload(1))["groupKey"]


@pytest.fixture
async def providers() -> AsyncIterator[StandIns]:
    async with run_stand_ins(pagerduty_keys=[KEY]) as stand_ins:
        yield stand_ins


@pytest.fixture
def window() -> str:
    return "60s"


LATER = pytest.mark.parametrize("window", ["1ms"])
"""Each webhook comes later than a duplicate may."""


@pytest.fixture
async def client(
    tmp_path: Path, database: DatabaseUrl, providers: StandIns, window: str
) -> AsyncIterator[aiohttp.ClientSession]:
    (tmp_path / "token").write_text(TOKEN)
    (tmp_path / "key").write_text(KEY)
    pagerduty = {"kind": "pagerduty", "routing_key_file": str(tmp_path / "key"), "url": providers.pagerduty_url}
    settings = RelaySettings(
        database=database.render_as_string(hide_password=False),
        auth={"bearer_token_file": tmp_path / "token"},
        delivery={"backoff_initial": "10ms", "backoff_max": "100ms", "duplicate_window": window},
        channels={"pagerduty": pagerduty, "log": {"kind": "log"}},
        routes=[{"receiver": "audit", "channels": ["log"]}],
        default_channels=["pagerduty"],
    )
    async with served(settings) as client:
        yield client


def webhook(receiver: str, **alerts: str) -> bytes:
    """Of one group: each alert with its status."""
    document: dict[str, Any] = json.loads(payload(1))
    (one,) = document["alerts"]
    alert_list = [{**one, "status": status, "fingerprint": name} for name, status in alerts.items()]
    status = "firing" if "firing" in alerts.values() else "resolved"
    return json.dumps({**document, "receiver": receiver, "status": status, "alerts": alert_list}).encode()


async def accept(client: aiohttp.ClientSession, body: bytes, path: str = "/alerts") -> tuple[int, int]:
    """The status, and how many deliveries it added."""
    status, answer = await post(client, body, path)
    assert answer["duplicate"] == (status == 200)
    return status, 0 if answer["duplicate"] else answer["deliveries"]


async def list_of(client: aiohttp.ClientSession, what: str, query: str = "") -> list[dict[str, Any]]:
    async with client.get(f"/api/{what}{query}") as answer:
        found: list[dict[str, Any]] = (await answer.json())[what]
        return found


async def is_delivered(client: aiohttp.ClientSession, **by_channel: int) -> None:
    """Returns once as many deliveries are over on each channel, and no other is there."""

    async def over() -> bool:
        found = await list_of(client, "deliveries")
        return Counter(each["channel"] for each in found if each["state"] == "delivered") == by_channel

    await until(over)


def actions(providers: StandIns) -> list[str]:
    return [event["event_action"] for event in providers.pagerduty.events]


async def test_what_the_second_receiver_repeats_goes_to_its_channels_alone(
    client: aiohttp.ClientSession, providers: StandIns
) -> None:
    assert await accept(client, webhook("kms-critical", A="firing")) == (202, 1)
    assert await accept(client, webhook("audit", A="firing")) == (202, 1)
    for receiver in ("audit", "kms-critical"):  # their twins
        assert await accept(client, webhook(receiver, A="firing")) == (200, 0)
    await is_delivered(client, pagerduty=1, log=1)
    (incident,) = await list_of(client, "incidents")
    assert await accept(client, webhook("audit", A="firing", B="firing")) == (202, 2), "it is open on both"
    await is_delivered(client, pagerduty=2, log=2)
    assert await accept(client, webhook("kms-critical", A="firing", B="firing")) == (200, 0)
    assert await accept(client, webhook("audit", A="resolved", B="resolved")) == (202, 2)
    assert await accept(client, webhook("kms-critical", A="resolved", B="resolved")) == (200, 0)
    await is_delivered(client, pagerduty=3, log=3)
    assert actions(providers) == ["trigger", "trigger", "resolve"]
    (resolved,) = await list_of(client, "incidents")
    assert (resolved["id"], resolved["status"]) == (incident["id"], "resolved")


@LATER
async def test_what_the_second_receiver_repeats_is_no_reminder_however_late_its_route_sends_it(
    client: aiohttp.ClientSession,
) -> None:
    assert await accept(client, webhook("kms-critical", A="firing")) == (202, 1)
    assert await accept(client, webhook("audit", A="firing")) == (202, 1)
    assert await accept(client, webhook("audit", A="firing")) == (202, 2), "that is one"
    assert await accept(client, webhook("kms-critical", A="firing")) == (200, 0)


@LATER
async def test_a_renamed_receiver_goes_on_with_its_incident(client: aiohttp.ClientSession, providers: StandIns) -> None:
    assert await accept(client, webhook("old-name", A="firing")) == (202, 1)
    await is_delivered(client, pagerduty=1)
    await acknowledge(client)
    await is_delivered(client, pagerduty=2)
    assert await accept(client, webhook("new-name", A="firing")) == (200, 0)
    assert await accept(client, webhook("new-name", A="firing")) == (202, 1), "a reminder is news"
    await is_delivered(client, pagerduty=3)
    (incident,) = await list_of(client, "incidents")
    assert incident["acknowledged_by"]
    assert await accept(client, webhook("new-name", A="resolved")) == (202, 1)
    await is_delivered(client, pagerduty=4)
    assert actions(providers) == ["trigger", "acknowledge", "trigger", "resolve"]
    assert [each.status for each in providers.pagerduty.incidents] == ["resolved"]


@each_store
async def test_late_twins_of_either_receiver_bring_the_current_state_to_who_has_none_and_nothing_else(
    client: aiohttp.ClientSession, providers: StandIns
) -> None:
    await accept(client, webhook("kms-critical", A="firing"))
    status, latest = await post(client, webhook("kms-critical", A="firing", B="firing"))
    assert status == 202
    assert await accept(client, webhook("kms-critical", A="firing")) == (200, 0)
    assert await post(client, webhook("audit", A="firing")) == (
        202,
        {"event_id": latest["event_id"], "deliveries": 1, "duplicate": False},
    )
    assert await accept(client, webhook("audit", A="firing")) == (200, 0)

    async def log() -> bool:
        found = await list_of(client, "deliveries", "?channel=log")
        return [each["state"] for each in found] == ["delivered"]

    await until(log)
    (delivery,) = await list_of(client, "deliveries", "?channel=log")
    async with client.get(f"/api/deliveries/{delivery['id']}") as answer:
        assert (await answer.json())["payload"].count("firing since") == 2


async def test_the_end_of_one_source_closes_nothing_of_another_with_the_same_group_key(
    client: aiohttp.ClientSession, providers: StandIns
) -> None:
    for path in ("/alerts", "/alerts?source=eu", "/alerts?source=us"):
        assert await accept(client, webhook("kms-critical", A="firing"), path) == (202, 1)
    await is_delivered(client, pagerduty=3)
    assert await accept(client, webhook("kms-critical", A="resolved"), "/alerts?source=eu") == (202, 1)
    await is_delivered(client, pagerduty=4)
    of_source = {name: hashlib.sha256(f"{name}\0{GROUP_KEY}".encode()).hexdigest() for name in ("eu", "us")}
    assert {each.dedup_key: each.status for each in providers.pagerduty.incidents} == {
        dedup_key(GROUP_KEY): "triggered",
        of_source["eu"]: "resolved",
        of_source["us"]: "triggered",
    }


async def test_an_alertmanager_that_pages_beside_the_relay_opens_no_second_incident(
    client: aiohttp.ClientSession, providers: StandIns
) -> None:
    summary = {"summary": "KMS", "source": "Alertmanager", "severity": "critical"}
    event = {"routing_key": KEY, "event_action": "trigger", "dedup_key": dedup_key(GROUP_KEY), "payload": summary}
    async with client.post(providers.pagerduty_url, json=event) as answer:
        assert answer.status == 202
    for receiver in ("kms-critical", "renamed"):
        await accept(client, webhook(receiver, A="firing"))
    await is_delivered(client, pagerduty=1)
    assert len(providers.pagerduty.incidents) == 1


async def acknowledge(client: aiohttp.ClientSession) -> None:
    (incident,) = await list_of(client, "incidents")
    async with client.post(f"/api/incidents/{incident['id']}/acknowledge") as answer:
        assert answer.status == 200


async def test_an_acknowledged_incident_whose_resolve_did_not_arrive_calls_again_when_it_restarts(
    client: aiohttp.ClientSession, providers: StandIns
) -> None:
    await accept(client, webhook("kms-critical", A="firing"))
    await is_delivered(client, pagerduty=1)
    await acknowledge(client)
    await until(lambda: actions(providers) == ["trigger", "acknowledge"])
    providers.faults.add(ProviderFault(provider=Provider.PAGERDUTY, kind=FaultKind.STATUS, status=500))
    await post(client, webhook("kms-critical", A="resolved"))
    await post(client, webhook("kms-critical", A="firing", C="firing"))

    async def is_merged() -> bool:
        return len(await list_of(client, "deliveries", "?state=superseded")) == 1

    await until(is_merged)
    providers.faults.clear()
    await until(lambda: actions(providers)[2:] == ["resolve", "trigger"])
    assert [incident.status for incident in providers.pagerduty.incidents] == ["resolved", "triggered"]
