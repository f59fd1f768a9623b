"""State that a reload must keep."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from services.relay.channels.port import SendError, SendReason, SendScope
from services.relay.outbox import fallback
from services.relay.outbox.merge import DeliveryChanges
from services.relay.outbox.store import StoreUnavailableError
from tests.relay.served_relay import Scripted, hang, reaches, settings, statuses, until, webhook_of
from tests.relay.test_reload import started

WATCHDOG = {"matchers": ["alertname=Watchdog"], "expect_every": "1s", "channels": ["one"]}


async def test_a_watchdog_that_stays_away_is_reported_however_often_the_configuration_is_reloaded(
    tmp_path: Path,
) -> None:
    one = Scripted()
    configuration = settings(tmp_path, {"one": one}, watchdogs=[WATCHDOG])
    async with started(configuration) as relay:
        while not one.sent:
            await relay.reload(configuration)
            await asyncio.sleep(0.3)
    assert one.sent[0].event.common_labels["alertname"] == "WatchdogAbsent"


@pytest.fixture
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody is waited for long."""
    monkeypatch.setattr("services.relay.delivery.worker.STOP_SECONDS", 0.1)
    monkeypatch.setattr("services.relay.delivery.worker._SWEEP_INTERVAL", 0.1)
    monkeypatch.setattr(fallback, "UNSERVED_AFTER", 0.0)


@pytest.mark.usefixtures("soon")
async def test_what_waits_for_a_channel_that_has_another_name_now_is_reported_by_those_that_stand_in(
    tmp_path: Path,
) -> None:
    old, new = Scripted(hang, hang), Scripted()
    async with started(settings(tmp_path, {"old": old})) as relay:
        for group in ("one", "two"):
            await relay.accepts("firing", group)
        await until(lambda: old.in_progress == 2)
        await relay.reload(settings(tmp_path, {"new": new}))
        await until(lambda: len(new.sent) == 2)
        await relay.accepts("resolved", "one")
        await until(lambda: len(new.sent) == 3)
    assert statuses(new.sent) == ["firing", "firing", "resolved"]
    assert {message.task.remark for message in new.sent[:2]} == {"Also sent here because channel old is down."}


@pytest.mark.usefixtures("soon")
async def test_a_webhook_whose_body_comes_during_a_reload_is_reported_although_its_channel_is_gone(
    tmp_path: Path,
) -> None:
    old, new, reloaded = Scripted(), Scripted(), asyncio.Event()

    async def body() -> AsyncIterator[bytes]:
        whole = webhook_of()
        yield whole[:100]
        await reloaded.wait()
        yield whole[100:]

    async with started(settings(tmp_path, {"old": old})) as relay:
        posting = asyncio.create_task(relay.client.post("/alerts", data=body()).__aenter__())
        await asyncio.sleep(0.2)  # its head is read by then, or else this test tries less
        await relay.reload(settings(tmp_path, {"new": new}))
        reloaded.set()
        assert (await posting).status == 202
        await until(lambda: len(new.sent) == 1)
    assert not old.sent


async def test_what_another_replica_may_be_delivering_is_left_to_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.relay.delivery.worker.STOP_SECONDS", 0.1)
    monkeypatch.setattr("services.relay.delivery.worker._SWEEP_INTERVAL", 0.05)
    new = Scripted()
    async with started(settings(tmp_path, {"old": Scripted(hang)})) as relay:
        await relay.accepts("firing")
        await relay.reload(settings(tmp_path, {"new": new}))
        await asyncio.sleep(0.5)
        assert not new.sent


@pytest.mark.parametrize("part", ["sweep", "detect_restore"])
@pytest.mark.parametrize("error", [ZeroDivisionError(), StoreUnavailableError("not allowed")])
async def test_the_sweep_goes_on_though_a_part_of_it_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: str, error: Exception
) -> None:
    monkeypatch.setattr("services.relay.delivery.worker._SWEEP_INTERVAL", 0.01)
    calls, broken = 0, False

    async def fail(*_given: object, **_named: object) -> object:
        nonlocal calls
        calls += 1
        if broken:
            raise error
        return DeliveryChanges() if part == "sweep" else False

    monkeypatch.setattr(f"services.relay.delivery.worker.{part}", fail)
    async with started(settings(tmp_path, {"one": Scripted()})):
        broken, before = True, calls
        await until(lambda: calls >= before + 3)
        broken = False


async def test_it_delivers_although_the_channels_that_were_down_cannot_be_tried_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(*_given: object) -> None:
        raise StoreUnavailableError("no answer within 7.5 s")

    monkeypatch.setattr("services.relay.delivery.worker._PAUSE", 0.01)
    monkeypatch.setattr("services.relay.delivery.worker.refresh_outdated", fail)
    one = Scripted()
    async with started(settings(tmp_path, {"one": one})) as relay:
        await relay.accepts("firing")
        await until(lambda: len(one.sent) == 1)


async def test_a_channel_that_refused_everything_is_tried_at_once_after_a_reload(tmp_path: Path) -> None:
    one = Scripted(SendError(SendReason.UNAUTHORIZED, SendScope.CHANNEL, "token_revoked"))
    configuration = settings(tmp_path, {"one": one})
    async with started(configuration) as relay:
        await relay.accepts("firing")
        await reaches(relay.client, 0, "relay_channel_up", channel="one")
        await relay.reload(configuration)  # else it would be tried after `backoff_max`, 5 minutes
        await until(lambda: len(one.sent) == 1)
