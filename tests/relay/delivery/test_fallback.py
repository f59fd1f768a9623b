"""A channel that refuses everything: others tell what waits for it and what is accepted meanwhile, at once."""

import asyncio
import time
from pathlib import Path

import pytest

from services.relay.channels.port import SendError, SendReason, SendScope
from services.relay.delivery import worker
from services.relay.outbox.fallback import FALLBACK_STEP
from services.relay.outbox.recovery import sweep
from services.relay.outbox.store import StoreUnavailableError
from services.relay.outbox.tables import DeliveryState
from tests.relay.delivery.worker_harness import LANES, broken, policy_of, rig
from tests.relay.served_relay import Scripted, hang, until

LONG = policy_of(0.01, 300, 3600)
REMARK = "Also sent here because channel a is down."


def revoked() -> SendError:
    return SendError(SendReason.UNAUTHORIZED, SendScope.CHANNEL, "token_revoked")


def refusing(number: int = 100) -> Scripted:
    return Scripted(*[revoked() for _ in range(number)])


async def test_what_waited_and_what_comes_meanwhile_goes_to_the_fallback_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("_MAX_SLEEP", "_SECRET_CHECK_INTERVAL"):  # so that nothing is found only because somebody looks again
        monkeypatch.setattr(worker, name, 600.0)
    over = asyncio.Event()

    async def refuse_late() -> None:
        await over.wait()
        raise revoked()

    channel, other = Scripted(*[refuse_late] * 100), Scripted()
    async with rig(tmp_path, LONG, timeout=60, fallback=("a", "b"), a=channel, b=other) as it:
        groups = [str(number) for number in range((LANES + 3) * FALLBACK_STEP)]  # each ending is followed by one step
        await asyncio.gather(*(it.accept_events("firing", group=group, channels=("a",)) for group in groups))
        over.set()
        await until(lambda: len(other.sent) == len(groups), seconds=60)
        groups.append("meanwhile")
        await it.accept_events("firing", group="meanwhile", channels=("a",))
        await until(lambda: len(other.sent) == len(groups))
        assert {delivery.state for delivery in await it.finished("b")} == {DeliveryState.DELIVERED}
        assert {delivery.state for delivery in await it.deliveries("a")} <= {
            DeliveryState.QUEUED,
            DeliveryState.RETRYING,
        }
    assert {message.event.group_key for message in other.sent} == {f"{{}}:{{{group}}}" for group in groups}
    assert {message.task.remark for message in other.sent} == {REMARK}


async def test_what_waited_arrives_on_its_own_channel_when_that_takes_it_again(tmp_path: Path) -> None:
    channel, other = refusing(1), Scripted()
    async with rig(tmp_path, LONG, fallback=("b",), a=channel, b=other) as it:
        for group in "one", "two", "three":
            await it.accept_events("firing", group=group, channels=("a",))
            await until(lambda: bool(channel.attempted) and not channel.in_progress)
        await until(lambda: len(other.sent) == 3)
        channel.secret += 1
        assert {delivery.state for delivery in await it.finished()} == {DeliveryState.DELIVERED}
    assert len(other.sent) == 3


async def test_others_report_it_while_one_tries_for_all(tmp_path: Path) -> None:
    channel, other = Scripted(revoked(), hang), Scripted()
    async with rig(tmp_path, LONG, fallback=("b",), a=channel, b=other) as it:
        await it.accept_events("firing", channels=("a",))
        await until(lambda: len(other.sent) == 1)
        channel.secret += 1
        await until(lambda: channel.in_progress == 1)
        await it.accept_events("firing", group="two", channels=("a",))
        await until(lambda: len(other.sent) == 2)


async def test_a_step_that_fails_takes_no_attempt_with_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def unavailable(*_given: object) -> None:
        raise StoreUnavailableError("for now")

    monkeypatch.setattr("services.relay.delivery.worker.fall_back", unavailable)
    channel = refusing(1)
    quick = policy_of(0.01, 0.1, 3600)
    async with rig(tmp_path, quick, fallback=("b",), a=channel, b=Scripted()) as it:
        await it.accept_events("firing", channels=("a",))
        await until(lambda: len(channel.sent) == 1)  # and not only once its lease ends


async def test_what_a_clock_a_day_ahead_gave_up_goes_to_the_fallback_and_comes_back(tmp_path: Path) -> None:
    ahead = 0.0
    channel, other = Scripted(*[broken()] * 10_000), Scripted()
    day = policy_of(0.01, 0.05, 86_400)

    async with rig(tmp_path, day, clock=lambda: time.time() + ahead, fallback=("b",), a=channel, b=other) as it:
        groups = [str(number) for number in range(6)]
        for group in groups:
            await it.accept_events("firing", group=group, channels=("a",))
        await until(lambda: len(channel.attempted) > 6)
        ahead = 90_000.0
        while any(delivery.finished_at is None for delivery in await it.deliveries()):
            await sweep(it.store, day.give_up_after, ("b",), 0.3)
            await asyncio.sleep(0.02)
        assert {delivery.state for delivery in await it.deliveries()} == {DeliveryState.DEAD}
        await until(lambda: len(other.sent) == 6)
        channel.script.clear()
        ahead = 0.0
        swept = await sweep(it.store, day.give_up_after, ("b",), 0.3)
        assert swept.channels_to_wake == {"a"}
        await until(lambda: {message.task.incident_id for message in channel.sent} == set(groups))
