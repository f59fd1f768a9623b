"""The metrics of the contract: all there from the start, and the outbox's as it stands."""

import itertools
import json
import time
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry
from starlette.testclient import TestClient

from services.relay.app import run_relay
from services.relay.channels.port import SendError, SendReason, SendScope
from services.relay.delivery.attempt import open_local_sender
from services.relay.metrics import OutboxGauges, OutboxState
from tests.relay.served_relay import Scripted, hang, metric, post, reaches, served, settings, webhook_of


async def test_every_label_value_exists_from_the_start(tmp_path: Path) -> None:
    async with served(settings(tmp_path, {"one": Scripted(), "two": Scripted()})) as client:
        for code in ("200", "202", "400", "401", "403", "413", "500", "503"):
            assert await metric(client, "relay_webhooks_total", code=code) == 0
        for channel in ("one", "two"):
            assert await metric(client, "relay_channel_up", channel=channel) == 1
            assert await metric(client, "relay_delivery_duration_seconds_count", channel=channel) == 0
            assert await metric(client, "relay_outbox_oldest_timestamp_seconds", channel=channel) is None
            for outcome in ("delivered", "superseded", "dead"):
                assert await metric(client, "relay_deliveries_total", channel=channel, outcome=outcome) == 0
            for reason in SendReason:
                assert await metric(client, "relay_delivery_attempts_total", channel=channel, reason=reason) == 0
            for state in ("queued", "sending", "retrying", "dead"):
                assert await metric(client, "relay_outbox_deliveries", channel=channel, state=state) == 0


async def test_the_outbox_is_counted_by_channel_and_state_with_the_oldest_of_what_waits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.relay.delivery.worker.STOP_SECONDS", 0.1)
    before = time.time()
    async with served(settings(tmp_path, {"hangs": Scripted(*[hang] * 9), "works": Scripted()})) as client:
        for count, (status, group) in enumerate(itertools.product(("firing", "resolved"), ("a", "b")), 1):
            await post(client, webhook_of(status, group=group))
            await reaches(client, count, "relay_deliveries_total", channel="works", outcome="delivered")
            await reaches(
                client,
                2 if group == "b" or status == "resolved" else 1,
                "relay_outbox_deliveries",
                channel="hangs",
                state="sending",
            )
        await reaches(client, 2, "relay_outbox_deliveries", channel="hangs", state="queued")
        oldest = await metric(client, "relay_outbox_oldest_timestamp_seconds", channel="hangs")
        assert oldest is not None
        assert before <= oldest <= time.time()
        assert await metric(client, "relay_outbox_oldest_timestamp_seconds", channel="works") is None


@pytest.mark.parametrize("times", list(itertools.permutations((3.0, 4.0, 5.0))))
def test_the_oldest_of_all_that_waits_counts_whichever_state_it_is_in(times: tuple[float, ...]) -> None:
    waits = ("queued", "sending", "retrying")
    rows = [("a", state, 1, at) for state, at in zip(waits, times, strict=True)]
    registry = CollectorRegistry()
    state = OutboxState([("a", "dead", 1, 1.0), *rows], down_channels=(), watchdogs_last_seen={})
    gauges = OutboxGauges(lambda: state)
    gauges.set_configuration(["a"], ())
    registry.register(gauges)
    assert registry.get_sample_value("relay_outbox_oldest_timestamp_seconds", {"channel": "a"}) == 3.0


async def test_a_channel_that_refused_everything_is_still_down_after_a_restart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.relay.delivery.worker.STOP_SECONDS", 0.1)  # which a send that hangs takes
    revoked = Scripted(SendError(SendReason.UNAUTHORIZED, SendScope.CHANNEL, "token_revoked"), hang)
    slow = Scripted(SendError(SendReason.TIMEOUT, SendScope.ATTEMPT, "no answer", retry_after=300))
    channels = {"revoked": revoked, "slow": slow}
    async with served(settings(tmp_path, channels)) as client:
        await post(client, webhook_of())
        for name in channels:
            await reaches(client, 1, "relay_outbox_deliveries", channel=name, state="retrying")
        assert await metric(client, "relay_channel_up", channel="revoked") == 0
    async with served(settings(tmp_path, channels)) as client:
        assert await metric(client, "relay_channel_up", channel="revoked") == 0
        assert await metric(client, "relay_channel_up", channel="slow") == 1


async def test_open_incidents_are_counted_by_severity_and_by_whether_somebody_has_them(tmp_path: Path) -> None:
    async with served(settings(tmp_path, {"one": Scripted()})) as client:
        for severity in ("critical", "error", "warning", "info", "none"):
            for acknowledged in ("true", "false"):
                labels = {"severity": severity, "acknowledged": acknowledged}
                assert await metric(client, "relay_open_incidents", **labels) == 0
        for group in ("a", "b"):
            await post(client, webhook_of(group=group))
        worst = json.loads(webhook_of())["alerts"][0]["labels"]["severity"]
        await reaches(client, 2, "relay_open_incidents", severity=worst, acknowledged="false")
        async with client.get("/api/incidents") as answer:
            incidents = (await answer.json())["incidents"]
        async with client.post(f"/api/incidents/{incidents[0]['id']}/acknowledge") as answer:
            assert answer.status == 200
        assert await metric(client, "relay_open_incidents", severity=worst, acknowledged="true") == 1
        assert await metric(client, "relay_open_incidents", severity=worst, acknowledged="false") == 1
        for group in ("a", "b"):
            await post(client, webhook_of("resolved", group=group))
        for acknowledged in ("true", "false"):
            await reaches(client, 0, "relay_open_incidents", severity=worst, acknowledged=acknowledged)


async def test_what_the_outbox_does_not_know_is_absent_and_the_rest_is_there(tmp_path: Path) -> None:
    async with run_relay(settings(tmp_path, {"one": Scripted()}), open_sender=open_local_sender) as app:
        pass
    text = TestClient(app).get("/metrics").text  # its outbox is closed
    assert "relay_outbox_deliveries{" not in text
    assert 'relay_webhooks_total{code="202"} 0.0' in text
