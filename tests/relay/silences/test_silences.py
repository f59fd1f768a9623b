"""A silence by a button, in a real Alertmanager: only by those who may, one for any number of presses, and audited."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from ops.demo.stand_ins.app import StandIns
from ops.demo.stand_ins.provider_faults import FaultKind, Provider, ProviderFault
from services.relay.model import build_incident_id
from services.relay.outbox.store import open_store
from services.relay.silences import store as silence_store
from services.relay.silences import worker as silence_worker
from services.relay.silences.store import SilenceRequest, request_silence
from services.relay.text import sort_labels
from shared.sql.database_url import DatabaseUrl
from tests.ops.conftest import Start
from tests.relay.acknowledgement.pressed_relay import (
    ANNA,
    BEN,
    CRITICAL,
    GUEST,
    PressedRelay,
    build_settings,
    open_relay,
)
from tests.relay.served_relay import Scripted, event_of, metric, post, served, settings, until, webhook_of
from tests.sites import serve_site

ALLOWED = {"allow_users": [ANNA], "allow_groups": ["S0000000002"], "max": "2h"}  # anna, ben and the guest
SHARED = dict(event_of().common_labels)


class Peer:
    """An Alertmanager behind a proxy that can lose answers."""

    def __init__(self, url: str, http: aiohttp.ClientSession) -> None:
        self.upstream = url
        self.url = ""
        self.lost_answers = 0
        self.before_loss: Callable[[], Awaitable[None]] | None = None
        """What happens while the answer is on its way."""
        self.posts = 0
        self._http = http

    async def handle(self, request: web.Request) -> web.Response:
        is_new = request.method == "POST"
        self.posts += is_new
        async with self._http.request(
            request.method,
            self.upstream + request.path_qs,
            data=await request.read(),
            headers={"Content-Type": "application/json"},
        ) as answer:
            body = await answer.read()
            if is_new and self.lost_answers:
                self.lost_answers -= 1
                if self.before_loss is not None:
                    await self.before_loss()
                assert request.transport is not None
                request.transport.close()
            return web.Response(body=body, status=answer.status, content_type="application/json")

    async def silences(self) -> list[dict[str, Any]]:
        async with self._http.get(f"{self.upstream}/api/v2/silences") as answer:
            return [each for each in await answer.json() if each["status"]["state"] == "active"]

    async def list_muted(self) -> set[str]:
        """The severities of the alerts that it has and does not send."""
        async with self._http.get(f"{self.upstream}/api/v2/alerts") as answer:
            alerts = await answer.json()
        return {each["labels"]["severity"] for each in alerts if each["status"]["state"] == "suppressed"}

    async def fire(self, **labels: str) -> None:
        ends = (datetime.now(UTC) + timedelta(hours=1)).isoformat()
        alerts = [{"labels": {**SHARED, "target": "ledger-kek", **labels}, "endsAt": ends}]
        async with self._http.post(f"{self.upstream}/api/v2/alerts", json=alerts) as answer:
            assert answer.status == 200, await answer.text()


@pytest.fixture
async def peer(start: Start, tmp_path: Path) -> AsyncIterator[Peer]:
    configuration = {"route": {"receiver": "none"}, "receivers": [{"name": "none"}]}
    (tmp_path / "alertmanager.yml").write_text(json.dumps(configuration))
    url = await start(
        "prometheus-alertmanager",
        f"--config.file={tmp_path}/alertmanager.yml",
        f"--storage.path={tmp_path}/alertmanager",
        "--web.listen-address=127.0.0.1:0",
        "--cluster.listen-address=",
    )
    async with aiohttp.ClientSession() as http:
        peer = Peer(url, http)
        async with serve_site(web.route("*", "/{path:.*}", peer.handle)) as peer.url:
            yield peer


@asynccontextmanager
async def silencing(
    folder: Path, stand_ins: StandIns, peer: Peer, database: DatabaseUrl | None = None, **rules: Any
) -> AsyncIterator[PressedRelay]:
    keys: dict[str, Any] = {"interactive": {"silence": {**ALLOWED, **rules}}, "alertmanager": {"urls": [peer.url]}}
    async with open_relay(build_settings(folder, stand_ins, database, **keys), stand_ins) as relay:
        yield relay


def format_matcher(label: tuple[str, str]) -> str:
    return f'{label[0]}="{label[1]}"'


def describe_group(*labels: dict[str, str]) -> dict[str, Any]:
    """What a webhook has of a group with these alerts."""
    (alert,) = json.loads(webhook_of())["alerts"]
    shared = dict(set.intersection(*(set(each.items()) for each in labels)))
    alerts = [{**alert, "labels": each, "fingerprint": str(number)} for number, each in enumerate(labels)]
    return {"commonLabels": shared, "alerts": alerts}


def list_buttons(stand_ins: StandIns) -> list[dict[str, Any]]:
    """Of all messages in the channel."""
    blocks = [block for each in stand_ins.slack.channels[CRITICAL].messages for block in each.blocks]
    return [element for block in blocks for element in block.get("elements", []) if element["type"] == "button"]


def thread(stand_ins: StandIns) -> list[str]:
    return [each.text for each in stand_ins.slack.channels[CRITICAL].messages if each.thread_ts and not each.blocks]


async def test_several_presses_of_those_who_may_create_one_silence_of_what_they_share(
    tmp_path: Path, stand_ins: StandIns, peer: Peer
) -> None:
    await peer.fire()
    async with silencing(tmp_path, stand_ins, peer) as relay:
        message = await relay.fire()
        await asyncio.gather(*(relay.press(message, "silence", user) for user in (ANNA, ANNA, BEN)))
        await until(lambda: len(relay.replies) == 2)
        await until(lambda: len(thread(stand_ins)) == 1)
        (silence,) = await peer.silences()
        assert {each["name"]: each["value"] for each in silence["matchers"]} == SHARED
        assert all(each["isEqual"] and not each["isRegex"] for each in silence["matchers"])
        name = silence["createdBy"]
        assert name in {"Anna Adler", "Ben Baker"}
        assert silence["comment"].startswith(f"Silenced in Slack by {name} (U00000000")
        seconds = datetime.fromisoformat(silence["endsAt"]) - datetime.fromisoformat(silence["startsAt"])
        assert abs(seconds - timedelta(hours=2)) < timedelta(minutes=1)
        assert thread(stand_ins)[0].startswith(f"Silenced by {name} until 20")
        assert thread(stand_ins)[0].endswith(f" UTC: {', '.join(map(format_matcher, sort_labels(SHARED)))}.")
        assert set(relay.replies) == {f"It is silenced already, by {name}."}
        actions = await relay.list_actions()
        assert sorted(action for _, action in actions) == ["silence", "silence refused", "silence refused"]
        (row,) = [each for each in (await relay.get("/api/audit"))["audit"] if each["action"] == "silence"]
        assert row["on"].endswith(silence["id"])
        assert peer.posts == 1


async def test_a_silence_of_the_warning_does_not_mute_the_critical_one(
    tmp_path: Path, stand_ins: StandIns, peer: Peer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(silence_store, "_GOSSIP_SECONDS", 0.0)
    monkeypatch.setattr(silence_worker, "_POLL_SECONDS", 0.05)
    warning = {**SHARED, "severity": "warning"}
    await peer.fire(severity="warning")
    await peer.fire(severity="critical")
    async with silencing(tmp_path, stand_ins, peer) as relay:
        message = await relay.fire("warnings", **describe_group(warning))
        (confirm,) = [each["confirm"] for each in list_buttons(stand_ins) if each.get("action_id") == "silence"]
        assert "severity=warning" in confirm["text"]["text"]
        await relay.press(message, "silence")
        await until(lambda: len(thread(stand_ins)) == 1)
        assert 'severity="warning"' in thread(stand_ins)[0]
        assert await peer.list_muted() == {"warning"}

        # Another alert joins the incident: one more press silences what both share, and no press does so twice.
        joined = describe_group(warning, {**warning, "instance": "backend:8001"})
        assert (await post(relay.client, webhook_of(group="warnings", **joined)))[0] == 202
        await relay.press(message, "silence", BEN)
        await until(lambda: len(thread(stand_ins)) == 2)
        await relay.press(message, "silence", BEN)
        await until(lambda: relay.replies == ["It is silenced already, by Ben Baker."])
        matched = [{each["name"] for each in silence["matchers"]} for silence in await peer.silences()]
        assert sorted(matched, key=len) == [SHARED.keys() - {"instance"}, SHARED.keys()]
        assert await peer.list_muted() == {"warning"}


async def test_who_may_not_gets_the_reason_and_silences_nothing(
    tmp_path: Path, stand_ins: StandIns, peer: Peer
) -> None:
    await peer.fire()
    async with silencing(tmp_path, stand_ins, peer, allow_groups=["S0000000001"], allow_users=[GUEST]) as relay:
        message = await relay.fire()
        assert await relay.press(message, "silence", GUEST)
        await until(lambda: len(relay.replies) == 1)
        assert await relay.press(message, "silence", BEN)
        await until(lambda: len(relay.replies) == 2)
        reason = "You are not among those who may silence: `interactive.silence` of the relay names them."
        assert relay.replies == ["Guests cannot silence.", reason]
        assert await relay.list_actions() == [("gil", "silence refused"), ("ben", "silence refused")]
        await relay.resolve()
        assert await relay.press(message, "silence", ANNA)
        await until(lambda: relay.replies[2:] == ["Nothing was done: episode 1 is over; the incident is resolved."])
        assert peer.posts == 0
    async with silencing(tmp_path, stand_ins, peer, allow_groups=[], allow_users=[]) as relay:
        message = await relay.fire(episode=2)
        assert await relay.press(message, "silence", ANNA)
        await until(lambda: relay.replies[3:] == ["Silences by button are off."])
        assert await metric(relay.client, "relay_presses_total", action="silence", outcome="refused") == 1
    assert await peer.silences() == []


async def test_a_silence_whose_answer_is_lost_is_found_and_not_created_twice(
    tmp_path: Path, stand_ins: StandIns, peer: Peer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(silence_worker, "_RETRY_INITIAL", 0.05)
    monkeypatch.setattr(silence_worker, "_POLL_SECONDS", 0.05)
    await peer.fire()
    peer.lost_answers = 1
    async with silencing(tmp_path, stand_ins, peer, allow_groups=[]) as relay:
        message = await relay.fire()
        # Slack does not answer once, either: the press waits in the outbox.
        stand_ins.faults.add(
            ProviderFault(provider=Provider.SLACK, kind=FaultKind.STATUS, method="users.info", count=1)
        )
        assert await relay.press(message, "silence")
        await until(lambda: len(thread(stand_ins)) == 1)
        assert len(await peer.silences()) == 1
        assert peer.posts == 1
        assert await relay.list_actions() == [("anna", "silence")]


async def test_a_silence_whose_answer_is_lost_is_found_though_its_incident_ended_meanwhile(
    tmp_path: Path, database: DatabaseUrl, stand_ins: StandIns, peer: Peer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(silence_worker, "_POLL_SECONDS", 0.05)
    await peer.fire()
    peer.lost_answers = 1
    async with silencing(tmp_path, stand_ins, peer, database) as relay:
        message = await relay.fire()
        peer.before_loss = relay.resolve
        assert await relay.press(message, "silence")
        await until(lambda: bool(thread(stand_ins)) or bool(relay.replies))
        assert [*thread(stand_ins), *relay.replies][0].startswith("Silenced by Anna Adler until 20")
        assert len(await peer.silences()) == peer.posts == 1
        assert await relay.list_actions() == [("anna", "silence")]


async def test_a_relay_that_is_killed_leaves_its_silence_to_the_next_one(
    tmp_path: Path, stand_ins: StandIns, peer: Peer, monkeypatch: pytest.MonkeyPatch
) -> None:
    await peer.fire()
    monkeypatch.setattr(silence_worker, "LEASE_SECONDS", 0.5)
    monkeypatch.setattr(silence_worker, "_POLL_SECONDS", 0.05)
    with monkeypatch.context() as killed:
        killed.setattr(silence_worker, "finish_silence", _hang)  # it exists, and nobody has written that down
        async with silencing(tmp_path, stand_ins, peer) as relay:
            message = await relay.fire()
            assert await relay.press(message, "silence")
            await until(lambda: peer.posts == 1)
    assert thread(stand_ins) == []
    async with silencing(tmp_path, stand_ins, peer) as relay:
        await until(lambda: len(thread(stand_ins)) == 1)
        assert await relay.list_actions() == [("anna", "silence")]
    assert len(await peer.silences()) == 1
    assert peer.posts == 1


async def _hang(*_arguments: object) -> None:
    await asyncio.Event().wait()


async def test_nothing_is_silenced_where_alertmanager_has_no_such_alert(
    tmp_path: Path, stand_ins: StandIns, peer: Peer
) -> None:
    await peer.fire(alertname="Another")
    async with silencing(tmp_path, stand_ins, peer) as relay:
        message = await relay.fire()
        assert await relay.press(message, "silence")
        await until(lambda: relay.replies == ["Nothing to silence: Alertmanager has no such alert now."])
        assert await relay.press(await relay.fire(group="all", groupLabels={}), "silence")
        reason = "Its group has no labels: a silence would match alerts of other groups."
        await until(lambda: relay.replies[1:] == [reason])
    assert peer.posts == 0


async def test_two_replicas_create_one_silence(
    tmp_path: Path, stand_ins: StandIns, peer: Peer, postgres_database: DatabaseUrl
) -> None:
    await peer.fire()
    async with (
        silencing(tmp_path, stand_ins, peer, postgres_database) as one,
        silencing(tmp_path, stand_ins, peer, postgres_database),
    ):
        mode = stand_ins.socket_mode
        await until(lambda: len(mode.connections) == 2)
        message = await one.fire()
        assert await one.press(message, "silence")
        await asyncio.gather(*(mode.send(each, mode.presses[0]) for each in mode.connections))
        assert await one.press(message, "silence", BEN)
        await until(lambda: len(one.replies) == 1)
        await until(lambda: len(thread(stand_ins)) == 1)
    assert len(await peer.silences()) == 1
    assert peer.posts == 1


async def test_the_answer_in_the_thread_takes_a_token_of_the_channels_rate(
    tmp_path: Path, stand_ins: StandIns, peer: Peer, monkeypatch: pytest.MonkeyPatch
) -> None:
    await peer.fire()
    monkeypatch.setattr(silence_worker, "_POLL_SECONDS", 0.05)
    waits, requested = [0.02, 0.0], []

    def take_token(_transaction: object, channel: str, rate: float | None) -> float:
        requested.append((channel, rate))
        assert thread(stand_ins) == []
        return waits.pop(0)

    monkeypatch.setattr(silence_worker, "take_token", take_token)
    async with silencing(tmp_path, stand_ins, peer) as relay:
        assert await relay.press(await relay.fire(), "silence")
        await until(lambda: len(thread(stand_ins)) == 1)
    assert requested == [("slack", 1.0)] * 2


async def test_an_admin_silences_in_the_console_without_any_button(
    tmp_path: Path, peer: Peer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(silence_worker, "_POLL_SECONDS", 0.05)
    await peer.fire()
    configured = settings(tmp_path, {"one": Scripted()}, alertmanager={"urls": [peer.url]})
    async with served(configured) as client, open_store(configured.database, time.time) as store:
        assert (await post(client, webhook_of()))[0] == 202
        incident_id = build_incident_id(event_of())
        wanted = SilenceRequest("1", incident_id, 1, "cleo", "10.0.0.1", seconds=1800.0, comment="key is replaced")
        for request in (wanted, wanted._replace(id="2")):
            assert await request_silence(store, request)

        async def read_entries() -> dict[str, str]:
            async with client.get(f"/api/incidents/{incident_id}") as answer:
                return {each["kind"]: each["text"] for each in (await answer.json())["timeline"]}

        async def has_both() -> bool:
            return {"silenced", "silence_refused"} <= (await read_entries()).keys()

        await until(has_both)
        entries = await read_entries()
        (silence,) = await peer.silences()
        async with client.get("/api/audit") as answer:
            audit = (await answer.json())["audit"]
    assert entries["silenced"].startswith("Silenced by cleo until 20")
    assert entries["silence_refused"].endswith("It is silenced already, by cleo.")
    assert silence["comment"].startswith("key is replaced Silenced in the relay's console by cleo [keypulse ")
    assert {each["name"]: each["value"] for each in silence["matchers"]} == SHARED
    seconds = datetime.fromisoformat(silence["endsAt"]) - datetime.fromisoformat(silence["startsAt"])
    assert abs(seconds - timedelta(minutes=30)) < timedelta(minutes=1)
    assert sorted((each["who"], each["from"], each["action"]) for each in audit) == [
        ("cleo", "10.0.0.1", "silence"),
        ("cleo", "10.0.0.1", "silence refused"),
    ]
