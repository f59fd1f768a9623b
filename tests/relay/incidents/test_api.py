"""`/api/incidents`: what goes on, who takes care of it, and where it goes if nobody does."""

from pathlib import Path
from typing import Any

import aiohttp
import pytest

from services.relay.channels.port import ChannelSettings
from tests.relay.console.test_api import Clock, get
from tests.relay.served_relay import Scripted, ScriptedSettings, post, reaches, served, settings, until, webhook_of

TIMELINE = ("deliveries", "timeline", "timeline_episode", "timeline_cursor", "timeline_is_cut", "hops")
STEPS = [{"after": "10m", "channels": ["two"]}, {"after": "1h", "channels": ["three"]}]


class Acknowledging(ScriptedSettings):
    acknowledges = True


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("services.relay.monitors.supervisor._ESCALATION_INTERVAL", 0.02)


async def act(
    client: aiohttp.ClientSession, incident: str, action: str, body: str | None = None
) -> tuple[int, dict[str, Any]]:
    async with client.post(f"/api/incidents/{incident}/{action}", data=body) as response:
        return response.status, await response.json()


async def find(client: aiohttp.ClientSession, query: str = "") -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = (await get(client, f"/api/incidents{query}"))[1]["incidents"]
    return found


async def test_incidents_are_listed_in_pages_the_open_ones_first(tmp_path: Path) -> None:
    async with served(settings(tmp_path, {"one": Scripted()}), clock=Clock()) as client:
        for number in range(3):
            await post(client, webhook_of(group=f"{number}"))
        await reaches(client, 3, "relay_deliveries_total", channel="one", outcome="delivered")
        await post(client, webhook_of("resolved", group="1"))
        await reaches(client, 4, "relay_deliveries_total", channel="one", outcome="delivered")
        listed = await find(client)
        assert [each["status"] for each in listed] == ["firing", "firing", "resolved"]
        first = listed[0]
        assert first == {
            "id": first["id"],
            "alertname": "KMSCryptoModeNotKMS",
            "status": "firing",
            "title": "KMSCryptoModeNotKMS · production / backend",
            "severity": "critical",
            "receiver": "kms-critical",
            "since": "2001-09-09T01:46:40.000Z",
            "service": "backend",
            "episode": 1,
            **dict.fromkeys(("acknowledged_by", "acknowledged_at", "acknowledged_via", "escalated_at")),
            **dict.fromkeys(("ended_at", "silenced_by", "silenced_until")),
            "escalated_to": [],
            "channels": ["one"],
            "channel_states": {"one": "delivered"},
        }
        _, page = await get(client, "/api/incidents?limit=2")
        assert page["incidents"] == listed[:2]
        await post(client, webhook_of(group="0", truncatedAlerts=1))  # a further event changes no page
        _, page = await get(client, f"/api/incidents?limit=2&cursor={page['next_cursor']}")
        assert ([each["id"] for each in page["incidents"]], page["next_cursor"]) == ([listed[2]["id"]], None)
        assert await find(client, "?status=resolved&alertname=KMSCryptoModeNotKMS") == [listed[2]]
        assert await find(client, "?alertname=Other") == []
        assert await find(client, "?since=1h") == listed
        for path in ("/api/incidents", "/incidents"):
            async with client.get(f"{path}/{first['id'][:12]}") as answer:
                assert (answer.status, first["id"] in await answer.text()) == (200, True)
        _, one = await get(client, f"/api/incidents/{listed[2]['id']}")
        assert one == {**listed[2], **{name: one[name] for name in TIMELINE}}
        kinds = {each["kind"] for each in one["timeline"]}  # the alert is of a later year than the clock
        assert kinds == {"alert", "accepted", "resolved", "delivered"}
        assert [(each["name"], each["channel"]) for each in one["hops"]["end"]] == [
            ("alert", None),
            ("accepted", None),
            ("delivered", "one"),
        ]
        assert (one["timeline_episode"], one["timeline_cursor"], one["timeline_is_cut"]) == (1, None, False)
        assert [(each["status"], each["state"]) for each in one["deliveries"]] == [
            ("resolved", "delivered"),
            ("firing", "delivered"),
        ]
        await post(client, webhook_of(group="1"))  # its next episode
        assert [each["id"] for each in await find(client)] == [listed[n]["id"] for n in (2, 0, 1)]
        _, first_episode = await get(client, f"/api/incidents/{listed[2]['id']}?episode=1")
        assert (first_episode["timeline_episode"], first_episode["timeline"]) == (1, one["timeline"])
        gone = "It never was, or it is older than `retention.max_age`."
        pruned = {"error": "nothing of it is stored any more", "hint": gone}
        assert await get(client, f"/api/incidents/{listed[2]['id']}?episode=9") == (404, pruned)
        assert await get(client, "/api/incidents/unknown") == (404, {"error": "no such incident", "hint": gone})
        found = await find(client, "?status=firing&acknowledged=false&service=backend&since=2001-09-09T00:00:00Z")
        assert len(found) == 3
        assert await find(client, "?acknowledged=true") == await find(client, "?service=other") == []
        filters = "limit, cursor, status, acknowledged, alertname, service, since"
        for query, error in (
            ("?status=open", "status: expected one of firing, resolved"),
            ("?state=x", f"unknown parameter; expected {filters}"),
            ("?acknowledged=1", "acknowledged: expected true or false"),
            ("?limit=0", "limit: expected a number from 1 to 1000"),
            ("/x?episode=0", "episode: expected the number of an episode, 1 for the first one"),
            ("/x?before=1", "unknown parameter; expected episode, cursor, fault"),
        ):
            assert await get(client, f"/api/incidents{query}") == (400, {"error": error})


async def test_one_is_acknowledged_once_and_pagerduty_is_notified_and_the_audit_has_it(tmp_path: Path) -> None:
    one, pager = Scripted(), Scripted()
    configured = settings(tmp_path, {"one": one, "pager": pager})
    channels: dict[str, ChannelSettings] = {
        "one": ScriptedSettings(channel=one),
        "pager": Acknowledging(channel=pager),
    }
    async with served(configured.model_copy(update={"channels": channels}), clock=Clock()) as client:
        await post(client, webhook_of())
        await reaches(client, 1, "relay_deliveries_total", channel="pager", outcome="delivered")
        incident = (await find(client))[0]["id"]
        answer = {"id": incident, "acknowledged_by": "anonymous", "acknowledged_at": "2001-09-09T01:46:40.000Z"}
        assert await act(client, incident, "acknowledge") == (200, answer)
        assert await act(client, incident, "acknowledge") == (200, answer)
        await until(lambda: len(pager.sent) == 2)
        assert pager.sent[1].task.acknowledgement.startswith("2001-09-09T01:46:40")
        assert (pager.sent[1].task.is_repeat, len(one.sent)) == (True, 1)
        await reaches(client, 1, "relay_acknowledgements_total", via="api")
        (listed,) = await find(client)
        assert (listed["acknowledged_by"], listed["acknowledged_via"]) == ("anonymous", "api")

        nobody = {"id": incident, "acknowledged_by": None, "acknowledged_at": None}
        assert await act(client, incident, "unacknowledge") == (200, nobody)
        assert await act(client, incident, "unacknowledge") == (200, nobody)
        await post(client, webhook_of("resolved"))
        for action in ("acknowledge", "unacknowledge"):
            refused = "episode 1 is over; the incident is resolved"
            assert await act(client, incident, action) == (409, {"error": refused})
            assert await act(client, "unknown", action) == (404, {"error": "no such incident"})
        _, audit = await get(client, "/api/audit")
    assert [(each["who"], each["from"], each["action"], each["on"]) for each in audit["audit"]] == [
        ("anonymous", "127.0.0.1", "unacknowledge", incident),
        ("anonymous", "127.0.0.1", "acknowledge", incident),
    ]


async def test_who_names_an_episode_that_is_over_changes_nothing_of_the_next_one(tmp_path: Path) -> None:
    async with served(settings(tmp_path, {"one": Scripted()}), clock=Clock()) as client:
        await post(client, webhook_of())
        incident = (await find(client))[0]["id"]
        assert (await act(client, incident, "acknowledge", '{"episode": 1}'))[1]["acknowledged_by"] == "anonymous"
        await post(client, webhook_of("resolved"))
        over = {"error": "episode 1 is over; the incident is resolved"}
        assert await act(client, incident, "unacknowledge", '{"episode": 1}') == (409, over)
        await post(client, webhook_of())
        newer = {"error": "episode 1 is over; the incident fires again as episode 2"}
        assert await act(client, incident, "acknowledge", '{"episode": 1}') == (409, newer)
        assert (await find(client))[0]["acknowledged_by"] is None
        assert (await act(client, incident, "acknowledge", '{"episode": 2}'))[0] == 200
        assert await act(client, incident, "unacknowledge", '{"episode": 1}') == (409, newer)
        assert (await find(client))[0]["acknowledged_by"] == "anonymous"
        missing = {"error": "the incident has no episode 3; its last one is 2"}
        assert await act(client, incident, "unacknowledge", '{"episode": 3}') == (404, missing)
        for body in (
            '{"episode": "1"}',
            '{"episode": 0}',
            '{"episode": true}',
            '{"epsiode": 1}',
            "1",
        ):
            assert (await act(client, incident, "unacknowledge", body))[0] == 400, body
        assert (await act(client, incident, "unacknowledge", "{" + " " * 5000))[0] == 413
        assert (await find(client))[0]["acknowledged_by"] == "anonymous"
        assert (await act(client, incident, "unacknowledge", "{}"))[0] == 200  # the current one, as without a body


async def test_what_nobody_acknowledges_goes_on_across_a_restart_and_a_reload(tmp_path: Path) -> None:
    one, two, three, clock = Scripted(), Scripted(), Scripted(), Clock()
    channels = {"one": one, "two": two, "three": three}
    routes = [{"channels": ["one"], "escalate": STEPS}]
    configured = settings(tmp_path, channels, default_channels=["one"], routes=routes)
    async with served(configured, clock=clock) as client:
        await post(client, webhook_of())
        await reaches(client, 1, "relay_deliveries_total", channel="one", outcome="delivered")
    clock.now += 601
    async with served(configured, clock=clock) as client:
        await until(lambda: len(two.sent) == 1)
        assert two.sent[0].task.remark == "Escalated: nobody acknowledged it within 10 min."
        assert two.sent[0].task.context.escalated_to == ("two",)
        await reaches(client, 1, "relay_escalations_total", channel="two")
        clock.now += 100
        await post(client, webhook_of())  # Alertmanager's repeat
        await until(lambda: len(two.sent) == len(one.sent) == 2)
        assert not three.sent
        (incident,) = await find(client)
        assert (incident["escalated_to"], incident["channels"]) == (["two"], ["one", "two"])
        assert (await act(client, incident["id"], "acknowledge"))[0] == 200
        clock.now += 9_999
        await post(client, webhook_of("resolved"))
        await until(lambda: len(two.sent) == len(one.sent) == 3)
        assert not three.sent
        assert two.sent[2].task.context.acknowledged_by == "anonymous"
        await post(client, webhook_of())  # the next episode
        await reaches(client, 3, "relay_deliveries_total", channel="one", outcome="delivered")  # of this relay
        (incident,) = await find(client)
        assert (incident["channels"], incident["acknowledged_by"], incident["escalated_to"]) == (["one"], None, [])
        clock.now += 3_700
        await until(lambda: len(two.sent) == len(three.sent) + 3 == 4)
        assert three.sent[0].task.remark == "Escalated: nobody acknowledged it within 1 h."
