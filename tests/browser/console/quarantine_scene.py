"""Dead letters and refused webhooks in a console, for tests and pictures."""

import json
import time
from pathlib import Path

from sqlalchemy import select, update

from services.relay.outbox.engine.store import open_store
from services.relay.outbox.tables import DeliveryState, deliveries
from shared.sql import database_url
from tests.browser.console.served_console import Console
from tests.relay.served_relay import post, webhook_of


async def give_up(folder: Path, channel: str, reason: str, number: int) -> None:
    """Makes dead letters of what was delivered last on a channel of the console in this folder."""
    of = deliveries.c
    newest = select(of.seq).where(of.channel == channel, of.state == "delivered").order_by(of.seq.desc()).limit(number)
    dead = update(deliveries).where(of.seq.in_(newest.scalar_subquery()))
    values = {"state": DeliveryState.DEAD, "reason": reason, "finished_at": time.time()}
    async with open_store(database_url.create_sqlite_url(folder / "relay.db"), time.time) as store:
        await store.run(lambda transaction: transaction.connection.execute(dead.values(values)).close())


async def seed_quarantine(console: Console, folder: Path) -> None:
    """Two groups of dead letters, and two refused webhooks."""
    await give_up(folder, "email", "timeout", 3)
    await give_up(folder, "slack", "unauthorized", 1)
    wrong = json.loads(webhook_of(group="refused", version="3"))
    await post(console.client, json.dumps(wrong).encode(), "/alerts?source=eu")
    await post(console.client, b"payload=%7B%22text%22%3A%22deploy+finished%22%7D")
