"""A backup is restored in which a page waits that was delivered, and is over, since: nobody is called again."""

import asyncio
import shutil
import sqlite3
import subprocess
import time
from collections.abc import AsyncIterator
from contextlib import closing
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import yaml
from aiohttp import web

from ops.demo.stand_ins.app import StandIns, run_stand_ins
from ops.demo.stand_ins.provider_faults import FaultKind, Provider, ProviderFault
from services.relay.config import RelaySettings
from services.relay.delivery.attempt import open_local_sender
from services.relay.delivery.worker import run_delivery
from services.relay.metrics import Metrics
from services.relay.outbox.recovery import COMPARE_DELAY, mark_restored
from services.relay.outbox.store import open_store
from shared.http.server import create_registry
from tests.fork_server import forked
from tests.relay.outbox.actions import accept, claim_some
from tests.relay.served_relay import TOKEN, Scripted, post, served, settings, until, webhook_of
from tests.sites import serve_site

KEY = "0" * 32


@pytest.fixture
async def providers() -> AsyncIterator[StandIns]:
    async with run_stand_ins(pagerduty_keys=[KEY]) as stand_ins:
        yield stand_ins


@pytest.fixture
async def alertmanager() -> AsyncIterator[str]:
    """One that is up for long, and knows of nothing."""

    async def status(_request: web.Request) -> web.Response:
        return web.json_response({"uptime": "2023-11-14T22:13:20.000Z"})

    async def alerts(_request: web.Request) -> web.Response:
        return web.json_response([])

    async with serve_site(web.get("/api/v2/status", status), web.get("/api/v2/alerts", alerts)) as url:
        yield url


@pytest.mark.usefixtures("short_lock_wait")
@pytest.mark.parametrize("method", ["another file", "one that is locked", "the same file", "a snapshot of the volume"])
async def test_it_triggers_nothing_that_is_over(
    tmp_path: Path, providers: StandIns, alertmanager: str, method: str
) -> None:
    over = method in {"the same file", "a snapshot of the volume"}
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

    providers.faults.add(ProviderFault(provider=Provider.PAGERDUTY, kind=FaultKind.STATUS, status=500))
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
    if method == "a snapshot of the volume":
        with closing(sqlite3.connect(tmp_path / "relay.db")) as snapshot:
            (last_used_at,) = snapshot.execute("SELECT last_used_at FROM database_identity").fetchone()
        (tmp_path / "relay.db-last-used").write_text(repr(last_used_at))  # it is as old
        (tmp_path / "relay.yml").write_text(yaml.safe_dump(keys))
        command = [*forked("services.relay"), "--config", str(tmp_path / "relay.yml"), "mark-restored"]
        await asyncio.to_thread(subprocess.run, command, check=True, timeout=60)
    await (_started_while_it_is_locked if method == "one that is locked" else _started)(RelaySettings(**keys))
    assert actions() == ["trigger", "resolve", "resolve"]


async def _started(given: RelaySettings) -> None:
    async with served(given) as client:
        await until(lambda: _list_delivered(client))


async def _started_while_it_is_locked(given: RelaySettings) -> None:
    with closing(sqlite3.connect(str(given.database.database), isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        async with served(given) as client:
            other.execute("ROLLBACK")
            query = "SELECT 1 FROM deliveries WHERE maybe_delivered_up_to IS NOT NULL"
            await until(lambda: other.execute(query).fetchone() is not None)
            await post(client, webhook_of("resolved"))
            await until(lambda: _list_delivered(client))


async def _list_delivered(client: aiohttp.ClientSession) -> bool:
    async with client.get("/api/deliveries?state=delivered") as answer:
        return bool((await answer.json())["deliveries"])


async def test_what_is_marked_as_restored_stays_on_hold_though_the_relay_is_stopped_before_it_compares(
    tmp_path: Path,
) -> None:
    given = settings(tmp_path, {"one": Scripted()}, alertmanager={"urls": ["http://127.0.0.1:1"]})
    metrics = Metrics(create_registry(), given.channels)
    async with open_store(given.database, time.time) as store:
        async with run_delivery(given, store, metrics, open_local_sender):
            await accept(store, "x", "elsewhere")
            await mark_restored(store)
        claimed = await claim_some(store, "elsewhere")
        assert claimed.claims == ()
        assert claimed.retry_in == pytest.approx(COMPARE_DELAY, abs=30)
