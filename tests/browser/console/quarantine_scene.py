"""Dead letters and refused webhooks in a console, for tests and pictures."""

import json
import time
from pathlib import Path
from typing import Final

from sqlalchemy import select, update

from services.relay.outbox.store import Transaction, open_store
from services.relay.outbox.tables import DeliveryState, attempts, deliveries
from shared.sql import database_url
from tests.browser.console.served_console import Console
from tests.relay.served_relay import post, webhook_of

_DETAILS: Final = {
    "rejected": "550 5.7.1 message refused by policy",
    "timeout": "no answer within 10 s",
    "unauthorized": "Slack answered token_revoked",
}


async def give_up(folder: Path, channel: str, reason: str, number: int, *, age: float = 0.0) -> None:
    """Makes dead letters of what was delivered last on a channel of the console in this folder; `age` is in seconds."""
    of = deliveries.c
    newest = select(of.seq).where(of.channel == channel, of.state == "delivered").order_by(of.seq.desc()).limit(number)
    values = {"state": DeliveryState.DEAD, "reason": reason, "receipt": None, "finished_at": time.time() - age}
    accepted_at = of.oldest_accepted_at - age - of.seq % 7 * 600

    def commit(transaction: Transaction) -> None:
        connection = transaction.connection
        seqs = list(connection.execute(newest).scalars())
        connection.execute(
            update(deliveries).where(of.seq.in_(seqs)).values(values | {"oldest_accepted_at": accepted_at})
        )
        failed = update(attempts).where(attempts.c.delivery_seq.in_(seqs))
        connection.execute(failed.values(reason=reason, detail=_DETAILS[reason]))

    async with open_store(database_url.create_sqlite_url(folder / "relay.db"), time.time) as store:
        await store.run(commit)


async def seed_quarantine(console: Console, folder: Path) -> None:
    """Two groups of dead letters, and two refused webhooks."""
    await give_up(folder, "email", "rejected", 3, age=7200.0)
    await give_up(folder, "slack", "unauthorized", 1, age=180_000.0)
    wrong = json.loads(webhook_of(group="refused", version="3"))
    await post(console.client, json.dumps(wrong).encode(), "/alerts?source=eu")
    await post(console.client, b"payload=%7B%22text%22%3A%22deploy+finished%22%7D")
