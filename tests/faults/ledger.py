"""What stands in the outbox, read past the relay: a database comes in, its events and deliveries go out."""

import json
from collections import Counter
from typing import NamedTuple

from sqlalchemy import create_engine, select

from services.relay.outbox import schema
from services.relay.outbox.database import Database
from tests.faults.incidents import told
from tests.faults.verdict import Delivery, Event


class Ledger(NamedTuple):
    """Both in the order of their seq."""

    events: list[Event]
    deliveries: list[Delivery]


def read(database: Database) -> Ledger:
    """Everything. For a thread."""
    of = schema.deliveries.c
    engine = create_engine(database)
    try:
        with engine.connect() as connection:
            events = [
                Event(row.seq, row.id, row.incident_id, min(alert.group for alert, _ in alerts), alerts)
                for row in connection.execute(select(schema.events).order_by(schema.events.c.seq))
                if (alerts := told(row.event.decode()))
            ]
            deliveries = [
                Delivery(
                    id=row.id,
                    event_seq=row.event_seq,
                    first_event=row.first_event,
                    incident=row.incident_id,
                    channel=row.channel,
                    state=row.state,
                    attempts=row.attempts,
                    superseded_by=row.superseded_by,
                    key=json.loads(row.receipt or "{}").get("message_id"),
                )
                for row in connection.execute(select(schema.deliveries).order_by(of.seq))
            ]
    finally:
        engine.dispose()
    return Ledger(events, deliveries)


def unfinished(database: Database) -> Counter[str]:
    """How many deliveries are still to be made, by channel. For a thread."""
    of = schema.deliveries.c
    engine = create_engine(database)
    try:
        with engine.connect() as connection:
            return Counter(connection.execute(select(of.channel).where(of.finished_at.is_(None))).scalars())
    finally:
        engine.dispose()
