"""Beside a real Alertmanager: an alert that ends while it is silenced or inhibited is told over by the relay alone."""

import asyncio
import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import yaml
from aiohttp import web

from services.relay.config import AlertmanagerSettings
from services.relay.intake import webhook as webhook_parser
from services.relay.model import Event, Status
from services.relay.monitors.reconcile import CLOSED_REMARK, REFIRED_REMARK, ReconcileTimes
from services.relay.monitors.supervisor import Monitors
from services.relay.monitors.watchdog import IntakeUptime
from shared.sql import database_url
from tests.relay.monitors.monitored_outbox import Clock, MonitoredOutbox, configure, open_monitored_outbox
from tests.relay.real_alertmanager import run_alertmanager
from tests.relay.served_relay import until
from tests.sites import serve_site

QUICK = ReconcileTimes(interval=0.2, min_absence=5.0, min_uptime=0.5)
"""On a busy machine Alertmanager tells of an end well before the relay misses its alert."""


class Real(Clock):
    def wall(self) -> float:
        return time.time()


class Beside:
    """A real Alertmanager, what it is told, and the outbox that its webhooks come to."""

    def __init__(self, at: MonitoredOutbox, http: aiohttp.ClientSession) -> None:
        self._at = at
        self._http = http

    async def fire(self, *names: str) -> None:
        """They fire, and the relay is told so."""
        await self._post("alerts", [{"labels": {"alertname": name}} for name in names])
        for name in names:
            await self.wait_for(name, Status.FIRING)

    async def end(self, name: str) -> None:
        await self._post("alerts", [{"labels": {"alertname": name}, "endsAt": datetime.now(UTC).isoformat()}])
        await self.wait_for(name, Status.RESOLVED)

    async def silence(self, name: str) -> str:
        """Gives the silence's id."""
        matchers = [{"name": "alertname", "value": name, "isRegex": False, "isEqual": True}]
        now = datetime.now(UTC)
        times = {"startsAt": now.isoformat(), "endsAt": (now + timedelta(hours=1)).isoformat()}
        body = {"matchers": matchers, "createdBy": "a test", "comment": "known", **times}
        return str((await self._post("silences", body))["silenceID"])

    async def unsilence(self, silence: str) -> None:
        async with self._http.delete(f"/api/v2/silence/{silence}") as answer:
            assert answer.status == 200, await answer.text()

    async def are_muted(self, *names: str) -> bool:
        """Whether it holds back these alerts and no other."""
        async with self._http.get("/api/v2/alerts") as answer:
            alerts = await answer.json()
        return {each["labels"]["alertname"] for each in alerts if each["status"]["state"] == "suppressed"} == {*names}

    async def events(self, name: str) -> list[Event]:
        published = [each.event for each in await self._at.list_published()]
        return [event for event in published if event.alerts[0].labels["alertname"] == name]

    async def wait_for(self, name: str, status: Status) -> None:
        async def is_there() -> bool:
            return [event.status for event in await self.events(name)][-1:] == [status]

        await until(is_there)

    async def _post(self, what: str, body: object) -> Any:
        async with self._http.post(f"/api/v2/{what}", json=body) as answer:
            assert answer.status == 200, await answer.text()
            return await answer.json(content_type=None)


def build_configuration(intake: str) -> str:
    waits = {"group_wait": "0s", "group_interval": "1s", "repeat_interval": "1h"}
    configuration = {
        "route": {"receiver": "relay", "group_by": ["alertname"], **waits},
        "receivers": [{"name": "relay", "webhook_configs": [{"url": f"{intake}/alerts"}]}],
        "inhibit_rules": [{"source_matchers": ["alertname=Cause"], "target_matchers": ["alertname=Consequence"]}],
    }
    return yaml.safe_dump(configuration)


@pytest.fixture
async def beside(tmp_path: Path) -> AsyncIterator[Beside]:
    async with open_monitored_outbox(database_url.create_sqlite_url(tmp_path / "relay.db"), Real()) as at:

        async def take(request: web.Request) -> web.Response:
            await at.accept(webhook_parser.parse_whole_event(await request.read(), ""), "email")
            return web.Response(status=202)

        async with (
            serve_site(web.post("/alerts", take)) as intake,
            run_alertmanager(tmp_path, build_configuration(intake)) as url,
            aiohttp.ClientSession(url, timeout=aiohttp.ClientTimeout(total=10)) as http,
        ):
            at.publisher.settings = configure(alertmanager=AlertmanagerSettings(urls=(url,)))
            task = asyncio.create_task(Monitors(at.publisher, IntakeUptime(time.monotonic), QUICK).run())
            yield Beside(at, http)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task


async def test_what_ends_or_fires_again_behind_a_silence_is_reported(beside: Beside) -> None:
    """Both at once beside one Alertmanager: they wait for its times and the relay's."""
    await asyncio.gather(_let_muted_ones_end(beside), _fire_again_after_a_silence(beside))


async def _let_muted_ones_end(beside: Beside) -> None:
    """What ends is reported as over, and what goes on is not."""
    await beside.fire("Silenced", "GoesOn", "Ends", "Consequence")
    await beside.fire("Cause")
    for name in ("Silenced", "GoesOn"):
        await beside.silence(name)
    await until(lambda: beside.are_muted("Silenced", "GoesOn", "Consequence"))
    remarks = {"Silenced": CLOSED_REMARK, "Consequence": CLOSED_REMARK, "Ends": ""}
    await asyncio.gather(*(beside.end(name) for name in remarks))
    for name, remark in remarks.items():
        firing, resolved = await beside.events(name)
        assert resolved.remark == remark
        assert [alert.fingerprint for alert in resolved.alerts] == [alert.fingerprint for alert in firing.alerts]
    assert await beside.are_muted("GoesOn")
    for name in ("GoesOn", "Cause"):
        assert [event.status for event in await beside.events(name)] == [Status.FIRING]


async def _fire_again_after_a_silence(beside: Beside) -> None:
    """It is reported, though Alertmanager would wait an hour."""
    await beside.fire("A")
    silence = await beside.silence("A")
    await beside.end("A")
    await beside.unsilence(silence)
    await beside.fire("A")
    assert [event.remark for event in await beside.events("A")] == ["", CLOSED_REMARK, REFIRED_REMARK]
    await beside.end("A")
    assert (await beside.events("A"))[-1].remark == "", "Alertmanager tells of this end itself"
