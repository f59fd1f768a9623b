"""A relay on a bad day: many incidents, a channel that is down, and a Prometheus that knows the rest of the path."""

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from aiohttp import web
from sqlalchemy import insert, update

from ops.demo.stand_ins.app import StandIns, run_stand_ins
from services.relay.acknowledgement.store import acknowledge
from services.relay.outbox.heartbeats import record_heartbeats
from services.relay.outbox.proofs import Hop
from services.relay.outbox.served_channels import record_served_channels
from services.relay.outbox.store import Store, open_store
from services.relay.outbox.tables import channels, incidents, silences
from shared.sql import database_url
from tests.browser.console.served_console import Console, build_settings
from tests.relay.outbox.seeded_history import KINDS, seed_history
from tests.relay.proofs.seeded_proofs import seed_proofs
from tests.relay.served_relay import served
from tests.sites import serve_site

DOWN: Final = "email-oncall"
WATCHDOG: Final = {"matchers": ['alertname="Watchdog"'], "expect_every": "5m", "channels": ["pagerduty"]}
RULE_GROUPS: Final = {"keypulse_exporter": 4, "kms_keys": 9, "kms_crypto": 12, "keypulse_relay": 8}


@asynccontextmanager
async def run_prometheus() -> AsyncIterator[str]:
    """A stand-in for Prometheus that scrapes two exporters and evaluates the rules; its URL."""

    async def answer(request: web.Request) -> web.Response:
        now = time.time()
        if request.path.endswith("/rules"):
            at = datetime.fromtimestamp(now - 6, UTC).isoformat()
            groups = [
                {"name": name, "interval": 15, "lastEvaluation": at, "rules": [{"name": "A", "health": "ok"}] * rules}
                for name, rules in RULE_GROUPS.items()
            ]
            return web.json_response({"status": "success", "data": {"groups": groups}})
        results = [
            {"metric": {"instance": f"exporter-{number}:9911"}, "value": [now, f"{now - 4 * number:.3f}"]}
            for number in (1, 2)
        ]
        data = {"resultType": "vector", "result": [*results, {"metric": {}, "value": [now, f"{now:.3f}"]}]}
        return web.json_response({"status": "success", "data": data})

    async with serve_site(web.route("*", "/{path:.*}", answer)) as url:
        yield url


async def seed(file: Path, delivery_count: int) -> None:
    """A month of deliveries; people take care of two incidents, a third went further, and a channel is down."""
    async with open_store(database_url.create_sqlite_url(file), time.time, frozenset({"audit-hook"})) as store:
        await record_served_channels(store, dict.fromkeys(KINDS))
        history = await seed_history(store, delivery_count)
        await record_heartbeats(store, ["Watchdog"])
        firing = [each for each in history.incidents if each.is_open]
        for each in firing[:2]:
            await acknowledge(store, each.id, who="ada", via="api", peer=None, acknowledging_channels=frozenset())
        await store.run(
            lambda transaction: _change(transaction.connection, transaction.now, [each.id for each in firing])
        )
        await seed_proofs(store, KINDS, 86400.0, lambda name, _at: Hop.CHANNEL if name == DOWN else "reachable")
        await _let_settle(store)


def _change(connection: Any, now: float, firing: list[str]) -> None:
    further = update(incidents).where(incidents.c.id == firing[2])
    connection.execute(further.values(escalated_to='["pagerduty"]', escalated_at=now - 900))
    row: dict[str, object] = {
        "channel": "slack-critical",
        "slack_channel": "C1",
        "thread": "1.2",
        "user_id": "U1",
        "who": "grace",
        "created_by": "grace",
    }
    row |= {"id": "press", "incident_id": firing[1], "state": "created", "attempts": 1, "due_at": 0.0}
    episode = connection.execute(incidents.select().where(incidents.c.id == firing[1])).one().episode
    connection.execute(insert(silences), row | {"episode": episode, "ends_at": now + 5400, "answered_at": now})
    down = update(channels).where(channels.c.name == DOWN)
    connection.execute(down.values(is_down=1, failures=5, reason="unauthorized"))


async def _let_settle(store: Store) -> None:
    await store.run(lambda transaction: transaction.connection.exec_driver_sql("ANALYZE").close())


def build_channels(folder: Path, stand_ins: StandIns) -> dict[str, Any]:
    """The channels of the seeded history."""
    (folder / "bot").touch(mode=0o600)
    slack = {"kind": "slack", "token_file": folder / "bot", "api_url": stand_ins.slack_api_url}
    mail = {"kind": "email", "host": stand_ins.smtp.host, "port": stand_ins.smtp.port, "tls": "none"}
    return {
        "slack-critical": {**slack, "channel": "#security-critical"},
        "slack-security": {**slack, "channel": "#security-ops"},
        "email-secops": {**mail, "from": "alerts@example.org", "to": ["secops@example.org"]},
        "email-oncall": {**mail, "from": "alerts@example.org", "to": ["oncall@example.org"]},
        "audit-hook": {"kind": "log"},
    }


@asynccontextmanager
async def open_bad_day(folder: Path, delivery_count: int = 20_000) -> AsyncIterator[Console]:
    """The relay of that day."""
    await seed(folder / "relay.db", delivery_count)
    async with run_stand_ins() as stand_ins, run_prometheus() as prometheus:
        settings = build_settings(
            folder,
            stand_ins,
            channels=build_channels(folder, stand_ins),
            watchdogs=[WATCHDOG],
            messages={"prometheus_url": prometheus},
        )
        settings = settings.model_copy(update={"channels": {name: settings.channels[name] for name in KINDS}})
        async with served(settings) as client:
            yield Console(client, stand_ins, str(client._base_url).rstrip("/"))
