"""The tables of the outbox, and how an event is written into one.

`seq` is the order of acceptance; `id` is what the outside sees. Ids are random, so that a Message-ID or a metadata
mark made from one never meets its like from an earlier database.
"""

from enum import StrEnum
from typing import Final

from pydantic import TypeAdapter
from sqlalchemy import Column, Float, ForeignKey, Index, Integer, LargeBinary, MetaData, Table, Text, text

from services.relay.model import Event

VERSION: Final = 1
"""Of the tables, in SQLite's `user_version`; a file of a higher one was written by a newer keypulse."""


class State(StrEnum):
    """Where a delivery stands. The last three are final."""

    QUEUED = "queued"
    SENDING = "sending"
    RETRYING = "retrying"
    DELIVERED = "delivered"
    SUPERSEDED = "superseded"
    DEAD = "dead"


OPEN: Final = (State.QUEUED, State.SENDING, State.RETRYING)
"""The states of a delivery that is still to be made; `finished_at` is null in exactly these."""

metadata = MetaData()

incidents = Table(
    "incidents",
    metadata,
    Column("id", Text, primary_key=True),
    Column("episode", Integer, nullable=False),
    Column("open", Integer, nullable=False),  # 1 until the whole group is told resolved
    Column("latest_event", Integer, nullable=False),
)

events = Table(
    "events",
    metadata,
    Column("seq", Integer, primary_key=True),
    Column("id", Text, nullable=False, unique=True),
    Column("incident_id", Text, nullable=False),
    Column("receiver", Text, nullable=False),
    Column("alertname", Text, nullable=False),
    Column("status", Text, nullable=False),
    Column("fingerprint", Text, nullable=False),  # what a twin of this event would equal
    Column("accepted_at", Float, nullable=False),
    Column("event", LargeBinary, nullable=False),  # as `encode` writes it
    Column("body", LargeBinary, nullable=False),  # the webhook as it came, with fields that this version does not know
    sqlite_autoincrement=True,  # a seq is never given twice, whatever is deleted
)

deliveries = Table(
    "deliveries",
    metadata,
    Column("seq", Integer, primary_key=True),
    Column("id", Text, nullable=False, unique=True),
    Column("event_seq", ForeignKey("events.seq"), nullable=False),
    Column("incident_id", Text, nullable=False),
    Column("episode", Integer, nullable=False),
    Column("channel", Text, nullable=False),
    Column("state", Text, nullable=False),
    Column("attempts", Integer, nullable=False),
    Column("reason", Text),  # how the last attempt ended
    Column("accepted_at", Float, nullable=False),
    Column("due_at", Float, nullable=False),  # when it may be claimed; while `sending`, when its lease ends
    Column("lease", Text),  # whose claim it is
    Column("finished_at", Float),
    Column("receipt", Text),  # JSON
    sqlite_autoincrement=True,
)

attempts = Table(
    "attempts",
    metadata,
    Column("delivery_seq", ForeignKey("deliveries.seq"), primary_key=True),
    Column("number", Integer, primary_key=True),
    Column("started_at", Float, nullable=False),
    Column("seconds", Float, nullable=False),
    Column("reason", Text, nullable=False),
    Column("detail", Text, nullable=False),
    sqlite_with_rowid=False,
)

quarantine = Table(
    "quarantine",
    metadata,
    Column("seq", Integer, primary_key=True),
    Column("received_at", Float, nullable=False),
    Column("source", Text, nullable=False),
    Column("code", Integer, nullable=False),
    Column("reason", Text, nullable=False),
    Column("body", LargeBinary, nullable=False),
)

_unfinished = text("finished_at IS NULL")
Index("deliveries_to_claim", deliveries.c.channel, deliveries.c.seq, sqlite_where=_unfinished)
Index(
    "deliveries_in_order",
    deliveries.c.channel,
    deliveries.c.incident_id,
    deliveries.c.seq,
    sqlite_where=_unfinished,
)
Index("deliveries_of_event", deliveries.c.event_seq)
Index("deliveries_of_episode", deliveries.c.incident_id, deliveries.c.episode, deliveries.c.channel)
Index(
    "deliveries_counted",
    deliveries.c.channel,
    deliveries.c.state,
    deliveries.c.accepted_at,
    sqlite_where=text("state IN ('queued', 'sending', 'retrying', 'dead')"),
)

_events: Final = TypeAdapter(Event)


def encode(event: Event) -> bytes:
    """An event as JSON in UTF-8."""
    return _events.dump_json(event)


def decode(written: bytes) -> Event:
    """The event that `encode` wrote. Raises ValueError where it is not one."""
    return _events.validate_json(written)
