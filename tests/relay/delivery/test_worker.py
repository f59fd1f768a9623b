"""Sending: order, isolation, waiting, and every way a channel can fail. Waits are short, but never guessed."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import pairwise
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry
from structlog.testing import capture_logs

from services.relay.channels.channel import Reason, Scope, SendError
from services.relay.delivery.enrich.links import LinkRules
from services.relay.delivery.retry import RetryPolicy
from services.relay.delivery.worker import LANES, Delivering, Worker
from services.relay.metrics import Metrics
from services.relay.outbox.accept import Incoming, Plan, accept
from services.relay.outbox.query import Delivery, one, recent
from services.relay.outbox.schema import State, events
from services.relay.outbox.store import Store, opened
from tests.relay.scripted import Scripted, event_of, hang, statuses, until

QUICK = RetryPolicy(backoff_initial=0.01, backoff_max=0.3, give_up_after=60)
NEARLY = 0.99
"""The wall clock says when it is due, the event loop's clock how long that was."""


class Rig:
    """Workers over a real outbox."""

    def __init__(self, store: Store, workers: dict[str, Worker], registry: CollectorRegistry) -> None:
        self.store = store
        self.workers = workers
        self.registry = registry

    async def tell(self, *statuses: str, group: str = "one") -> None:
        channels = tuple(self.workers)
        for status in statuses:
            incoming = Incoming(event_of(status, group=group), group, "", "KMSTest", b"{}")
            await accept(self.store, incoming, lambda _known, _now: Plan(1, open=True, channels=channels))
            for worker in self.workers.values():
                worker.wake()

    async def deliveries(self, channel: str = "a") -> list[Delivery]:
        return (await recent(self.store, state=None, channel=channel, limit=100))[::-1]

    async def finished(self, channel: str = "a") -> list[Delivery]:
        """The deliveries of a channel, oldest first, once all have ended."""

        async def over() -> bool:
            return all(delivery.finished_at is not None for delivery in await self.deliveries(channel))

        await until(over)
        return await self.deliveries(channel)

    def value(self, name: str, **labels: str) -> float | None:
        return self.registry.get_sample_value(name, labels)


@asynccontextmanager
async def rig(
    folder: Path, policy: RetryPolicy = QUICK, timeout: float = 10, **channels: Scripted
) -> AsyncIterator[Rig]:
    registry = CollectorRegistry()
    async with opened(folder / "relay.db", time.time) as store:
        shared = Delivering(
            store=store,
            metrics=Metrics(registry, channels, ["delivered", "dead"], Reason),
            links=LinkRules("https://docs.example.org/#{alertname_lower}", None, frozenset()),
            retry=policy,
            timeout=timeout,
            lease=20,
            owner="test",
            random=lambda: 1.0,
        )
        workers = {name: Worker(name, channel, shared) for name, channel in channels.items()}
        tasks = [asyncio.create_task(worker.run()) for worker in workers.values()]
        try:
            yield Rig(store, workers, registry)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


def broken(scope: Scope = Scope.ATTEMPT, **options: float) -> SendError:
    return SendError(Reason.SERVER_ERROR, scope, "503 from the provider", **options)


async def test_a_message_carries_the_event_and_its_links(tmp_path: Path) -> None:
    channel = Scripted()
    async with rig(tmp_path, a=channel) as it:
        await it.tell("firing")
        (delivery,) = await it.finished()
    (message,) = channel.sent
    assert (message.delivery_id, message.incident_id) == (delivery.id, "one")
    assert message.event == event_of("firing")
    assert [link.runbook for link in message.links] == [event_of().alerts[0].annotations["runbook_url"]]
    assert message.accepted_at.timestamp() == pytest.approx(delivery.accepted_at, abs=1e-5)
    assert (delivery.state, delivery.receipt, delivery.reason) == (State.DELIVERED, {"number": "1"}, "ok")


async def test_the_resolve_waits_for_the_firing_that_failed_first(tmp_path: Path) -> None:
    channel = Scripted(broken(), broken(), broken())
    async with rig(tmp_path, a=channel) as it:
        await it.tell("firing", "resolved", "firing")
        assert [delivery.attempts for delivery in await it.finished()] == [4, 1, 1]
    assert statuses(message for _, message in channel.tried) == ["firing"] * 4 + ["resolved", "firing"]
    assert len({message.delivery_id for message in channel.sent}) == 3


async def test_one_incident_is_told_one_message_at_a_time_and_many_incidents_a_few_at_a_time(tmp_path: Path) -> None:
    async def slow() -> None:
        await asyncio.sleep(0.05)

    one_incident, many = Scripted(*[slow] * 5), Scripted(*[slow] * 20)
    async with rig(tmp_path, a=one_incident) as it:
        await it.tell(*["firing", "resolved"] * 2, "firing")
        await it.finished()
    assert one_incident.most_under_way == 1
    (tmp_path / "many").mkdir()
    async with rig(tmp_path / "many", a=many) as it:
        for number in range(20):
            await it.tell("firing", group=str(number))
        await it.finished()
    assert many.most_under_way == LANES


async def test_a_channel_that_hangs_delays_no_other(tmp_path: Path) -> None:
    hanging, healthy = Scripted(*[hang] * 100), Scripted()
    async with rig(tmp_path, timeout=60, a=hanging, b=healthy) as it:
        for number in range(20):
            await it.tell("firing", group=str(number))
        done = await it.finished("b")
        assert (hanging.under_way, len(hanging.tried)) == (LANES, LANES)  # still in its first sends
    assert len(healthy.sent) == 20
    assert all(delivery.state is State.DELIVERED for delivery in done)


async def test_a_send_without_an_answer_ends_at_its_time_out_and_is_tried_again(tmp_path: Path) -> None:
    channel = Scripted(hang)
    async with rig(tmp_path, timeout=0.2, a=channel) as it:
        await it.tell("firing")
        await it.finished()
        assert it.value("relay_delivery_attempts_total", channel="a", reason="timeout") == 1
        assert it.value("relay_delivery_attempts_total", channel="a", reason="ok") == 1
    (first, _), (second, _) = channel.tried
    assert second - first >= 0.2 * NEARLY


async def test_retry_after_is_obeyed_and_delays_no_other_channel(tmp_path: Path) -> None:
    limited, other = Scripted(broken(retry_after=1)), Scripted()
    async with rig(tmp_path, a=limited, b=other) as it:
        await it.tell("firing")
        await it.finished("b")
        assert limited.sent == []
        await it.finished("a")
    (first, _), (second, _) = limited.tried
    assert second - first >= 1 * NEARLY


async def test_an_error_of_the_message_ends_it_and_the_next_goes_out(tmp_path: Path) -> None:
    channel = Scripted(SendError(Reason.REJECTED, Scope.MESSAGE, "invalid_blocks"))
    async with rig(tmp_path, a=channel) as it:
        await it.tell("firing", "resolved")
        first, second = await it.finished()
        assert (first.state, first.reason, first.attempts) == (State.DEAD, "rejected", 1)
        assert second.state is State.DELIVERED
        assert it.value("relay_deliveries_total", channel="a", outcome="dead") == 1
        assert it.value("relay_channel_up", channel="a") == 1


async def test_an_error_of_the_channel_waits_for_a_person_and_loses_nothing(tmp_path: Path) -> None:
    revoked = [SendError(Reason.UNAUTHORIZED, Scope.CHANNEL, "token_revoked") for _ in range(3)]
    channel = Scripted(*revoked)
    async with rig(tmp_path, a=channel) as it:
        await it.tell("firing")
        await until(lambda: len(channel.tried) == 2)
        assert it.value("relay_channel_up", channel="a") == 0
        (delivery,) = await it.finished()
        assert (delivery.state, delivery.attempts) == (State.DELIVERED, 4)
        assert it.value("relay_channel_up", channel="a") == 1
    times = [at for at, _ in channel.tried]
    assert all(later - earlier >= QUICK.backoff_max * NEARLY for earlier, later in pairwise(times))


async def test_it_is_given_up_after_its_time(tmp_path: Path) -> None:
    channel = Scripted(*[broken() for _ in range(1000)])
    async with rig(tmp_path, RetryPolicy(0.01, 0.1, 0.5), a=channel) as it:
        await it.tell("firing")
        (delivery,) = await it.finished()
    assert (delivery.state, delivery.reason) == (State.DEAD, "server_error")
    assert channel.tried[-1][0] - channel.tried[0][0] >= 0.4


async def test_a_defect_of_a_channel_is_logged_with_its_trace_and_tried_again(tmp_path: Path) -> None:
    channel = Scripted(ZeroDivisionError("xoxb-secret"))
    with capture_logs() as logs:
        async with rig(tmp_path, a=channel) as it:
            await it.tell("firing")
            (delivery,) = await it.finished()
            assert it.value("relay_delivery_attempts_total", channel="a", reason="internal") == 1
            found = await one(it.store, delivery.id)
    assert delivery.state is State.DELIVERED
    assert [entry["event"] for entry in logs if entry.get("exc_info")] == ["a defect in this channel"]
    assert found is not None
    assert found[1][0].detail == "a defect: ZeroDivisionError"  # what is stored and shown holds no text of it


async def test_an_event_that_cannot_be_read_holds_up_its_own_incident_only(tmp_path: Path) -> None:
    channel = Scripted()
    async with rig(tmp_path, RetryPolicy(0.01, 0.1, 0.5), a=channel) as it:
        for worker in it.workers.values():
            worker.stop()
        await it.tell("firing", group="bad")
        await it.store.run(lambda connection: connection.execute(events.update().values(event=b"{}")))
        await it.tell("firing", group="good")
    async with rig(tmp_path, RetryPolicy(0.01, 0.1, 0.5), a=channel) as it:
        bad, good = await it.finished()
    assert (bad.state, bad.reason) == (State.DEAD, "internal")
    assert good.state is State.DELIVERED


async def test_the_time_from_commit_to_receipt_is_measured(tmp_path: Path) -> None:
    async with rig(tmp_path, a=Scripted(broken(retry_after=0.5))) as it:
        await it.tell("firing")
        await it.finished()
        assert it.value("relay_delivery_duration_seconds_count", channel="a") == 1
        seconds = it.value("relay_delivery_duration_seconds_sum", channel="a")
    assert seconds is not None
    assert 0.5 * NEARLY <= seconds < 10
