"""The whole journey over real HTTP and a real SQLite file, and what a start and a stop do."""

import asyncio
import json
import sqlite3
import time
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from services.relay.app import run_relay
from services.relay.channels.port import SendError, SendReason, SendScope
from services.relay.delivery.attempt import open_local_sender
from services.relay.delivery.worker import run_delivery
from services.relay.metrics import Metrics
from services.relay.outbox.store import open_store
from shared.http.server import StartError, create_registry
from tests.relay.outbox.store_jobs import blocked
from tests.relay.served_relay import (
    PAYLOADS,
    Scripted,
    hang,
    metric,
    payload,
    post,
    reaches,
    served,
    settings,
    statuses,
    until,
    webhook_of,
)
from tests.stopwatch import Stopwatch

REPEATS = {"02-firing-1.json", "06-firing-1.json", "08-firing-1.json"}


async def test_every_webhook_of_a_real_alertmanager_is_reported_on_every_channel(tmp_path: Path) -> None:
    one, two = Scripted(), Scripted()
    async with served(settings(tmp_path, {"one": one, "two": two})) as client:
        expected = 0
        for file in PAYLOADS:
            code, answer = await post(client, file.read_bytes())
            repeat = file.name in REPEATS
            assert (code, answer["duplicate"], answer["deliveries"]) == (200 if repeat else 202, repeat, 2), file.name
            expected += not repeat
            await _wait_until_sent(expected, one, two)  # else it may be merged into the next one of its group
        assert await metric(client, "relay_webhooks_total", code="202") == expected
        assert await metric(client, "relay_webhooks_total", code="200") == len(REPEATS)
        await reaches(client, expected, "relay_deliveries_total", channel="one", outcome="delivered")
    assert "бекенд-é-漢字:8000" in {message.event.alerts[0].labels.get("instance") for message in one.sent}
    long = next(m for m in one.sent if m.event.common_labels["alertname"] == "KMSDecryptionErrorsBurst")
    assert len(long.event.alerts[0].annotations["description"]) == 12_800
    assert [m.event.truncated_alerts for m in one.sent if m.event.truncated_alerts] == [7]
    assert one.closed
    assert two.closed


async def _wait_until_sent(count: int, *channels: Scripted) -> None:
    await until(lambda: all(len(channel.sent) == count for channel in channels))


async def test_what_is_answered_202_is_in_the_file_already(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("services.relay.delivery.worker.STOP_SECONDS", 0.1)
    body = webhook_of(notification_reason="first notification")
    async with served(settings(tmp_path, {"one": Scripted(hang)})) as client:
        code, answer = await post(client, body)
        assert code == 202
        with sqlite3.connect(tmp_path / "relay.db") as other:
            rows = other.execute("SELECT e.id, body, channel FROM events e JOIN deliveries d ON d.event_seq = e.seq")
            assert rows.fetchall() == [(answer["event_id"], body, "one")]  # with the field that no version knows
        other.close()


async def test_a_repeat_is_a_new_event_where_the_first_was_given_up(tmp_path: Path) -> None:
    channel = Scripted(SendError(SendReason.REJECTED, SendScope.MESSAGE, "invalid_blocks"))
    async with served(settings(tmp_path, {"one": channel})) as client:
        await post(client, payload(1))
        await until(lambda: len(channel.attempted) == 1)
        await reaches(client, 1, "relay_outbox_deliveries", channel="one", state="dead")
        assert (await post(client, payload(2)))[0] == 202
        await until(lambda: len(channel.sent) == 1)


async def test_a_further_event_reaches_the_channels_on_which_the_incident_is_open(tmp_path: Path) -> None:
    critical, other = Scripted(), Scripted()
    routes = [{"matchers": ["severity=critical"], "channels": ["critical"]}]
    configuration = settings(
        tmp_path, {"critical": critical, "other": other}, routes=routes, default_channels=["other"]
    )
    resolved = json.loads(webhook_of("resolved"))
    resolved["alerts"][0]["labels"]["severity"] = "warning"
    async with served(configuration) as client:
        await post(client, webhook_of("firing"))
        await _wait_until_sent(1, critical)  # else the next one takes its place
        assert (await post(client, json.dumps(resolved).encode()))[1]["deliveries"] == 2
        await until(lambda: len(critical.sent) == 2 and len(other.sent) == 1)
        # Once it is over, the routes alone decide.
        assert (await post(client, webhook_of("firing")))[1]["deliveries"] == 1
        await until(lambda: len(critical.sent) == 3)
    assert statuses(critical.sent) == ["firing", "resolved", "firing"]
    assert [message.task.episode for message in critical.sent] == [1, 1, 2]
    assert [message.task.first_receipt for message in critical.sent] == [None, {"number": "1"}, None]
    assert len({message.task.incident_id for message in critical.sent}) == 1


async def test_a_stop_finishes_what_is_in_progress_and_refuses_the_rest(tmp_path: Path) -> None:
    go_on = asyncio.Event()

    async def wait() -> None:
        await go_on.wait()

    channel = Scripted(wait)
    async with served(settings(tmp_path, {"one": channel})) as client:
        await post(client, webhook_of("firing"))
        await until(lambda: channel.in_progress == 1)  # else the next one takes its place
        await post(client, webhook_of("resolved"))
        asyncio.get_running_loop().call_later(0.2, go_on.set)
    assert statuses(channel.sent) == ["firing"]
    assert channel.closed
    async with served(settings(tmp_path, {"one": channel})):
        await until(lambda: len(channel.sent) == 2)
    assert statuses(channel.sent) == ["firing", "resolved"]


async def test_a_channel_that_does_not_close_delays_no_stop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Endless(Scripted):
        async def close(self) -> None:
            await hang()

    monkeypatch.setattr("services.relay.delivery.attempt._CLOSE_SECONDS", 0.1)
    with capture_logs() as logs:
        async with (
            asyncio.timeout(10),
            run_relay(settings(tmp_path, {"one": Endless()}), open_sender=open_local_sender),
        ):
            pass
    assert [entry["error"] for entry in logs if entry["event"] == "channel could not be closed"] == ["TimeoutError"]


async def test_an_outbox_that_hangs_delays_no_stop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("services.relay.delivery.worker.STOP_SECONDS", 0.1)
    configuration = settings(tmp_path, {"one": Scripted()})
    metrics = Metrics(create_registry(), configuration.channels)
    with capture_logs() as logs:
        async with open_store(configuration.database, time.time) as store, AsyncExitStack() as stack:
            await stack.enter_async_context(run_delivery(configuration, store, metrics, open_local_sender))
            async with blocked(store):
                watch = Stopwatch()
                await stack.aclose()
                assert watch.seconds < 3
    (line,) = [
        entry for entry in logs if entry["event"] == "leases could not be released at stop; they expire by themselves"
    ]
    assert line["error"] == "the outbox does not answer"


async def test_what_waits_for_a_channel_that_is_gone_is_reported_at_the_start_and_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.relay.delivery.worker.STOP_SECONDS", 0.1)
    old, new = Scripted(hang), Scripted()
    async with served(settings(tmp_path, {"old": old, "new": new})) as client:
        await post(client, payload(1))
        await until(lambda: len(new.sent) == 1)
    with capture_logs() as logs:
        async with served(settings(tmp_path, {"new": new})) as client:
            assert await metric(client, "relay_outbox_deliveries", channel="old", state="queued") == 1
            assert (await post(client, payload(3)))[1]["deliveries"] == 1  # the gone channel gets nothing new
    assert [entry["channel"] for entry in logs if "not configured" in entry["event"]] == ["old"]
    async with served(settings(tmp_path, {"old": old, "new": new})):
        await until(lambda: len(old.sent) == 1)


async def test_nobody_else_on_the_machine_may_read_the_outbox(tmp_path: Path) -> None:
    async with served(settings(tmp_path, {"one": Scripted()})) as client:
        await post(client, payload(1))
        modes = await asyncio.to_thread(
            lambda: {file.name: file.stat().st_mode & 0o777 for file in tmp_path.glob("relay.db*")}
        )
    assert modes == dict.fromkeys(("relay.db", "relay.db-wal", "relay.db-shm", "relay.db-last-used"), 0o600)


@pytest.mark.parametrize(
    ("prepare", "expected"),
    [
        (lambda file: file.parent.rmdir(), "does not exist; run: mkdir -p"),
        (lambda file: file.write_bytes(b"no database" * 1000), "file is not a database; correct `database`"),
        (lambda file: file.mkdir(), "unable to open database file"),
    ],
    ids=["folder missing", "not a database", "a folder"],
)
async def test_a_database_that_cannot_be_used_is_reported_in_one_sentence(
    tmp_path: Path, prepare: object, expected: str
) -> None:
    (tmp_path / "data").mkdir()
    file = tmp_path / "data" / "relay.db"
    assert callable(prepare)
    prepare(file)
    with pytest.raises(StartError, match=expected) as raised:
        async with run_relay(
            settings(tmp_path, {"one": Scripted()}, database=f"sqlite:///{file}"), open_sender=open_local_sender
        ):
            pass
    assert str(file.parent) in str(raised.value)
    assert "\n" not in str(raised.value)
