"""Sending: order, isolation and waiting. Waits are short, but never guessed."""

import asyncio
import threading
import time
from itertools import pairwise
from pathlib import Path

import pytest

from services.relay.channels.port import Attempt, Receipt, SendError, SendReason, SendScope
from services.relay.outbox.breaker import FAILURE_THRESHOLD
from services.relay.outbox.storm import MAX_CLAIM_BYTES
from services.relay.outbox.tables import CHANNELS, DeliveryState
from tests.relay.delivery.worker_harness import LANES, NEARLY, QUICK, broken, policy_of, rig
from tests.relay.served_relay import Scripted, event_of, hang, statuses, until


async def test_a_message_contains_the_event_and_its_links(tmp_path: Path) -> None:
    channel = Scripted()
    async with rig(tmp_path, a=channel) as it:
        await it.accept_events("firing")
        (delivery,) = await it.finished()
    (message,) = channel.sent
    assert (message.task.delivery_id, message.task.incident_id) == (delivery.id, "one")
    assert message.event == event_of("firing")
    assert [link.runbook for link in message.links] == ["https://docs.example.org/#kmscryptomodenotkms"]
    assert message.task.accepted_at.timestamp() == pytest.approx(delivery.accepted_at, abs=1e-5)
    assert (delivery.state, delivery.receipt, delivery.reason) == (DeliveryState.DELIVERED, {"number": "1"}, "ok")


async def test_what_waits_is_merged_into_its_successor_and_reported_as_one(tmp_path: Path) -> None:
    started, accepted = asyncio.Event(), asyncio.Event()

    async def fail_late() -> None:
        started.set()
        await accepted.wait()
        raise broken()

    channel = Scripted(fail_late)
    async with rig(tmp_path, a=channel) as it:
        await it.accept_events("firing")
        await started.wait()
        await it.accept_events("resolved", "firing", "resolved")
        accepted.set()
        done = await it.finished()
        assert [delivery.state for delivery in done] == [DeliveryState.SUPERSEDED] * 3 + [DeliveryState.DELIVERED]
        assert {each.superseded_by for each in done[:3]} <= {each.id for each in done[1:]}
        assert it.value("relay_deliveries_total", channel="a", outcome="superseded") == 1
    assert statuses(message for _, message in channel.attempted) == ["firing", "resolved"]
    assert channel.sent[0].task.firing_undelivered  # fired and resolved, and nobody was told


async def test_every_event_is_reported_where_a_channel_merges_none(tmp_path: Path) -> None:
    channel = Scripted(broken(), broken(), broken())
    async with rig(tmp_path, every=channel) as it:
        await it.accept_events("firing", "resolved", "firing")
        assert [delivery.attempt_count for delivery in await it.finished("every")] == [4, 1, 1]
    assert statuses(message for _, message in channel.attempted) == ["firing"] * 4 + ["resolved", "firing"]
    assert len({message.task.delivery_id for message in channel.sent}) == 3


async def test_one_incident_is_reported_one_message_at_a_time_and_many_incidents_a_few_at_a_time(
    tmp_path: Path,
) -> None:
    async def slow() -> None:
        await asyncio.sleep(0.05)

    all_sent = asyncio.Event()

    async def hold() -> None:
        await all_sent.wait()

    one_incident, several = Scripted(*[slow] * 5), Scripted(*[hold] * 2 * LANES)
    async with rig(tmp_path, every=one_incident) as it:
        await it.accept_events(*["firing", "resolved"] * 2, "firing")
        await it.finished("every")
    assert one_incident.most_in_progress == 1
    (tmp_path / "many").mkdir()
    async with rig(tmp_path / "many", a=several) as it:
        for number in range(2 * LANES):
            await it.accept_events("firing", group=str(number))
        await until(lambda: several.in_progress == LANES)
        all_sent.set()
        await it.finished()
    assert several.most_in_progress == LANES


async def test_a_channel_that_hangs_delays_no_other(tmp_path: Path) -> None:
    hanging, healthy = Scripted(*[hang] * 100), Scripted()
    async with rig(tmp_path, timeout=60, a=hanging, b=healthy) as it:
        for number in range(2 * LANES):
            await it.accept_events("firing", group=str(number))
        done = await it.finished("b")
        assert (hanging.in_progress, len(hanging.attempted)) == (LANES, LANES)  # still in its first sends
    assert len(healthy.sent) == 2 * LANES
    assert all(delivery.state is DeliveryState.DELIVERED for delivery in done)


async def test_a_send_without_an_answer_ends_at_its_time_out_and_is_retried(tmp_path: Path) -> None:
    channel = Scripted(hang)
    async with rig(tmp_path, timeout=1.0, a=channel) as it:
        await it.accept_events("firing")
        await it.finished()
        assert it.value("relay_delivery_attempts_total", channel="a", reason="timeout") == 1
        assert it.value("relay_delivery_attempts_total", channel="a", reason="ok") == 1


async def test_retry_after_is_obeyed_and_delays_no_other_channel(tmp_path: Path) -> None:
    limited, other = Scripted(broken(retry_after=1)), Scripted()
    async with rig(tmp_path, a=limited, b=other) as it:
        await it.accept_events("firing")
        await it.finished("b")
        await it.finished("a")
    (first, _), (second, _) = limited.attempted
    ((elsewhere, _),) = other.attempted
    assert elsewhere < second
    assert second - first >= 1 * NEARLY


async def test_an_error_of_the_message_ends_it_and_the_next_goes_out(tmp_path: Path) -> None:
    channel = Scripted(SendError(SendReason.REJECTED, SendScope.MESSAGE, "invalid_blocks"))
    async with rig(tmp_path, a=channel) as it:
        await it.accept_events("firing")
        await it.finished()
        await it.accept_events("resolved")
        first, second = await it.finished()
        assert (first.state, first.reason, first.attempt_count) == (DeliveryState.DEAD, "rejected", 1)
        assert second.state is DeliveryState.DELIVERED
        assert it.value("relay_deliveries_total", channel="a", outcome="dead") == 1
        assert not await it.refused()


def revoked() -> SendError:
    return SendError(SendReason.UNAUTHORIZED, SendScope.CHANNEL, "token_revoked")


async def test_an_error_of_the_channel_waits_for_a_person_and_loses_nothing(tmp_path: Path) -> None:
    channel = Scripted(*[revoked() for _ in range(1000)])
    async with rig(tmp_path, a=channel) as it:
        for number in range(20):
            await it.accept_events("firing", group=str(number))
            await until(lambda: bool(channel.attempted))  # the others come to an open breaker
        await until(lambda: len(channel.attempted) > 2)
        assert await it.refused() == {"a"}
        channel.script.clear()
        done = await it.finished()
        assert {delivery.state for delivery in done} == {DeliveryState.DELIVERED}
        assert not await it.refused()
    times = [at for at, _ in channel.attempted]
    refused = len(times) - 20  # one tries for all of them
    assert refused > 2
    assert all(later - earlier >= QUICK.backoff_max * NEARLY for earlier, later in pairwise(times[: refused + 1]))


async def test_a_provider_that_cannot_be_reached_is_left_alone_for_a_while(tmp_path: Path) -> None:
    channel = Scripted(*[broken() for _ in range(200)])
    async with rig(tmp_path, policy_of(30, 300, 3600), a=channel) as it:
        for number in range(100):
            await it.accept_events("firing", group=str(number))

        async def is_left_alone() -> bool:
            states = {delivery.state for delivery in await it.deliveries()}
            return len(channel.attempted) >= 5 and DeliveryState.SENDING not in states

        await until(is_left_alone)
        assert len(channel.attempted) <= 5 + LANES  # those that were under way by then
        count = len(channel.attempted)
        await it.accept_events("firing", group="one more")
        assert len(channel.attempted) == count


async def test_a_channel_keeps_its_pace(tmp_path: Path) -> None:
    now, reads = time.time(), 0

    def clock() -> float:
        nonlocal reads
        reads += 1
        return now

    channel = Scripted()
    async with rig(tmp_path, clock=clock, rate=20.0, a=channel) as it:

        async def sends_and_waits(count: int) -> None:
            async def recorded() -> bool:
                return sum(delivery.finished_at is not None for delivery in await it.deliveries()) >= count

            await until(recorded)
            before = reads  # from now on claims alone read the clock, twice each: more of them than there are lanes
            await until(lambda: reads > before + 2 * LANES or len(channel.attempted) > count)
            assert len(channel.attempted) == count

        for number in range(130):
            await it.accept_events("firing", group=str(number))
        await sends_and_waits(100)
        now += 1
        await sends_and_waits(120)
        now += 0.5
        assert len(await it.finished()) == len(channel.attempted) == 130


async def test_it_is_given_up_after_its_time(tmp_path: Path) -> None:
    ahead = 0.0

    async def fail_late() -> None:
        nonlocal ahead
        ahead += 15
        raise broken()

    channel = Scripted(*[fail_late] * 100)
    async with rig(tmp_path, policy_of(0.01, 0.1, 60), clock=lambda: time.time() + ahead, a=channel) as it:
        await it.accept_events("firing")
        (delivery,) = await it.finished()
    assert (delivery.state, delivery.reason, delivery.attempt_count) == (DeliveryState.DEAD, "server_error", 5)


class WatchedHosts(frozenset[str]):
    """Notes which threads make links."""

    threads: set[threading.Thread]

    def __len__(self) -> int:
        self.threads.add(threading.current_thread())
        return super().__len__()


async def test_a_message_that_takes_its_time_is_made_off_the_event_loop(tmp_path: Path) -> None:
    hosts = WatchedHosts()
    hosts.threads = set()
    async with rig(tmp_path, hosts=hosts, a=Scripted()) as it:
        await it.accept_events("firing", common_annotations={"description": "x" * 100_000})
        await it.finished()
    assert hosts.threads
    assert threading.current_thread() not in hosts.threads


async def test_a_large_message_is_the_only_large_one_of_its_channel_in_progress(tmp_path: Path) -> None:
    async def slow() -> None:
        await asyncio.sleep(0.05)

    channel, other = Scripted(*[slow] * 8), Scripted(hang)
    async with rig(tmp_path, timeout=60, a=channel, b=other) as it:
        for number in range(2 * LANES):
            await it.accept_events(
                "firing", group=str(number), common_annotations={"description": "x" * MAX_CLAIM_BYTES}
            )
        await it.finished("a")  # while the other channel's hangs
        assert (other.in_progress, len(other.attempted)) == (1, 1)
    assert len(channel.sent) == 2 * LANES
    assert channel.most_in_progress == 1


class PartlyRefused(Scripted):
    async def send(self, attempt: Attempt) -> Receipt:
        return {**await super().send(attempt), "rejected_recipients": "gone@example.org (550 no such user)"}


async def test_recipients_who_are_refused_are_counted_and_in_the_receipt(tmp_path: Path) -> None:
    async with rig(tmp_path, a=PartlyRefused(), b=Scripted()) as it:
        await it.accept_events("firing")
        (delivery,) = await it.finished()
        await it.finished("b")
        assert delivery.receipt == {"number": "1", "rejected_recipients": "gone@example.org (550 no such user)"}
        assert it.value("relay_partial_deliveries_total", channel="a") == 1
        assert not it.value("relay_partial_deliveries_total", channel="b")


async def test_what_a_provider_that_works_puts_off_delays_no_other_message(tmp_path: Path) -> None:
    put_off = SendError(SendReason.SERVER_ERROR, SendScope.ATTEMPT, "one of two recipients later", provider_works=True)
    channel = Scripted(*[put_off] * (FAILURE_THRESHOLD + 1), hang)
    async with rig(tmp_path, a=channel) as it:
        await it.accept_events("firing")
        await until(lambda: len(channel.attempted) == FAILURE_THRESHOLD + 2)
        (state,) = await it.store.read(CHANNELS.fetch_all)
        assert (state.failures, state.is_down) == (0, False)
        await it.accept_events("firing", group="another")
        await until(lambda: len(channel.sent) == 1)
