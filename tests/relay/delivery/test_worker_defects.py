"""What goes on when a channel, the outbox or an event is not as it should be."""

import asyncio
import sqlite3
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import pytest
from prometheus_client import CollectorRegistry
from structlog.testing import capture_logs

from services.relay.channels.port import SendError, SendReason, SendScope
from services.relay.config import PacingSettings
from services.relay.deliveries.queries import read_delivery
from services.relay.delivery.attempt import SaveProgress, SendResult
from services.relay.delivery.task import DeliveryContext
from services.relay.delivery.worker import Worker
from services.relay.metrics import Metrics
from services.relay.outbox.store import Store, Transaction
from services.relay.outbox.tables import DeliveryState, events
from shared.sql import database_url
from tests.relay.delivery.worker_harness import QUICK, policy_of, rig
from tests.relay.served_relay import Scripted, ScriptedSettings, until

T = TypeVar("T")
I = TypeVar("I")  # noqa: E741  # an item of work


class Unclosed(Scripted):
    async def close(self) -> None:
        raise ValueError("xoxb-secret of close")


def defect() -> Exception:
    error = ValueError("Invalid header value b'Bearer xoxb-secret'")
    error.__cause__ = KeyError("xoxb-secret of the cause")
    return error


@pytest.mark.parametrize("error", [defect(), asyncio.CancelledError("xoxb-secret")])
async def test_a_defect_of_a_channel_is_logged_with_its_trace_and_no_text_of_it_and_retried(
    tmp_path: Path, error: BaseException
) -> None:
    # A library may let out a cancellation of its own: it must cost no more than any other defect.
    with capture_logs() as logs:
        async with rig(tmp_path, a=Unclosed(error)) as it:
            await it.accept_events("firing")
            (delivery,) = await it.finished()
            assert it.value("relay_delivery_attempts_total", channel="a", reason="internal") == 1
            found = await read_delivery(it.store, delivery.id)
    assert delivery.state is DeliveryState.DELIVERED
    failed, unclosed = [entry for entry in logs if entry["log_level"] == "error"]
    assert (failed["event"], failed["error"]) == ("unexpected error in the channel", type(error).__name__)
    assert (unclosed["event"], unclosed["error"]) == ("channel could not be closed", "ValueError")
    frames = failed["trace"][0]["frames"]
    assert any(frame["filename"].endswith("served_relay.py") and frame["name"] == "send" for frame in frames)
    assert found is not None
    assert found.attempts[0].detail == f"a defect: {type(error).__name__}"
    assert "xoxb-secret" not in str(logs)


async def test_a_detail_that_cannot_be_written_costs_its_unprintable_characters_only(tmp_path: Path) -> None:
    channel = Scripted(SendError(SendReason.SERVER_ERROR, SendScope.ATTEMPT, "bad \ud800 answer, ü"))
    async with rig(tmp_path, a=channel) as it:
        await it.accept_events("firing")
        (delivery,) = await it.finished()
        found = await read_delivery(it.store, delivery.id)
    assert (delivery.state, delivery.attempt_count, len(channel.attempted)) == (DeliveryState.DELIVERED, 2, 2)
    assert found is not None
    assert found.attempts[0].detail == "bad ? answer, ü"


async def test_an_ending_that_cannot_be_written_is_written_once_it_can(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shared.sql.engine.LOCK_SECONDS", 0.05)
    monkeypatch.setattr("services.relay.delivery.task.RETRY_SECONDS", 0.05)
    other = sqlite3.connect(tmp_path / "relay.db", isolation_level=None)

    async def lock() -> None:
        other.execute("BEGIN IMMEDIATE")

    channel = Scripted(lock)
    async with rig(tmp_path, a=channel) as it:
        await it.accept_events("firing")
        await until(lambda: len(channel.sent) == 1 and it.store.error is not None)
        other.execute("ROLLBACK")
        (delivery,) = await it.finished()
    other.close()
    assert (delivery.state, delivery.attempt_count, len(channel.sent)) == (DeliveryState.DELIVERED, 1, 1)


async def never(task: object, save_progress: SaveProgress) -> SendResult:
    pytest.fail(f"nothing was claimed: {task}, {save_progress}")


class ClosedStore(Store):
    """One that takes nothing, and counts how often it was asked."""

    calls = 0

    async def batch(self, do: Callable[[Transaction, Sequence[I]], Sequence[T]], item: I, size: int = 0) -> T:
        self.calls += 1
        if self.calls > 1000:
            pytest.fail("it asks without a pause")
        return await super().batch(do, item, size)


@pytest.mark.looptime
async def test_a_store_that_fails_is_asked_once_a_second(tmp_path: Path) -> None:
    store = ClosedStore(database_url.create_sqlite_url(tmp_path / "relay.db"), time.time, frozenset())
    store.close()
    shared = DeliveryContext(
        store=store,
        metrics=Metrics(CollectorRegistry(), ["a"]),
        send=never,
        channels={"a": ScriptedSettings(channel=Scripted())},
        settings=QUICK,
        pacing=PacingSettings(),
        lease_owner="test",
        random=lambda: 1.0,
        fallback_channels=(),
        wake_channels=lambda _names: None,
    )
    task = asyncio.create_task(Worker("a", shared).run())
    await asyncio.sleep(9.5)
    assert store.calls == 10
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_an_event_that_cannot_be_read_delays_its_own_incident_only(tmp_path: Path) -> None:
    channel = Scripted()
    async with rig(tmp_path, policy_of(0.01, 0.1, 0.5), a=channel) as it:
        for worker in it.workers.values():
            worker.stop()
        await it.accept_events("firing", group="bad")
        await it.store.run(lambda transaction: transaction.connection.execute(events.update().values(event=b"{}")))
        await it.accept_events("firing", group="good")
    async with rig(tmp_path, policy_of(0.01, 0.1, 0.5), a=channel) as it:
        bad, good = await it.finished()
    assert (bad.state, bad.reason) == (DeliveryState.DEAD, "internal")
    assert good.state is DeliveryState.DELIVERED
