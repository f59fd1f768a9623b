"""What a reload does to a relay that delivers: nothing accepted is lost, nothing is told out of order or twice."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import aiohttp
import pytest
from starlette.applications import Starlette

from services.relay.app import run_relay
from services.relay.channels.port import Channel
from services.relay.config import RelaySettings
from services.relay.delivery.attempt import open_local_sender
from shared.config.settings import Address
from shared.http.server import serve
from tests.relay.served_relay import (
    TOKEN,
    Scripted,
    ScriptedSettings,
    hang,
    metric,
    post,
    reaches,
    settings,
    statuses,
    until,
    webhook_of,
)
from tests.stopwatch import Stopwatch

LEASE = {"timeout": "60s", "lease": "2h"}


@dataclass
class Relay:
    app: Starlette
    client: aiohttp.ClientSession

    async def reload(self, settings: RelaySettings) -> None:
        await self.app.state.apply(settings)

    async def accepts(self, status: str, group: str = "one") -> dict[str, Any]:
        code, answer = await post(self.client, webhook_of(status, group=group))
        assert code == 202, answer
        return answer


@asynccontextmanager
async def started(configuration: RelaySettings) -> AsyncIterator[Relay]:
    headers = {"Authorization": f"Bearer {TOKEN}"}
    async with (
        asyncio.timeout(30),
        run_relay(configuration, open_sender=open_local_sender) as app,
        serve(app, Address("127.0.0.1", 0)) as address,
        aiohttp.ClientSession(f"http://{address}", headers=headers) as client,
    ):
        yield Relay(app, client)


async def test_other_channels_and_routes_count_from_the_reload_on(tmp_path: Path) -> None:
    old, unchanged, new = Scripted(), Scripted(), Scripted()
    async with started(settings(tmp_path, {"old": old, "kept": unchanged})) as relay:
        await relay.accepts("firing", "a")
        await until(lambda: len(old.sent) == len(unchanged.sent) == 1)
        routes = [{"matchers": ['severity="critical"'], "channels": ["new"]}]
        await relay.reload(
            settings(tmp_path, {"kept": unchanged, "new": new}, routes=routes, default_channels=["kept"])
        )
        assert old.closed
        assert (await relay.accepts("firing", "b"))["deliveries"] == 1
        await until(lambda: len(new.sent) == 1)
        assert len(unchanged.sent) == 1
        assert await metric(relay.client, "relay_deliveries_total", channel="new", outcome="dead") == 0
        assert await metric(relay.client, "relay_channel_up", channel="new") == 1
        assert await metric(relay.client, "relay_deliveries_total", channel="kept", outcome="delivered") == 1
        for name, labels in (("relay_deliveries_total", {"outcome": "delivered"}), ("relay_channel_up", {})):
            assert await metric(relay.client, name, channel="old", **labels) is None
        async with relay.client.post("/api/deliveries/retry?channel=old") as answer:
            assert answer.status == 404


async def test_the_token_of_the_new_configuration_is_the_one_that_counts(tmp_path: Path) -> None:
    (tmp_path / "other").write_text("the token of another")
    async with started(settings(tmp_path, {"one": Scripted()})) as relay:
        await relay.reload(settings(tmp_path, {"one": Scripted()}, auth={"bearer_token_file": tmp_path / "other"}))
        assert (await post(relay.client, webhook_of()))[0] == 401
        async with relay.client.get("/-/ready") as ready:
            assert ready.status == 200


async def test_what_is_being_sent_is_finished_first_and_what_comes_meanwhile_follows_in_order(tmp_path: Path) -> None:
    go_on = asyncio.Event()

    async def wait() -> None:
        await go_on.wait()

    class Follows(ScriptedSettings):
        def connect(self, timeout: float) -> Channel:
            assert old.closed
            return super().connect(timeout)

    old, new = Scripted(wait), Scripted()
    first = settings(tmp_path, {"one": old}, delivery=LEASE)
    async with started(first) as relay:
        await relay.accepts("firing")
        await until(lambda: old.in_progress == 1)
        second = first.model_copy(update={"channels": {"one": Follows(channel=new)}})
        reload = asyncio.create_task(relay.reload(second))
        await asyncio.sleep(0)
        await relay.accepts("resolved")
        await relay.accepts("firing", "another")
        assert not reload.done()
        assert not new.attempted
        go_on.set()
        await reload
        await until(lambda: len(new.sent) == 2)
    assert statuses(old.sent) == ["firing"]
    assert sorted(statuses(new.sent)) == ["firing", "resolved"]
    (resolved,) = [message for message in new.sent if message.event.status == "resolved"]
    assert resolved.task.first_receipt == {"number": "1"}  # of what the old one had sent


async def test_a_send_that_hangs_delays_no_reload_and_its_message_goes_out_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.relay.delivery.worker.STOP_SECONDS", 0.1)
    old, new = Scripted(hang), Scripted()
    async with started(settings(tmp_path, {"one": old}, delivery=LEASE)) as relay:
        await relay.accepts("firing")
        await until(lambda: old.in_progress == 1)
        await relay.reload(settings(tmp_path, {"one": new}, delivery=LEASE))
        await until(lambda: len(new.sent) == 1)  # and not in two hours
        assert old.closed


async def test_a_reload_that_a_stop_cancels_gives_up_its_grace_and_leaves_nothing_behind(tmp_path: Path) -> None:
    old, new = Scripted(hang), Scripted()
    before = asyncio.all_tasks()
    async with started(settings(tmp_path, {"one": old}, delivery=LEASE)) as relay:
        await relay.accepts("firing")
        await until(lambda: old.in_progress == 1)
        reload = asyncio.create_task(relay.reload(settings(tmp_path, {"one": new}, delivery=LEASE)))
        await until(lambda: "sweeper" not in {task.get_name() for task in asyncio.all_tasks()})  # its grace has begun
        watch = Stopwatch()
        reload.cancel()
        await asyncio.wait([reload])
        assert watch.seconds < 3, "the grace is 6 s"
        assert reload.cancelled()
        assert (old.closed, old.in_progress, new.attempted) == (True, 0, [])
    assert {task for task in asyncio.all_tasks() - before if "deliver" in task.get_name()} == set()
    async with started(settings(tmp_path, {"one": new}, delivery=LEASE)):
        await until(lambda: len(new.sent) == 1)  # its claim was given back


class Unstartable(ScriptedSettings):
    def connect(self, timeout: float) -> Channel:  # noqa: ARG002  # the port's
        raise OSError("no such thing")


async def test_where_the_new_one_cannot_start_the_old_one_delivers_again(tmp_path: Path) -> None:
    channel = Scripted()
    good = settings(tmp_path, {"one": channel})
    bad = good.model_copy(update={"channels": {"two": Unstartable(channel=channel)}})
    async with started(good) as relay:
        with pytest.raises(OSError, match="no such thing"):
            await relay.reload(bad)
        await relay.accepts("firing")
        await until(lambda: len(channel.sent) == 1)
        async with relay.client.get("/-/ready") as ready:
            assert ready.status == 200
        assert await metric(relay.client, "relay_deliveries_total", channel="two", outcome="dead") is None
        await reaches(relay.client, 1, "relay_deliveries_total", channel="one", outcome="delivered")


async def test_where_not_even_the_old_one_starts_again_it_is_not_ready_and_still_accepts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    channel = Scripted()
    configuration = settings(tmp_path, {"one": channel})
    async with started(configuration) as relay:
        monkeypatch.setattr(ScriptedSettings, "connect", Unstartable.connect)
        with pytest.raises(OSError, match="no such thing"):
            await relay.reload(configuration)
        async with relay.client.get("/-/ready") as ready:
            assert (ready.status, "restart" in await ready.text()) == (503, True)
        await relay.accepts("firing")
    monkeypatch.undo()
    async with started(configuration):
        await until(lambda: len(channel.sent) == 1)


async def test_whether_a_channel_gets_every_event_follows_the_reload(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.relay.delivery.worker.STOP_SECONDS", 0.1)

    class Alone(ScriptedSettings):
        merges_waiting: ClassVar[bool] = False

    alone, first = Scripted(), settings(tmp_path, {"one": Scripted()})
    async with started(first) as relay:
        await relay.reload(first.model_copy(update={"channels": {"one": Alone(channel=Scripted(hang))}}))
        for status in ("firing", "resolved", "firing"):
            await relay.accepts(status)
        await relay.reload(first.model_copy(update={"channels": {"one": Alone(channel=alone)}}))
        await until(lambda: len(alone.sent) == 3)
    assert statuses(alone.sent) == ["firing", "resolved", "firing"]
