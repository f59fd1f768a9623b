"""Beside a real Alertmanager: an alert that ends while it is silenced or inhibited is told over by the relay alone."""

import asyncio
import shutil
import time
from collections.abc import AsyncIterator, Awaitable, Callable
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
from tests.conftest import Until
from tests.relay.monitors.monitored_outbox import Clock, MonitoredOutbox, configure
from tests.sites import serve_site

Start = Callable[..., Awaitable[str]]
PROGRAM = shutil.which("alertmanager") or shutil.which("prometheus-alertmanager")
QUICK = ReconcileTimes(interval=0.2, min_absence=3.0, min_uptime=0.5)


class Real(Clock):
    def wall(self) -> float:
        return datetime.now(UTC).timestamp()


@pytest.fixture
def clock() -> Clock:
    return Real()


@pytest.fixture
def sent() -> list[Event]:
    """What Alertmanager has sent, whatever was made of it."""
    return []


@pytest.fixture
async def intake(at: MonitoredOutbox, sent: list[Event]) -> AsyncIterator[str]:
    """Where the webhooks go; gives the URL."""

    async def take(request: web.Request) -> web.Response:
        event = webhook_parser.parse_whole_event(await request.read(), "")
        await at.accept(event, "email")
        sent.append(event)
        return web.Response(status=202)

    async with serve_site(web.post("/alerts", take)) as url:
        yield f"{url}/alerts"


class Alertmanager:
    """A real one, and what it is told."""

    def __init__(self, url: str, http: aiohttp.ClientSession) -> None:
        self.url = url
        self._http = http

    async def fires(self, name: str) -> None:
        await self._post("alerts", [{"labels": {"alertname": name}}])

    async def ends(self, name: str) -> None:
        await self._post("alerts", [{"labels": {"alertname": name}, "endsAt": datetime.now(UTC).isoformat()}])

    async def silence(self, name: str) -> str:
        """Gives the silence's id."""
        matchers = [{"name": "alertname", "value": name, "isRegex": False, "isEqual": True}]
        now = datetime.now(UTC)
        until = {"startsAt": now.isoformat(), "endsAt": (now + timedelta(hours=1)).isoformat()}
        body = {"matchers": matchers, "createdBy": "a test", "comment": "known", **until}
        return str((await self._post("silences", body))["silenceID"])

    async def unsilence(self, silence: str) -> None:
        async with self._http.delete(f"{self.url}/api/v2/silence/{silence}") as answer:
            assert answer.status == 200, await answer.text()

    async def muted(self) -> set[str]:
        """The names of the alerts that it holds back."""
        async with self._http.get(f"{self.url}/api/v2/alerts") as answer:
            alerts = await answer.json()
        return {alert["labels"]["alertname"] for alert in alerts if alert["status"]["state"] == "suppressed"}

    async def _post(self, what: str, body: object) -> Any:
        async with self._http.post(f"{self.url}/api/v2/{what}", json=body) as answer:
            assert answer.status == 200, await answer.text()
            return await answer.json(content_type=None)


@pytest.fixture
async def alertmanager(
    request: pytest.FixtureRequest, start: Start, intake: str, tmp_path: Path
) -> AsyncIterator[Alertmanager]:
    """Its group_interval is a second, or what the test says."""
    waits = {"group_wait": "0s", "group_interval": getattr(request, "param", "1s"), "repeat_interval": "1h"}
    config: dict[str, Any] = {
        "route": {"receiver": "relay", "group_by": ["alertname"], **waits},
        "receivers": [{"name": "relay", "webhook_configs": [{"url": intake}]}],
        "inhibit_rules": [{"source_matchers": ["alertname=Cause"], "target_matchers": ["alertname=Consequence"]}],
    }
    file = tmp_path / "alertmanager.yml"
    file.write_text(yaml.safe_dump(config))
    assert PROGRAM, "install alertmanager"
    options = (f"--config.file={file}", f"--storage.path={tmp_path / 'data'}", "--cluster.listen-address=")
    url = await start(PROGRAM, *options, "--web.listen-address=127.0.0.1:0")
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=10)) as http:
        yield Alertmanager(url, http)


@pytest.fixture
async def watching(at: MonitoredOutbox, alertmanager: Alertmanager) -> AsyncIterator[None]:
    at.publisher.settings = configure(alertmanager=AlertmanagerSettings(urls=(alertmanager.url,)))
    task = asyncio.create_task(Monitors(at.publisher, IntakeUptime(time.monotonic), QUICK).run())
    yield
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def list_published_of(at: MonitoredOutbox, name: str) -> list[Event]:
    return [
        published.event
        for published in await at.list_published()
        if published.event.alerts[0].labels["alertname"] == name
    ]


async def fire(at: MonitoredOutbox, alertmanager: Alertmanager, until: Until, *names: str) -> None:
    """They fire, and the relay is told so."""
    for name in names:
        await alertmanager.fires(name)

    async def heard() -> bool:
        return all([await list_published_of(at, name) for name in names])

    await until(heard)


async def wait_until_resolved(at: MonitoredOutbox, until: Until, name: str) -> Event:
    async def over() -> bool:
        return (await list_published_of(at, name))[-1].status is Status.RESOLVED

    await until(over)
    firing, resolved = await list_published_of(at, name)
    assert firing.status is Status.FIRING
    assert [alert.fingerprint for alert in resolved.alerts] == [alert.fingerprint for alert in firing.alerts]
    return resolved


async def test_an_alert_that_ends_while_silenced_is_reported_as_over_and_one_that_still_fires_is_not(
    at: MonitoredOutbox, alertmanager: Alertmanager, watching: None, until: Until
) -> None:
    await fire(at, alertmanager, until, "Ends", "GoesOn")
    for name in ("Ends", "GoesOn"):
        await alertmanager.silence(name)
    await alertmanager.ends("Ends")
    over = await wait_until_resolved(at, until, "Ends")
    assert over.remark == CLOSED_REMARK
    assert await alertmanager.muted() == {"GoesOn"}
    assert [event.status for event in await list_published_of(at, "GoesOn")] == [Status.FIRING]


async def test_an_alert_that_ends_while_inhibited_is_reported_as_over_and_its_cause_is_not(
    at: MonitoredOutbox, alertmanager: Alertmanager, watching: None, until: Until
) -> None:
    await fire(at, alertmanager, until, "Consequence")
    await fire(at, alertmanager, until, "Cause")

    async def inhibited() -> bool:
        return await alertmanager.muted() == {"Consequence"}

    await until(inhibited)
    await alertmanager.ends("Consequence")
    over = await wait_until_resolved(at, until, "Consequence")
    assert over.remark == CLOSED_REMARK
    assert [event.status for event in await list_published_of(at, "Cause")] == [Status.FIRING]


async def test_an_alert_that_is_not_muted_is_reported_as_over_by_alertmanager(
    at: MonitoredOutbox, alertmanager: Alertmanager, watching: None, until: Until
) -> None:
    await fire(at, alertmanager, until, "Ends")
    await alertmanager.ends("Ends")
    assert (await wait_until_resolved(at, until, "Ends")).remark == ""


async def test_an_alert_that_fires_again_after_its_silence_is_reported_though_alertmanager_would_wait_an_hour(
    at: MonitoredOutbox, alertmanager: Alertmanager, watching: None, until: Until
) -> None:
    await fire(at, alertmanager, until, "A")
    silence = await alertmanager.silence("A")
    await alertmanager.ends("A")
    await wait_until_resolved(at, until, "A")
    await alertmanager.unsilence(silence)
    await alertmanager.fires("A")

    async def is_firing_anew() -> bool:
        return (await list_published_of(at, "A"))[-1].status is Status.FIRING

    await until(is_firing_anew)
    assert [event.remark for event in await list_published_of(at, "A")] == ["", CLOSED_REMARK, REFIRED_REMARK]
    await alertmanager.ends("A")

    async def is_resolved_anew() -> bool:
        return (await list_published_of(at, "A"))[-1].status is Status.RESOLVED

    await until(is_resolved_anew)
    assert (await list_published_of(at, "A"))[-1].remark == "", "Alertmanager tells of this end itself"


@pytest.mark.parametrize("alertmanager", ["8s"], indirect=True, ids=["a long group_interval"])
async def test_where_alertmanager_reports_an_end_only_after_the_relay_did_it_is_not_reported_twice(
    at: MonitoredOutbox, alertmanager: Alertmanager, sent: list[Event], watching: None, until: Until
) -> None:
    at.duplicate_window = 0  # as if it came a minute later
    await fire(at, alertmanager, until, "Ends")
    await alertmanager.ends("Ends")
    assert (await wait_until_resolved(at, until, "Ends")).remark == CLOSED_REMARK

    async def sent_over() -> bool:
        return sent[-1].status is Status.RESOLVED

    await until(sent_over)
    await wait_until_resolved(at, until, "Ends")  # and so at once, with two events in all
