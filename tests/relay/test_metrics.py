"""The metrics of the contract: all there from the start, and the outbox's as it stands."""

import itertools
import time
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from services.relay.app import running
from services.relay.channels.channel import Reason
from tests.relay.scripted import Scripted, hang, metric, post, reaches, served, settings, webhook_of


async def test_every_label_value_exists_from_the_start(tmp_path: Path) -> None:
    async with served(settings(tmp_path, {"one": Scripted(), "two": Scripted()})) as client:
        for code in ("200", "202", "400", "401", "403", "413", "503"):
            assert await metric(client, "relay_webhooks_total", code=code) == 0
        for channel in ("one", "two"):
            assert await metric(client, "relay_channel_up", channel=channel) == 1
            assert await metric(client, "relay_delivery_duration_seconds_count", channel=channel) == 0
            assert await metric(client, "relay_outbox_oldest_timestamp_seconds", channel=channel) is None
            for outcome in ("delivered", "superseded", "dead"):
                assert await metric(client, "relay_deliveries_total", channel=channel, outcome=outcome) == 0
            for reason in Reason:
                assert await metric(client, "relay_delivery_attempts_total", channel=channel, reason=reason) == 0
            for state in ("queued", "sending", "retrying", "dead"):
                assert await metric(client, "relay_outbox_deliveries", channel=channel, state=state) == 0


async def test_the_outbox_is_counted_by_channel_and_state_with_the_oldest_of_what_waits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.relay.app.GRACE_SECONDS", 0.1)
    before = time.time()
    async with served(settings(tmp_path, {"hangs": Scripted(*[hang] * 9), "works": Scripted()})) as client:
        for status, group in itertools.product(("firing", "resolved"), ("a", "b")):
            await post(client, webhook_of(status, group=group))
        await reaches(client, 2, "relay_outbox_deliveries", channel="hangs", state="sending")
        await reaches(client, 2, "relay_outbox_deliveries", channel="hangs", state="queued")
        await reaches(client, 4, "relay_deliveries_total", channel="works", outcome="delivered")
        oldest = await metric(client, "relay_outbox_oldest_timestamp_seconds", channel="hangs")
        assert oldest is not None
        assert before <= oldest <= time.time()
        assert await metric(client, "relay_outbox_oldest_timestamp_seconds", channel="works") is None


async def test_what_the_outbox_cannot_tell_is_absent_and_the_rest_is_there(tmp_path: Path) -> None:
    async with running(settings(tmp_path, {"one": Scripted()})) as app:
        pass
    text = TestClient(app).get("/metrics").text  # its outbox is closed
    assert "relay_outbox_deliveries{" not in text
    assert 'relay_channel_up{channel="one"} 1.0' in text
