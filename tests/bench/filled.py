"""An outbox with many deliveries in it, written straight into its tables: accepting each would take minutes."""

import time
from functools import partial
from typing import Final
from uuid import uuid4

from sqlalchemy import insert, update

from services.relay.outbox.store import Store, Transaction
from services.relay.outbox.tables import UNFINISHED, DeliveryState, deliveries, events, incidents
from tests.bench.alerts import webhook

CHANNEL: Final = "slack"
_BATCH: Final = 1000
_NEW_EVENTS: Final = insert(events).returning(events.c.seq, sort_by_parameter_order=True)


async def fill(store: Store, number: int, state: DeliveryState = DeliveryState.QUEUED, due_in: float = 0.0) -> None:
    """Adds deliveries for `CHANNEL`, each of an incident of its own, due in so many seconds."""
    for first in range(0, number, _BATCH):
        size = min(_BATCH, number - first)
        await store.run(partial(_add, number=size, state=state, due_in=due_in))


async def put_off(store: Store, seconds: float) -> None:
    """Makes everything due later than now by so many seconds."""
    later = update(deliveries).where(deliveries.c.finished_at.is_(None)).values(due_at=time.time() + seconds)
    await store.run(lambda transaction: transaction.connection.execute(later))


def _add(transaction: Transaction, number: int, state: DeliveryState, due_in: float) -> None:
    connection, now, encoded = transaction.connection, transaction.now, webhook(0)
    names = [uuid4().hex for _ in range(number)]
    labels = {"receiver": "bench", "alertname": "KMSCryptoNotReady", "status": "firing", "accepted_at": now}
    encoded_as = {"event": encoded, "body": encoded}
    rows = [{"id": name, "incident_id": name, "fingerprint": name, **labels, **encoded_as} for name in names]
    seqs = connection.execute(_NEW_EVENTS, rows).scalars().all()
    connection.execute(
        insert(incidents),
        [
            {"id": name, "episode": 1, "is_open": 1, "latest_event_seq": seq}
            for name, seq in zip(names, seqs, strict=True)
        ],
    )
    waits = {
        "state": state,
        "attempts": int(state is DeliveryState.RETRYING),
        "due_at": now + due_in,
        "accepted_at": now,
    }
    waits["finished_at"] = None if state in UNFINISHED else now
    connection.execute(
        insert(deliveries),
        [
            {
                "id": name,
                "event_seq": seq,
                "first_event_seq": seq,
                "incident_id": name,
                "episode": 1,
                "channel": CHANNEL,
                **waits,
            }
            for name, seq in zip(names, seqs, strict=True)
        ],
    )
