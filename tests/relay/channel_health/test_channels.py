"""`/api/channels` and the pages of channels: state, checks, tests and renderings, and no secret in any of them."""

import asyncio
import io
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import aiohttp
import httpx2
import pytest

from ops.demo.stand_ins.app import StandIns, run_stand_ins
from ops.demo.stand_ins.provider_faults import FaultKind, Provider, ProviderFault
from services.relay.app import run_relay
from services.relay.channels.slack.incoming_webhook import LIMITATIONS
from services.relay.config import RelaySettings
from services.relay.delivery.attempt import open_local_sender
from services.relay.preview.pages import MAX_PAYLOAD
from services.relay.preview.render import WebhookRenderer
from tests.relay.channels.examples import HUGE, NASTY, OWN_KINDS, SECRET, example
from tests.relay.console.test_api import get
from tests.relay.served_relay import TOKEN, payload, post, served, until, webhook_of

PAGES = (
    "/",
    "/channels",
    "/channels/-/render",
    "/incidents",
    "/deliveries",
    "/quarantine",
    "/routes",
    "/report",
    "/audit",
)


@pytest.fixture
async def stand_ins() -> AsyncIterator[StandIns]:
    async with run_stand_ins(
        slack_tokens=(SECRET,), slack_webhook_secrets=(SECRET,), pagerduty_keys=(SECRET,)
    ) as running:
        yield running


def build_settings(folder: Path, stand_ins: StandIns, **keys: Any) -> RelaySettings:
    """A channel of every kind, each of which has all the secrets that it may have."""
    channels: dict[str, dict[str, Any]] = {}
    for kind in OWN_KINDS:
        secret = folder / f"secret-of-{kind}"
        secret.write_text(SECRET)
        secret.chmod(0o600)
        channels[kind] = example(kind, secret, stand_ins.smtp if kind == "email" else stand_ins.http)
    proxy = folder / "proxy"
    proxy.write_text(f"http://anna:{SECRET}@127.0.0.1:1")
    proxy.chmod(0o600)
    channels["webhook"] |= {"url": f"http://127.0.0.1:1/hook/{SECRET}?token={SECRET}", "proxy_url_file": proxy}
    channels["apprise"] |= {"proxy": "http://127.0.0.1:1"}
    (folder / "token").write_text(TOKEN)
    document: dict[str, Any] = {
        "database": f"sqlite:///{folder}/relay.db",
        "environment": "staging",
        "auth": {"bearer_token_file": folder / "token"},
        "delivery": {"backoff_initial": "1h", "backoff_max": "1h"},
        "channels": channels,
        "default_channels": list(channels),
        "routes": [
            {"receiver": "kms-critical", "channels": list(channels)},
            {
                "receiver": "kms-security",
                "matchers": ['severity="warning"'],
                "channels": ["log"],
                "escalate": [{"after": "10m", "channels": ["slack"]}],
            },
        ],
    }
    return RelaySettings(**{**document, **keys})


async def act(client: aiohttp.ClientSession, channel: str, action: str) -> dict[str, Any]:
    async with client.post(f"/api/channels/{channel}/{action}") as response:
        answer: dict[str, Any] = await response.json()
        return {**answer, "status": response.status}


async def find(client: aiohttp.ClientSession, channel: str) -> dict[str, Any]:
    listed = (await get(client, "/api/channels"))[1]["channels"]
    return next(each for each in listed if each["channel"] == channel)


async def has_status(client: aiohttp.ClientSession, channel: str, status: str) -> bool:
    return bool((await find(client, channel))["status"] == status)


async def read(client: aiohttp.ClientSession, path: str) -> str:
    async with client.get(path) as response:
        return await response.text()


async def render(client: aiohttp.ClientSession, body: bytes, path: str = "") -> tuple[int, str]:
    headers = {"Content-Type": "application/x-www-form-urlencoded"}
    form = io.BytesIO(urlencode({"csrf_token": "x", "payload": body}).encode())
    async with client.post(f"/channels/-/render{path}", data=form, headers=headers) as response:
        return response.status, await response.text()


async def test_no_page_and_no_answer_has_a_secret_of_any_kind_of_channel(tmp_path: Path, stand_ins: StandIns) -> None:
    settings = build_settings(tmp_path, stand_ins)
    async with served(settings) as client:
        await post(client, payload(1))
        texts = ""
        for name in settings.channels:
            texts += str([await act(client, name, action) for action in ("check", "test")])
            texts += await read(client, f"/channels/{name}")
        for path in (*PAGES, "/api/channels", "/api/deliveries", "/api/audit"):
            texts += await read(client, path)
        assert [name for name in settings.channels if f"secret-of-{name}" not in texts] == ["log"]
        for each in (SECRET, SECRET[:8], "anna"):
            assert each not in texts
        listed = {each["channel"]: each for each in (await get(client, "/api/channels"))[1]["channels"]}
    assert listed["webhook"]["configuration"]["url"] == "http://127.0.0.1:1/[secret]"
    assert listed["slack_webhook"]["limitations"] == list(LIMITATIONS)
    for limitation in LIMITATIONS:
        assert limitation in texts
    assert listed["slack"]["used_by"] == [
        {"text": 'receiver="kms-critical"', "route": 0},
        {"text": 'receiver="kms-security", severity="warning", if nobody acknowledges within 10 min', "route": 1},
        {"text": "Default channel: what no route takes, and what a channel that is down cannot deliver", "route": None},
    ]


async def test_a_check_and_a_test_show_what_the_provider_answered_and_are_in_the_audit(
    tmp_path: Path, stand_ins: StandIns
) -> None:
    async with served(build_settings(tmp_path, stand_ins)) as client:
        before = await find(client, "slack")
        assert (before["status"], before["checks"], before["last_test"]) == ("unknown", [], None)
        checked = await act(client, "slack", "check")
        assert (checked["status"], checked["ok"]) == (200, True)
        assert [each["name"] for each in checked["results"]] == ["token_file", "bot token", "channel"]
        assert (await act(client, "slack", "check"))["status"] == 429
        tested = await act(client, "slack", "test")
        assert (tested["status"], tested["ok"]) == (200, True)
        assert [each["name"] for each in tested["results"]] == ["test message", "its resolve"]
        assert "chat.postMessage" in tested["results"][0]["detail"]
        assert len(stand_ins.slack.channels["#security-critical"].messages) == 2
        async with client.post("/api/channels/slack/test") as refused:
            assert refused.status == 429
            assert 0 < int(refused.headers["Retry-After"]) <= 30
            assert "there was a test just now; try again in" in (await refused.json())["error"]

        stand_ins.faults.add(ProviderFault(provider=Provider.PAGERDUTY, kind=FaultKind.STATUS, status=500))
        failed = await act(client, "pagerduty", "test")
        assert (failed["status"], failed["ok"]) == (200, False)
        (result,) = failed["results"]
        assert (result["name"], result["outcome"]) == ("test message", "failed")
        assert "PagerDuty answered HTTP 500" in result["detail"]
        assert result["hint"] == "correct `url`, or leave it out"
        after = await find(client, "slack")
        assert (after["status"], after["summary"], after["checks"][0]["ok"]) == ("healthy", "Up.", True)
        assert after["last_test"]["requested_by"] == "anonymous"
        failing = await find(client, "pagerduty")
        assert (failing["status"], failing["hint"]) == ("degraded", "Correct `url`, or leave it out.")
        assert failing["summary"].startswith("Its test failed: server error: PagerDuty answered HTTP 500")
        assert (await find(client, "log"))["summary"] == "Nothing was sent yet."
        assert (await act(client, "nobody", "test"))["status"] == 404
        async with client.post("/channels/log/test", allow_redirects=False) as done:
            assert (done.status, done.headers["location"]) == (303, "/channels/log")
        assert "written" in await read(client, "/channels/log")
        assert (await find(client, "log"))["summary"] == "Up."
        assert "last test arrived" in await read(client, "/")
        async with client.get("/channels/nobody") as missing:
            assert missing.status == 404
        _, audit = await get(client, "/api/audit")
    assert [(each["action"], each["on"]) for each in reversed(audit["audit"])] == [
        ("check channel", "slack"),
        ("test channel", "slack"),
        ("test channel", "pagerduty"),
        ("test channel", "log"),
    ]


async def test_a_test_that_arrives_lets_a_channel_be_retried_that_was_down(tmp_path: Path, stand_ins: StandIns) -> None:
    revoked = ProviderFault(provider=Provider.SLACK, kind=FaultKind.ERROR, error="token_revoked")
    stand_ins.faults.add(revoked)
    async with served(build_settings(tmp_path, stand_ins, default_channels=["slack"], routes=[])) as client:
        await post(client, payload(1))
        await until(lambda: has_status(client, "slack", "failing"))
        down = await find(client, "slack")
        assert (down["is_down"], down["breaker"], down["waiting"]) == (True, "open", 1)
        assert (down["summary"], down["hint"]) == (
            "Down: its credentials are refused.",
            "Put the current secret into its file.",
        )
        assert (down["last_failure"]["reason"], down["last_success"]) == ("unauthorized", None)
        assert "token_revoked" in down["last_failure"]["detail"]
        stand_ins.faults.clear()
        assert (await act(client, "slack", "test"))["ok"]
        await until(lambda: has_status(client, "slack", "healthy"))
        up = await find(client, "slack")
        assert (up["waiting"], up["delivered"], up["is_down"]) == (0, 1, False)


async def test_a_payload_is_rendered_for_every_channel_and_sent_to_nobody(tmp_path: Path, stand_ins: StandIns) -> None:
    settings = build_settings(tmp_path, stand_ins, default_channels=["log"], routes=[])
    async with served(settings) as client:
        for query in ("", "?example=resolved", "?example=several"):
            page = await read(client, f"/channels/-/render{query}")
            for name in settings.channels:
                assert f'id="rendering-{name}"' in page
            assert "could not build its message" not in page
        await post(client, webhook_of(group="chosen"))
        _, listed = await get(client, "/api/deliveries")
        event = listed["deliveries"][0]["event_id"]
        assert "group=chosen" not in await read(client, f"/channels/-/render?event={event}")
        assert "KMSCryptoModeNotKMS" in await read(client, f"/channels/-/render?event={event}")
        for query in ("?event=unknown", "?example=unknown"):
            async with client.get(f"/channels/-/render{query}") as missing:
                assert missing.status == 404

        half, whole = ([text for text in NASTY if ("\ud800" in text) is is_half] for is_half in (True, False))
        for texts in (half, whole, *([huge[:4000]] for huge in HUGE)):
            document = json.loads(payload(1))
            (alert,) = document["alerts"]
            document["alerts"] = [
                {
                    **alert,
                    "fingerprint": f"{number}",
                    "labels": {**alert["labels"], "alertname": text, "instance": text, "x": text},
                    "annotations": dict.fromkeys(("title", "summary", "description", "runbook_url"), text),
                }
                for number, text in enumerate(texts)
            ]
            body = json.dumps(document).encode("utf-8", "replace")
            status, page = await render(client, body)
            assert (status, "could not build its message" in page) == (200, False)
            assert ("expected a webhook" in page) == (texts is half)
            assert "<script>alert" not in page
            assert "<img src=x" not in page
            assert 'href="javascript:' not in page
            status, mail = await render(client, body, "/mail?channel=email")
            assert "<script" not in mail
            assert "<img src=x" not in mail

        for body, status, error in (
            (b"", 200, "expected a webhook of Alertmanager"),
            (b'{"version": "4"}', 200, "receiver"),
            (payload(1).replace(b'"firing"', b'"smoking"'), 200, "firing"),
            (b"[" * 100_000, 200, "expected a webhook"),
            (b" " * (MAX_PAYLOAD + 1), 413, "expected at most 256 KiB"),
            (b"\xff" * 3 * MAX_PAYLOAD, 413, "expected at most 256 KiB"),
        ):
            answered, page = await render(client, body)
            assert (answered, error in page) == (status, True), body[:20]
        assert (await render(client, payload(1), "/mail?channel=nobody"))[0] == 404
        async with client.post("/channels/-/render/mail?channel=email", data=b"payload=%7B") as refused:
            assert refused.status == 422
        _, audit = await get(client, "/api/audit")
    assert audit["audit"] == []
    assert not [post for channel in stand_ins.slack.channels.values() for post in channel.messages]
    assert not stand_ins.mailbox.mails
    assert not stand_ins.pagerduty.events


async def test_rendering_is_bounded_in_time_and_number(
    tmp_path: Path, stand_ins: StandIns, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = build_settings(tmp_path, stand_ins)
    async with served(settings) as client:
        monkeypatch.setattr("services.relay.preview.render._MAX_SECONDS", 0.0)
        status, page = await render(client, payload(1))
        assert (status, "it takes longer than" in page) == (503, True)
    renderer = WebhookRenderer(settings)
    monkeypatch.setattr("services.relay.preview.render._MAX_SECONDS", 10.0)
    outcomes = await asyncio.gather(*(renderer.render(payload(1)) for _ in range(6)), return_exceptions=True)
    assert [isinstance(each, Exception) for each in outcomes] == [False] * 4 + [True] * 2


async def test_a_defect_of_one_channel_hides_no_other(
    tmp_path: Path, stand_ins: StandIns, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.relay.channels.log.build_line", lambda _message: 1 / 0)
    renderer = WebhookRenderer(build_settings(tmp_path, stand_ins))
    rendered = {each.channel: each.payload is not None for each in await renderer.render(payload(1))}
    assert rendered == {**dict.fromkeys(rendered, True), "log": False}


async def test_only_who_may_act_is_offered_to(tmp_path: Path, stand_ins: StandIns) -> None:
    roles = ("viewer", "responder")
    for role in roles:
        (tmp_path / role).write_text(f"the-token-of-a-{role}")
    tokens = [{"name": role, "role": role, "file": tmp_path / role} for role in roles]
    auth = {"bearer_token_file": tmp_path / "token", "tokens": tokens}
    async with served(build_settings(tmp_path, stand_ins, auth=auth)) as client:
        for role, is_offered in (("viewer", False), ("responder", True)):
            headers = {"Authorization": f"Bearer the-token-of-a-{role}"}
            for path in ("/channels", "/channels/slack"):
                async with client.get(path, headers=headers) as response:
                    assert ('action="/channels/slack/test"' in await response.text()) is is_offered
            async with client.get("/channels/-/render", headers=headers) as response:
                assert response.status == 200


async def test_the_relay_checks_by_itself_at_its_start_and_what_a_reload_changes(
    tmp_path: Path, stand_ins: StandIns, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("_START_DELAY", "_PAUSE", "_CHANGED_MIN_AGE"):
        monkeypatch.setattr(f"services.relay.channel_health.checks.{name}", 0.0)
    settings = build_settings(tmp_path, stand_ins)
    async with run_relay(settings, open_sender=open_local_sender) as app:
        transport = httpx2.ASGITransport(app=app)
        async with httpx2.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:

            async def count_checks() -> dict[str, int]:
                listed = (await client.get("/api/channels")).json()["channels"]
                assert {check["requested_by"] for each in listed for check in each["checks"]} <= {None}
                return {each["channel"]: len(each["checks"]) for each in listed}

            async def are(expected: dict[str, int]) -> bool:
                return await count_checks() == expected

            once = {**dict.fromkeys(settings.channels, 1), "log": 0}
            await until(lambda: are(once))
            moved = settings.channels["webhook"].model_copy(update={"url": "http://127.0.0.1:2/"})
            changed = {**settings.channels, "webhook": moved}
            await app.state.apply(settings.model_copy(update={"channels": changed}))
            await until(lambda: are({**once, "webhook": 2}))
