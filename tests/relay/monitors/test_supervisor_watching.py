"""The watch put together: every task runs, and all of them end with it."""

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from aiohttp import web

from services.relay.config import AlertmanagerSettings
from services.relay.monitors.supervisor import Monitors
from services.relay.monitors.watchdog import IntakeUptime
from services.relay.outbox import heartbeats as watchdog_silence
from services.relay.outbox import quarantine
from shared.sql import database_url
from tests.conftest import Until
from tests.relay.monitors.monitored_outbox import Clock, MonitoredOutbox, configure, open_monitored_outbox, watch


class Real(Clock):
    def wall(self) -> float:
        return time.time()


@pytest.fixture
async def at(tmp_path: Path) -> AsyncIterator[MonitoredOutbox]:
    async with open_monitored_outbox(database_url.create_sqlite_url(tmp_path / "relay.db"), Real()) as at:
        yield at


async def test_absences_quarantine_and_heartbeats_are_seen_side_by_side_until_it_is_cancelled(
    at: MonitoredOutbox, tmp_path: Path, until: Until
) -> None:
    requests: list[str] = []

    async def take(request: web.Request) -> web.Response:
        requests.append(request.path)
        return web.Response()

    app = web.Application()
    app.router.add_get("/ping", take)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    file = tmp_path / "url"
    file.write_text(f"http://127.0.0.1:{runner.addresses[0][1]}/ping")
    await quarantine.quarantine_webhook(at.store, b"{", source="", code=400, reason="a reason")

    # No Alertmanager is there: the others do not wait for it.
    at.publisher.settings = configure(
        watchdogs=(watch("Seen", "60s", "slack", file=file), watch("Absent", "200ms", "email")),
        alertmanager=AlertmanagerSettings(urls=("http://127.0.0.1:1",)),
    )
    watching = Monitors(at.publisher, IntakeUptime(time.monotonic))
    task = asyncio.create_task(watching.run())
    await watchdog_silence.record_heartbeats(at.store, ["Seen", "Absent"])
    watching.record_heartbeats(["Seen", "Absent"])

    async def all_published() -> bool:
        names = sorted(published.event.common_labels["alertname"] for published in await at.list_published())
        return names == ["RelayWebhookQuarantined", "WatchdogAbsent"] and requests == ["/ping"]

    await until(all_published)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await runner.cleanup()
