"""The stream that keeps open pages live."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from services.relay.app import run_relay
from services.relay.console import frame as events
from services.relay.delivery.attempt import open_local_sender
from services.relay.outbox.store import Store, open_store
from shared.config.settings import Address
from shared.http.server import serve
from shared.sql import database_url
from tests.relay.login.served_login import PASSWORD, build_settings, hash_password, log_in, open_relay
from tests.relay.outbox.actions import accept
from tests.relay.served_relay import Scripted, metric, payload, post, reaches, served, settings, until
from tests.stopwatch import Stopwatch

STREAMS = "relay_event_streams"


class Stream:
    """What came on one stream so far."""

    def __init__(self, response: aiohttp.ClientResponse) -> None:
        self.response = response
        self.events: list[str] = []
        self.has_ended = False

    async def read(self) -> None:
        async for line in self.response.content:
            if line.startswith(b"event: "):
                self.events.append(line.decode().removeprefix("event: ").strip())
        self.has_ended = True


@asynccontextmanager
async def stream(client: aiohttp.ClientSession) -> AsyncIterator[Stream]:
    async with client.get("/events") as response:
        assert response.status == 200, await response.text()
        assert response.headers["content-type"].startswith("text/event-stream")
        open_stream = Stream(response)
        reading = asyncio.create_task(open_stream.read())
        try:
            yield open_stream
        finally:
            reading.cancel()
            await asyncio.gather(reading, return_exceptions=True)


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "_POLL_SECONDS", 0.02)
    monkeypatch.setattr(events, "_MIN_INTERVAL", 0.05)
    monkeypatch.setattr(events, "_HEARTBEAT_SECONDS", 0.1)


async def test_commits_of_this_relay_and_of_others_are_noticed_and_nothing_is_polled_while_nobody_watches(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    polls = 0
    read = Store.read_change_marker

    async def count(store: Store) -> str:
        nonlocal polls
        polls += 1
        return await read(store)

    monkeypatch.setattr(Store, "read_change_marker", count)
    async with served(settings(tmp_path, {"a": Scripted()})) as client, AsyncExitStack() as viewers:
        assert (await post(client, payload(1)))[0] == 202
        assert polls == 0
        one, other = [await viewers.enter_async_context(stream(client)) for _ in range(2)]
        await reaches(client, 2, STREAMS)
        await until(lambda: "changed" in one.events and "heartbeat" in other.events)  # a page may be older than it
        before = one.events.count("changed")
        await post(client, payload(3))
        await until(lambda: one.events.count("changed") > before)
        async with events_store(tmp_path) as elsewhere:  # a command, or another replica
            await until(lambda: other.events[-2:] == ["heartbeat", "heartbeat"])
            before = other.events.count("changed")
            await accept(elsewhere, "another", "a")
            await until(lambda: other.events.count("changed") > before)
        await viewers.aclose()
        await reaches(client, 0, STREAMS)
        before = polls
        await post(client, payload(7))
        await asyncio.sleep(0.1)
        assert polls <= before + 1, "one that had begun"


@asynccontextmanager
async def events_store(folder: Path) -> AsyncIterator[Store]:
    async with open_store(database_url.create_sqlite_url(folder / "relay.db"), lambda: 0.0) as store:
        yield store


async def test_a_burst_is_few_events(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "_MIN_INTERVAL", 0.3)
    started = asyncio.get_running_loop().time()
    async with served(settings(tmp_path, {"a": Scripted()})) as client, stream(client) as viewer:
        await until(lambda: bool(viewer.events))
        for number in range(30):
            await post(client, payload(number % 7 + 1))
        await until(lambda: "changed" in viewer.events)
        seconds = asyncio.get_running_loop().time() - started
        assert viewer.events.count("changed") <= 2 + seconds / 0.3


async def test_too_many_are_refused_and_a_page_learns_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "MAX_STREAMS", 1)
    async with served(settings(tmp_path, {"a": Scripted()})) as client:
        async with stream(client):
            await reaches(client, 1, STREAMS)
            for path in ("/events", "/events?check=1"):
                async with client.get(path) as refused:
                    assert refused.status == 503
                    assert (await refused.json())["error"].startswith("1 pages are open already")
            assert await metric(client, "relay_event_streams_refused_total") == 1
        await reaches(client, 0, STREAMS)
        async with client.get("/events?check=1") as free:
            assert free.status == 204


async def test_one_caller_gets_twenty_streams_however_many_are_opened_at_once(tmp_path: Path) -> None:
    auth: dict[str, Any] = {"tokens": []}
    for name in ("ada", "ben"):
        (tmp_path / name).write_text(f"a-token-of-{name}-itself\n")
        auth["tokens"].append({"name": name, "role": "viewer", "file": tmp_path / name})
    async with served(settings(tmp_path, {"a": Scripted()}, auth=auth)) as client, AsyncExitStack() as viewers:
        ada = {"Authorization": "Bearer a-token-of-ada-itself"}
        client.headers["Authorization"] = "Bearer a-token-of-ben-itself"
        answers = await asyncio.gather(*(client.get("/events", headers=ada) for _ in range(40)))
        for answer in answers:
            viewers.callback(answer.close)
        assert sorted(answer.status for answer in answers) == [200] * 20 + [503] * 20
        refused = next(answer for answer in answers if answer.status == 503)
        assert (await refused.json())["error"].startswith("20 pages of ada are open already")
        await viewers.enter_async_context(stream(client))  # of another caller
        await viewers.aclose()
        await reaches(client, 0, STREAMS)
        async with client.get("/events", headers=ada) as answer:
            assert answer.status == 200


@pytest.mark.parametrize("by_session", [False, True])
@pytest.mark.parametrize("is_removed", [False, True])
async def test_a_stream_ends_when_its_user_of_web_yml_is_removed_or_has_another_password(
    by_session: bool, is_removed: bool, tmp_path: Path
) -> None:
    async with (
        open_relay(build_settings(tmp_path), tmp_path) as relay,
        relay.open_browser() as browser,
        serve(relay.served, Address("127.0.0.1", 0)) as address,
        aiohttp.ClientSession(f"http://{address}") as client,
    ):
        await log_in(browser, name="anna", secret=PASSWORD)
        if by_session:
            client.headers["Cookie"] = f"keypulse_session={browser.cookies['keypulse_session']}"
        else:
            client.headers["Authorization"] = aiohttp.encode_basic_auth("anna", PASSWORD)
        async with stream(client) as viewer:
            await until(lambda: "heartbeat" in viewer.events)
            relay.write_users({"ben" if is_removed else "anna": hash_password("another password")})
            await until(lambda: viewer.has_ended)
            assert "reconnect" not in viewer.events
        relay.app.state.stop()


@pytest.mark.parametrize("is_storm", [False, True])
async def test_a_stream_ends_with_its_credentials(
    is_storm: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if is_storm:

        async def read_another_one(_store: Store) -> object:
            return object()

        monkeypatch.setattr(Store, "read_change_marker", read_another_one)
    (tmp_path / "viewer").write_text("a-token-of-a-viewer\n")
    auth: dict[str, Any] = {"tokens": [{"name": "ada", "role": "viewer", "file": tmp_path / "viewer"}]}
    async with served(settings(tmp_path, {"a": Scripted()}, auth=auth)) as client:
        client.headers["Authorization"] = "Bearer a-token-of-a-viewer"
        async with stream(client) as viewer:
            await until(lambda: "heartbeat" in viewer.events)
            (tmp_path / "viewer").write_text("a-token-of-another\n")
            await until(lambda: viewer.has_ended)
        async with client.get("/events") as refused:
            assert refused.status == 401


async def test_streams_end_after_a_while_and_at_a_reload_and_a_stop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    relay = settings(tmp_path, {"a": Scripted()})
    async with run_relay(relay, open_sender=open_local_sender) as app:
        async with (
            serve(app, Address("127.0.0.1", 0)) as address,
            aiohttp.ClientSession(f"http://{address}") as client,
        ):
            async with stream(client) as reloaded:
                await until(lambda: bool(reloaded.events))
                await app.state.apply(relay)
                await until(lambda: reloaded.has_ended)
            monkeypatch.setattr(events, "_MAX_SECONDS", 0.2)
            async with stream(client) as long:
                await until(lambda: long.has_ended)
                assert long.events[-1] == "reconnect"
            monkeypatch.setattr(events, "_MAX_SECONDS", 300)
            async with stream(client) as stopped:
                await until(lambda: bool(stopped.events))
                watch = Stopwatch()
                app.state.stop()
                await until(lambda: stopped.has_ended)
                async with client.get("/events") as refused:
                    assert (refused.status, (await refused.json())["error"][:24]) == (503, "the relay is stopping; t")
        assert watch.seconds < 3, "no stream keeps the server open"


async def test_a_store_that_fails_is_a_change(tmp_path: Path) -> None:
    relay = settings(tmp_path, {"a": Scripted()})
    async with served(relay) as client, stream(client) as viewer:
        await until(lambda: viewer.events[-2:] == ["heartbeat", "heartbeat"])
        before = viewer.events.count("changed")
        (tmp_path / "relay.db").rename(tmp_path / "away.db")
        await until(lambda: viewer.events.count("changed") > before)
        (tmp_path / "away.db").rename(tmp_path / "relay.db")
