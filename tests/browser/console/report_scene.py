"""A relay with routes, beside a real Alertmanager, and a history whose figures are known."""

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlencode

from services.relay.outbox.store import open_store
from shared.sql.database_url import create_sqlite_url
from tests.browser.console.served_console import Console, open_console
from tests.relay.real_alertmanager import run_alertmanager
from tests.relay.report.small_history import add_small_history

SHIPPED: Final = Path(__file__).parents[3] / "ops/alertmanager/alertmanager.yml"
LABELS: Final = 'alertname="KMSHighLatency", severity="warning", env="production", service="backend"'
ROUTES: Final[list[dict[str, Any]]] = [
    {"receiver": "kms-critical", "channels": ["slack", "email", "pagerduty"]},
    {
        "receiver": "kms-security",
        "matchers": ['severity="warning"', 'env!~"test|dev"'],
        "channels": ["slack", "email"],
        "escalate": [{"after": "10m", "channels": ["pagerduty"]}],
    },
]
HOSTILE: Final = {"receiver": "<img src=x onerror=alert(1)>", "channels": ["email"]}
WATCHDOGS: Final = [{"matchers": ["alertname=Watchdog"], "expect_every": "5m", "channels": ["pagerduty"]}]
EXPLAINED: Final = f"/routes?{urlencode({'labels': LABELS})}"


@asynccontextmanager
async def open_routed_console(folder: Path, *more_routes: dict[str, Any]) -> AsyncIterator[Console]:
    """The console of a relay with these routes, beside an Alertmanager with the shipped configuration."""
    async with (
        run_alertmanager(folder, SHIPPED.read_text()) as url,
        open_console(
            folder, alertmanager={"urls": [url]}, routes=[*ROUTES, *more_routes], watchdogs=WATCHDOGS
        ) as console,
    ):
        yield console


@asynccontextmanager
async def open_reported_console(folder: Path) -> AsyncIterator[Console]:
    """The same with a hostile route, the small history, and some deliveries of its own."""
    async with open_store(create_sqlite_url(folder / "relay.db"), time.time) as store:
        await add_small_history(store, channels={"pager": "pagerduty"})
    async with open_routed_console(folder, HOSTILE) as console:
        yield console
