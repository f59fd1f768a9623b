"""Several incidents have one key in PagerDuty: those of a renamed receiver or of two, and the episodes of one.

The key is resolved with the last incident that needs it, and before the next episode if its resolve did not arrive.
"""

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from ops.demo.stand_ins.app import StandIns, run_stand_ins
from ops.demo.stand_ins.provider_faults import FaultKind, Provider, ProviderFault
from services.relay.config import RelaySettings
from shared.sql.database_url import DatabaseUrl
from tests.relay.served_relay import TOKEN, payload, post, served, until

KEY = "0" * 32


@pytest.fixture
async def providers() -> AsyncIterator[StandIns]:
    async with run_stand_ins(pagerduty_keys=[KEY]) as stand_ins:
        yield stand_ins


@pytest.fixture
async def client(tmp_path: Path, database: DatabaseUrl, providers: StandIns) -> AsyncIterator[aiohttp.ClientSession]:
    (tmp_path / "token").write_text(TOKEN)
    (tmp_path / "key").write_text(KEY)
    pagerduty = {"kind": "pagerduty", "routing_key_file": str(tmp_path / "key"), "url": providers.pagerduty_url}
    settings = RelaySettings(
        database=database.render_as_string(hide_password=False),
        auth={"bearer_token_file": tmp_path / "token"},
        delivery={"backoff_initial": "10ms", "backoff_max": "100ms"},
        channels={"pagerduty": pagerduty, "pd-again": pagerduty, "log": {"kind": "log"}},
        routes=[
            {"receiver": "to-the-log", "channels": ["log"]},
            {"receiver": "again", "channels": ["pd-again"]},
        ],
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


def actions(providers: StandIns) -> list[str]:
    return [event["event_action"] for event in providers.pagerduty.events]


async def deliver(client: aiohttp.ClientSession, body: bytes, deliveries: int) -> None:
    """Accepts a webhook, and waits until as many deliveries are over."""
    assert (await post(client, body))[0] == 202

    async def over() -> bool:
        async with client.get("/api/deliveries?state=delivered") as answer:
            return len((await answer.json())["deliveries"]) == deliveries

    await until(over)


@pytest.mark.parametrize("other", ["renamed", "again"])
async def test_the_end_of_one_resolves_nothing_that_another_one_needs(
    client: aiohttp.ClientSession, providers: StandIns, other: str
) -> None:
    await deliver(client, webhook("kms-critical", A="firing"), 1)
    await deliver(client, webhook(other, A="firing", B="firing"), 2)
    await deliver(client, webhook("kms-critical", A="resolved"), 3)
    assert actions(providers) == ["trigger", "trigger"]
    async with client.get("/api/deliveries?state=delivered&limit=1") as answer:
        assert "another incident" in (await answer.json())["deliveries"][0]["receipt"]["status"]
    await deliver(client, webhook(other, A="resolved", B="resolved"), 4)
    assert actions(providers) == ["trigger", "trigger", "resolve"]
    (incident,) = providers.pagerduty.incidents
    assert incident.status == "resolved"


async def test_an_incident_whose_alerts_ended_by_the_other_receiver_keeps_nothing_open(
    client: aiohttp.ClientSession, providers: StandIns
) -> None:
    await deliver(client, webhook("old-name", A="firing", B="firing"), 1)
    await deliver(client, webhook("new-name", A="firing", B="firing"), 2)
    await deliver(client, webhook("new-name", A="resolved", B="firing"), 3)
    await deliver(client, webhook("new-name", B="resolved"), 4)
    assert actions(providers) == ["trigger", "trigger", "trigger", "resolve"]


async def test_one_that_nobody_ends_keeps_nothing_open_however_much_the_other_reports_since(
    client: aiohttp.ClientSession, providers: StandIns
) -> None:
    await deliver(client, webhook("old-name", A="firing"), 1)
    await deliver(client, webhook("new-name", A="firing"), 2)
    await deliver(client, webhook("new-name", A="resolved"), 3)
    channel_ids = [f"C{number}" for number in range(25)]
    for most in range(1, 26):
        await post(client, webhook("new-name", **dict.fromkeys(channel_ids[:most], "firing")))
    assert (await post(client, webhook("new-name", **dict.fromkeys(channel_ids, "resolved"))))[0] == 202

    async def over() -> bool:
        async with client.get("/api/deliveries?limit=1") as answer:
            return bool((await answer.json())["deliveries"][0]["state"] == "delivered")

    await until(over)
    assert actions(providers)[-1] == "resolve"


async def test_one_that_goes_elsewhere_needs_no_key(client: aiohttp.ClientSession, providers: StandIns) -> None:
    await deliver(client, webhook("kms-critical", A="firing"), 1)
    await deliver(client, webhook("to-the-log", B="firing"), 2)
    await deliver(client, webhook("kms-critical", A="resolved"), 3)
    assert actions(providers) == ["trigger", "resolve"]


async def test_one_that_was_over_before_anybody_was_notified_is_called_for_and_left_open(
    client: aiohttp.ClientSession, providers: StandIns
) -> None:
    await deliver(client, webhook("other", B="firing"), 1)
    providers.faults.add(ProviderFault(provider=Provider.PAGERDUTY, kind=FaultKind.STATUS, status=500))
    await post(client, webhook("kms-critical", A="firing"))
    await post(client, webhook("kms-critical", A="resolved"))

    async def merged() -> bool:
        async with client.get("/api/deliveries?state=superseded") as answer:
            return len((await answer.json())["deliveries"]) == 1

    async def over() -> bool:
        async with client.get("/api/deliveries?state=delivered") as answer:
            return len((await answer.json())["deliveries"]) == 2

    await until(merged)  # else its beginning, which is under way, may arrive by itself
    providers.faults.clear()
    await until(over)
    assert actions(providers) == ["trigger", "trigger"]


async def test_one_that_starts_while_a_resolve_is_in_progress_is_triggered_after_it(
    client: aiohttp.ClientSession, providers: StandIns
) -> None:
    await deliver(client, webhook("kms-critical", A="firing"), 1)
    providers.faults.add(ProviderFault(provider=Provider.PAGERDUTY, kind=FaultKind.SLOW_ANSWER, seconds=0.5, count=1))
    await post(client, webhook("kms-critical", A="resolved"))
    await until(lambda: actions(providers) == ["trigger", "resolve"])
    await deliver(client, webhook("other", B="firing"), 4)  # it, the resolve, and it once more
    assert actions(providers) == ["trigger", "resolve", "trigger", "trigger"]


async def restart_while_pagerduty_fails(client: aiohttp.ClientSession, providers: StandIns, receiver: str) -> None:
    """The incident ends and starts again, and PagerDuty gets neither."""

    async def is_merged() -> bool:
        async with client.get("/api/deliveries?state=superseded") as answer:
            return len((await answer.json())["deliveries"]) == 1

    providers.faults.add(ProviderFault(provider=Provider.PAGERDUTY, kind=FaultKind.STATUS, status=500))
    await post(client, webhook(receiver, A="resolved"))
    await post(client, webhook(receiver, A="firing", C="firing"))
    await until(is_merged)


async def acknowledge(client: aiohttp.ClientSession) -> None:
    async with client.get("/api/incidents") as answer:
        (*_, first) = (await answer.json())["incidents"]
    async with client.post(f"/api/incidents/{first['id']}/acknowledge") as answer:
        assert answer.status == 200


async def test_an_acknowledged_incident_whose_resolve_did_not_arrive_calls_again_when_it_restarts(
    client: aiohttp.ClientSession, providers: StandIns
) -> None:
    await deliver(client, webhook("kms-critical", A="firing"), 1)
    await acknowledge(client)
    await until(lambda: actions(providers) == ["trigger", "acknowledge"])
    await restart_while_pagerduty_fails(client, providers, "kms-critical")
    providers.faults.clear()
    await until(lambda: actions(providers)[2:] == ["resolve", "trigger"])
    assert [incident.status for incident in providers.pagerduty.incidents] == ["resolved", "triggered"]
