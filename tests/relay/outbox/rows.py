"""Puts events and deliveries into an outbox as if they had been accepted and sent long ago."""

import asyncio
from typing import Any
from uuid import uuid4

from sqlalchemy import Table, func, insert, select, update

from services.relay.outbox.store import Store, Transaction
from services.relay.outbox.tables import UNFINISHED, DeliveryState, attempts, deliveries, events, incidents


class Rows:
    """Ages are seconds before now, by the database's clock."""

    def __init__(self, store: Store) -> None:
        self.store = store

    async def event(
        self,
        incident: str = "one",
        *,
        age: float = 0,
        goes_on: bool = True,
        episode: int = 1,
        event_json: bytes = b"{}",
    ) -> int:
        """The latest event of an incident; gives its seq."""

        def put(transaction: Transaction) -> int:
            row = {
                "id": uuid4().hex,
                "incident_id": incident,
                "receiver": "kms-critical",
                "alertname": f"Alert-{incident}",
                "status": "firing",
                "fingerprint": "same",
                "accepted_at": transaction.now - age,
                "event": event_json,
                "body": b"{}",
            }
            connection = transaction.connection
            seq: int = connection.execute(insert(events).values(row).returning(events.c.seq)).scalar_one()
            state = {"episode": episode, "is_open": int(goes_on), "latest_event_seq": seq}
            if not connection.execute(update(incidents).where(incidents.c.id == incident).values(state)).rowcount:
                connection.execute(insert(incidents).values(id=incident, **state))
            return seq

        return await self.store.run(put)

    async def delivery(
        self, event: int, channel: str = "slack", state: DeliveryState = DeliveryState.DELIVERED, **more: Any
    ) -> str:
        """A delivery of an event that was tried once; gives its id."""

        def put(transaction: Transaction) -> str:
            connection = transaction.connection
            of = connection.execute(select(events).where(events.c.seq == event)).one()
            row = {
                "id": uuid4().hex,
                "event_seq": event,
                "first_event_seq": event,
                "incident_id": of.incident_id,
                "episode": 1,
                "channel": channel,
                "state": state,
                "attempts": 1,
                "reason": "ok",
                "accepted_at": of.accepted_at,
                "oldest_accepted_at": of.accepted_at,
                "due_at": 0.0,
                "finished_at": None if state in UNFINISHED else of.accepted_at,
                **more,
            }
            seq = connection.execute(insert(deliveries).values(row).returning(deliveries.c.seq)).scalar_one()
            attempt = {"delivery_seq": seq, "number": 1, "started_at": of.accepted_at, "seconds": 0.5}
            connection.execute(insert(attempts).values(attempt | {"reason": "ok", "detail": "250 queued"}))
            return str(row["id"])

        return await self.store.run(put)

    async def create_deliveries(self, number: int, *, age: float) -> list[str]:
        """Deliveries of as many incidents that are over; gives their ids, the oldest first."""
        stored = await asyncio.gather(*(self.event(f"{each}", age=age, goes_on=False) for each in range(number)))
        return await asyncio.gather(*map(self.delivery, stored))

    async def left(self) -> set[str]:
        """The ids of the deliveries that are there."""
        return await self.store.read(lambda connection: set(connection.execute(select(deliveries.c.id)).scalars()))

    async def events(self) -> list[int]:
        """The seqs of the events that are there."""
        query = select(events.c.seq).order_by(events.c.seq)
        return await self.store.read(lambda connection: list(connection.execute(query).scalars()))

    async def count(self, table: Table) -> int:
        return await self.store.read(
            lambda connection: connection.execute(select(func.count()).select_from(table)).scalar_one()
        )
