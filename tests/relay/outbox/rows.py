"""Puts events and deliveries into an outbox as if they had been accepted and sent long ago."""

from collections.abc import Sequence
from functools import partial
from typing import Any, Final
from uuid import uuid4

from sqlalchemy import Table, func, insert, select

from services.relay.outbox.database import build_insert
from services.relay.outbox.store import Store, Transaction
from services.relay.outbox.tables import UNFINISHED, DeliveryState, attempts, deliveries, events, incidents

_NEW_EVENTS: Final = insert(events).returning(events.c.seq, sort_by_parameter_order=True)
_NEW_DELIVERIES: Final = insert(deliveries).returning(deliveries.c.seq, sort_by_parameter_order=True)


class Rows:
    """Ages are seconds before now, by the database's clock."""

    def __init__(self, store: Store) -> None:
        self.store = store

    async def event(self, incident: str = "one", **more: Any) -> int:
        """The latest event of an incident; gives its seq."""
        (seq,) = await self.store.run(partial(_insert_events, names=[incident], **more))
        return seq

    async def delivery(
        self, event: int, channel: str = "slack", state: DeliveryState = DeliveryState.DELIVERED, **more: Any
    ) -> str:
        """A delivery of an event that was tried once; gives its id."""
        insert_one = partial(_insert_deliveries, seqs=[event], channel=channel, state=state, **more)
        (delivery_id,) = await self.store.run(insert_one)
        return delivery_id

    async def create_deliveries(self, number: int, **more: Any) -> list[str]:
        """Deliveries of as many incidents that are over; gives their ids, the oldest first."""

        def create(transaction: Transaction) -> list[str]:
            seqs = _insert_events(transaction, [f"{each}" for each in range(number)], goes_on=False, **more)
            return _insert_deliveries(transaction, seqs)

        return await self.store.run(create)

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


def _insert_events(
    transaction: Transaction,
    names: Sequence[str],
    *,
    age: float = 0,
    goes_on: bool = True,
    episode: int = 1,
    event_json: bytes = b"{}",
) -> Sequence[int]:
    """One for each of these incidents, their latest."""
    rows = [
        {
            "id": uuid4().hex,
            "incident_id": name,
            "receiver": "kms-critical",
            "alertname": f"Alert-{name}",
            "status": "firing",
            "fingerprint": "same",
            "accepted_at": transaction.now - age,
            "event": event_json,
            "body": b"{}",
        }
        for name in names
    ]
    connection = transaction.connection
    seqs = connection.execute(_NEW_EVENTS, rows).scalars().all()
    new = build_insert(incidents, connection.dialect.name)
    state = {name: new.excluded[name] for name in ("episode", "is_open", "latest_event_seq")}
    latest = [
        {"id": name, "episode": episode, "is_open": int(goes_on), "latest_event_seq": seq}
        for name, seq in zip(names, seqs, strict=True)
    ]
    connection.execute(new.on_conflict_do_update(index_elements=["id"], set_=state), latest)
    return seqs


def _insert_deliveries(
    transaction: Transaction,
    seqs: Sequence[int],
    channel: str = "slack",
    state: DeliveryState = DeliveryState.DELIVERED,
    **more: Any,
) -> list[str]:
    connection = transaction.connection
    found = connection.execute(select(events).where(events.c.seq.in_(seqs)).order_by(events.c.seq)).all()
    rows = [
        {
            "id": uuid4().hex,
            "event_seq": of.seq,
            "first_event_seq": of.seq,
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
        for of in found
    ]
    tried = {"number": 1, "seconds": 0.5, "reason": "ok", "detail": "250 queued"}
    numbered = zip(found, connection.execute(_NEW_DELIVERIES, rows).scalars(), strict=True)
    connection.execute(
        insert(attempts), [{**tried, "delivery_seq": seq, "started_at": of.accepted_at} for of, seq in numbered]
    )
    return [str(row["id"]) for row in rows]
