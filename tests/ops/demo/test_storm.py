"""When a storm counts as understood. Relay and stand-ins are a script here; tests/e2e has the real ones."""

import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from ops.demo import storm
from ops.demo.ports import Ports
from ops.demo.processes import run_processes
from ops.demo.stack import Stack

KEYS = [f"storm-{number:03}" for number in range(25)]


class Clock:
    """The demo's: a second passes for each message, ten at each look at them, and none while anybody works."""

    now = 1_768_469_400.0

    def time(self) -> float:
        return self.now


@dataclass
class Scripted:
    """Relay and stand-ins on one port. Slack names each incident of a webhook alone, but the last ten in a digest."""

    clock: Clock = field(default_factory=Clock)
    named: list[str] = field(default_factory=lambda: list(KEYS))
    edits: bool = True
    webhooks: list[dict[str, Any]] = field(default_factory=list)
    refused: int = 0
    rates: list[bool] = field(default_factory=list)
    messages: list[dict[str, Any]] = field(default_factory=list)

    async def accept(self, request: web.Request) -> web.Response:
        assert request.headers["Authorization"] == "Bearer secret"
        if not self.refused:
            self.refused += 1
            return web.Response(status=503)
        webhook = await request.json()
        self.webhooks.append(webhook)
        if len(self.webhooks) == len(KEYS):
            for key in self.named[:-10]:
                self.print_line("header", key)
            self.print_line("rich_text", *self.named[-10:])
            self.print_line("context", *KEYS)
        if len(self.webhooks) == 2 * len(KEYS) and self.edits:
            digest = self.messages[-2]
            digest |= {"text": f"🟢 {digest['text']}", "edited_at": self.clock.now}
            self.print_line("rich_text", *self.named[-10:])  # of the ends, which nobody edits
        return web.Response(status=202)

    def print_line(self, block: str, *keys: str) -> None:
        self.clock.now += 1.0
        text = " ".join(keys)
        message = {"at": self.clock.now, "edited_at": None, "text": text, "blocks": [{"type": block, "text": text}]}
        self.messages.append(message)

    async def change(self, request: web.Request) -> web.Response:
        change = await request.json()
        assert change["action"] == "rates"
        self.rates.append(change["enabled"])
        return web.json_response({})

    async def show(self, _request: web.Request) -> web.Response:
        self.clock.now += 10.0
        other = {"at": self.clock.now, "edited_at": None, "text": "", "blocks": [{"type": "header", "text": KEYS}]}
        channels = [("#security-critical", [other]), ("#security-ops", [{**other, "at": 1.0}, *self.messages])]
        return web.json_response({"slack": [{"channel": name, "messages": each} for name, each in channels]})


@asynccontextmanager
async def serve(scripted: Scripted, folder: Path) -> AsyncIterator[Stack]:
    (folder / "relay_token").write_text("secret\n")
    app = web.Application()
    app.router.add_post("/alerts", scripted.accept)
    app.router.add_post("/api/slack", scripted.change)
    app.router.add_get("/api/state", scripted.show)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    port = runner.addresses[0][1]
    try:
        async with aiohttp.ClientSession() as http, run_processes(folder) as children:
            yield Stack(Ports(relay=port, stand_ins=port), http, children, folder)
    finally:
        await runner.cleanup()


Play = Callable[[Scripted], Any]


@pytest.fixture
def play(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Play:
    monkeypatch.setattr(storm, "INCIDENTS", len(KEYS))

    async def play(scripted: Scripted) -> tuple[storm.Storm, list[str]]:
        lines: list[str] = []
        monkeypatch.setattr(storm, "time", scripted.clock)
        async with serve(scripted, tmp_path) as stack:
            result = await storm.run_storm(stack, lambda hop: lines.append(hop.name))
        assert scripted.rates == [True, False], "Slack's rate is off again"
        assert lines == [hop.name for hop in result.hops]
        return result, lines

    return play


async def test_each_incident_is_named_and_the_digest_shows_the_end(play: Play) -> None:
    scripted = Scripted()
    result, lines = await play(scripted)
    assert (result.missing, lines) == ([], ["storm", "named", "calm", "digests_edited"])
    assert result.summary.startswith("storm: 25 incidents named on Slack after 16.0 s, ")
    assert result.summary.endswith("in 16 messages (1 digest)")

    begin, end = scripted.webhooks[: len(KEYS)], scripted.webhooks[len(KEYS) :]
    assert [{webhook["status"] for webhook in half} for half in (begin, end)] == [{"firing"}, {"resolved"}]
    keys = [{webhook["groupKey"] for webhook in half} for half in (begin, end)]
    assert keys[0] == keys[1]
    assert len(keys[0]) == len(KEYS)
    assert json.dumps(begin).count('"severity": "critical"') == 2 * 2, "one in twenty"


async def test_an_incident_that_is_not_named_in_time_is_missing(play: Play) -> None:
    result, lines = await play(Scripted(named=KEYS[1:]))
    assert result.missing == ["storm: 24 of 25 incidents named on slack within 30 s"]
    assert (result.summary, lines) == ("", ["storm"])


async def test_a_digest_that_does_not_show_the_end_is_missing(play: Play) -> None:
    result, lines = await play(Scripted(edits=False))
    assert result.missing == ["storm: the digests do not show its end within 30 s"]
    assert lines == ["storm", "named", "calm"]
