"""A backup is restored in which a page waits that was delivered, and is over, since: nobody is called again."""

import asyncio
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import yaml
from aiohttp import web

from ops.demo.stand_ins.faults import Fault, Kind, Provider
from ops.demo.stand_ins.server import StandIns, start
from services.relay.config import RelaySettings
from tests.relay.scripted import TOKEN, post, served, until, webhook_of

KEY = "0" * 32


@pytest.fixture
async def providers() -> AsyncIterator[StandIns]:
    async with start(pagerduty_keys=[KEY]) as stand_ins:
        yield stand_ins


@pytest.fixture
async def alertmanager() -> AsyncIterator[str]:
    """One that is up for long, and knows of nothing."""

    async def status(_request: web.Request) -> web.Response:
        return web.json_response({"uptime": "2023-11-14T22:13:20.000Z"})

    async def alerts(_request: web.Request) -> web.Response:
        return web.json_response([])

    app = web.Application()
    app.router.add_get("/api/v2/status", status)
    app.router.add_get("/api/v2/alerts", alerts)
    runner = web.AppRunner(app, shutdown_timeout=0)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    await runner.cleanup()


@pytest.mark.parametrize("way", ["another file", "the same file", "a snapshot of the volume"])
async def test_it_triggers_nothing_that_is_over(
    tmp_path: Path, providers: StandIns, alertmanager: str, way: str
) -> None:
    over = way != "another file"
    (tmp_path / "token").write_text(TOKEN)
    (tmp_path / "key").write_text(KEY)
    keys: dict[str, Any] = {
        "database": f"sqlite:///{tmp_path}/relay.db",
        "auth": {"bearer_token_file": str(tmp_path / "token")},
        "alertmanager": {"urls": [alertmanager]},
        "delivery": {"backoff_initial": "10ms", "backoff_max": "50ms"},
        "channels": {
            "pagerduty": {
                "kind": "pagerduty",
                "routing_key_file": str(tmp_path / "key"),
                "url": providers.pagerduty_url,
            }
        },
        "default_channels": ["pagerduty"],
    }

    def actions() -> list[str]:
        return [event["event_action"] for event in providers.pagerduty.events]

    providers.faults.add(Fault(provider=Provider.PAGERDUTY, kind=Kind.STATUS, status=500))
    async with served(RelaySettings(**keys)) as client:
        await post(client, webhook_of("firing"))
        if over:
            await post(client, webhook_of("resolved"))
        with (
            closing(sqlite3.connect(tmp_path / "relay.db")) as one,
            closing(sqlite3.connect(tmp_path / "backup.db")) as two,
        ):
            one.backup(two)
        providers.faults.clear()
        if not over:
            await post(client, webhook_of("resolved"))
        await until(lambda: actions() == ["trigger", "resolve"])
    for file in ("relay.db", "relay.db-wal", "relay.db-shm"):
        if not (over and file == "relay.db"):
            (tmp_path / file).unlink(missing_ok=True)
    if over:  # into the same file
        await asyncio.to_thread(shutil.copyfile, tmp_path / "backup.db", tmp_path / "relay.db")
    else:
        (tmp_path / "backup.db").rename(tmp_path / "relay.db")
    if way == "a snapshot of the volume":
        with closing(sqlite3.connect(tmp_path / "relay.db")) as snapshot:
            (seen_at,) = snapshot.execute("SELECT seen_at FROM origin").fetchone()
        (tmp_path / "relay.db-seen").write_text(repr(seen_at))  # it is as old
        (tmp_path / "relay.yml").write_text(yaml.safe_dump(keys))
        command = [sys.executable, "-m", "services.relay", "--config", str(tmp_path / "relay.yml"), "restored"]
        await asyncio.to_thread(subprocess.run, command, check=True, timeout=30)
    async with served(RelaySettings(**keys)) as client:

        async def told() -> bool:
            async with client.get("/api/deliveries?state=delivered") as answer:
                return bool((await answer.json())["deliveries"])

        await until(told)
    assert actions() == ["trigger", "resolve", "resolve"]
