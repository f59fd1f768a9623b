"""What no channel of its route takes for two minutes goes to the fallback and to the next step, whatever the reason."""

import sqlite3
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from services.relay.config import RelaySettings
from tests.relay.channels.conftest import Answering
from tests.relay.channels.kinds import unused_address
from tests.relay.console.test_api import Clock, get
from tests.relay.served_relay import TOKEN, hang, post, served, until, webhook_of

NAMES = ("slack", "second", "email", "lead", "boss")


class Played:
    """A relay whose channels post to servers, and whose clock goes on when a test says so."""

    def __init__(self, client: aiohttp.ClientSession, clock: Clock, file: Path, taken: dict[str, list[str]]) -> None:
        self.client = client
        self.taken = taken
        self._clock = clock
        self._file = file

    async def let_pass(self, seconds: float) -> None:
        """In steps that no relay calls an absence; each is swept."""
        for _ in range(round(seconds / 30)):
            self._clock.now += 30.0
            await until(self._is_swept)

    def _is_swept(self) -> bool:
        with closing(sqlite3.connect(self._file)) as connection:
            (served_at,) = connection.execute("SELECT min(served_at) FROM channels").fetchone()
        return bool(served_at >= self._clock.now)

    def counts(self) -> dict[str, int]:
        return {name: len(remarks) for name, remarks in self.taken.items() if remarks}


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("services.relay.monitors.supervisor._ESCALATION_INTERVAL", 0.02)
    monkeypatch.setattr("services.relay.delivery.worker._SWEEP_INTERVAL", 0.1)  # steps come first


@asynccontextmanager
async def play(
    folder: Path,
    answering: Answering,
    failing: str,
    *,
    route: Sequence[str] = ("slack",),
    fails: Sequence[str] = ("slack",),
    default: Sequence[str] = ("slack", "email"),
) -> AsyncIterator[Played]:
    taken: dict[str, list[str]] = {name: [] for name in NAMES}

    async def answer(request: web.Request) -> web.Response:
        name = request.path.strip("/")
        if not await request.read():  # the check of the channel
            return web.Response(status=204)
        if name not in fails:
            taken[name].append((await request.json())["remark"])
            return web.Response(status=204)
        if failing == "time-out":
            await hang()
        headers = {"Retry-After": "3600"} if failing == "429" else {}
        return web.Response(status=int(failing), headers=headers)

    (folder / "token").write_text(TOKEN)
    address = await answering(answer)
    steps = [{"after": "10m", "channels": ["lead"]}, {"after": "30m", "channels": ["boss"]}]
    document: dict[str, Any] = {
        "database": f"sqlite:///{folder}/relay.db",
        "auth": {"bearer_token_file": folder / "token"},
        "delivery": {"timeout": "1s", "lease": "5s"},
        "channels": {
            name: {
                "kind": "webhook",
                "url": f"http://{unused_address() if failing == 'refused' and name in fails else address}/{name}",
            }
            for name in NAMES
        },
        "routes": [{"receiver": "kms-critical", "channels": list(route), "escalate": steps}],
        "default_channels": list(default),
        "proof": {"every": 0},
    }
    clock = Clock()
    async with served(RelaySettings(**document), clock=clock) as client:
        yield Played(client, clock, folder / "relay.db", taken)


@pytest.mark.parametrize(
    "failing",
    ["503", "429", *(pytest.param(each, marks=pytest.mark.played) for each in ("time-out", "refused", "400", "401"))],
)
async def test_an_outage_is_told_once_to_the_fallback_and_the_next_step(
    tmp_path: Path, answering: Answering, failing: str
) -> None:
    async with play(tmp_path, answering, failing) as it:
        await post(it.client, webhook_of())
        await it.let_pass(90)
        assert it.counts() == ({"email": 1} if failing in {"429", "401"} else {})
        await it.let_pass(60)
        await until(lambda: it.counts() == {"email": 1, "lead": 1})
        await it.let_pass(300)
        assert it.counts() == {"email": 1, "lead": 1}
    assert "channel slack " in it.taken["email"][0]
    assert it.taken["lead"] == ["Escalated: no channel of its route has taken it for 2 min."]


async def test_later_messages_are_told_as_well_once_the_breaker_is_open(tmp_path: Path, answering: Answering) -> None:
    async with play(tmp_path, answering, "503") as it:
        for number in range(6):
            await post(it.client, webhook_of(group=f"{number}"))
        await it.let_pass(600)
        await until(lambda: it.counts() == {"email": 6, "lead": 6})
        await post(it.client, webhook_of(group="late"))
        await it.let_pass(150)
        await until(lambda: it.counts() == {"email": 7, "lead": 7})


async def test_another_channel_of_the_route_that_takes_it_is_enough(tmp_path: Path, answering: Answering) -> None:
    async with play(tmp_path, answering, "503", route=("slack", "second")) as it:
        await post(it.client, webhook_of())
        await it.let_pass(500)
        assert it.counts() == {"second": 1}


async def test_a_step_that_takes_nothing_either_is_followed_by_the_next(tmp_path: Path, answering: Answering) -> None:
    async with play(tmp_path, answering, "503", fails=("slack", "lead"), default=("slack",)) as it:
        await post(it.client, webhook_of())
        await it.let_pass(180)
        assert it.counts() == {}
        await it.let_pass(120)
        await until(lambda: it.counts() == {"boss": 1})


async def test_an_acknowledgement_ends_the_steps_and_not_the_fallback(tmp_path: Path, answering: Answering) -> None:
    async with play(tmp_path, answering, "503") as it:
        await post(it.client, webhook_of())
        await it.let_pass(30)
        _, listed = await get(it.client, "/api/incidents")
        async with it.client.post(f"/api/incidents/{listed['incidents'][0]['id']}/acknowledge") as answer:
            assert answer.status == 200
        await it.let_pass(600)
        assert it.counts() == {"email": 1}
