"""The outbox without the relay: a database comes in, its events and deliveries go out, and its leases can be ended."""

import json
import zlib
from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Any, NamedTuple

from sqlalchemy import Row, Select, create_engine, select, update

from services.relay.outbox import tables
from shared.sql.database_url import DatabaseUrl
from tests.faults import deduplication_keys
from tests.faults.incidents import read_alerts, read_group
from tests.faults.relay import CHANNELS, SENDER
from tests.relay.delivery_oracle.evidence import Delivery, Event, read_delivery

_SLACK_CHANNELS = tuple(name for name, traits in CHANNELS.items() if traits.is_edited)
_UNANSWERED = ("timeout", "connection", "internal")
"""How an attempt ended whose message may have arrived."""


class Update(NamedTuple):
    """A delivery that changed a post of Slack instead of making one: an earlier attempt's, which may have arrived."""

    delivery_id: str
    ts: str
    at: float
    text: str
    """What the post showed then."""


class StoredDeliveries(NamedTuple):
    """Both in the order of their seq."""

    events: list[Event]
    deliveries: list[Delivery]


def read_outbox(database: DatabaseUrl) -> StoredDeliveries:
    """Everything. For a thread."""
    engine = create_engine(database)
    try:
        with engine.connect() as connection:
            events = connection.execute(select(tables.events).order_by(tables.events.c.seq)).all()
            deliveries = connection.execute(select(tables.deliveries).order_by(tables.deliveries.c.seq)).all()
            attempts = connection.execute(select(tables.attempts)).all()
    finally:
        engine.dispose()
    ended: dict[int, list[str]] = defaultdict(list)
    for attempt in attempts:
        ended[attempt.delivery_seq].append(attempt.reason)
    group_keys = {row.incident_id: json.loads(row.body)["groupKey"] for row in events}
    inherited = _inherited(deliveries)
    return StoredDeliveries(
        [
            Event(row.seq, row.id, row.incident_id, read_group(alerts), alerts, tuple(CHANNELS))
            for row in events
            if (alerts := read_alerts(row.event.decode()))
        ],
        [
            _delivery(row, group_keys[row.incident_id], ended[row.seq], row.attempts - inherited[row.id])
            for row in deliveries
        ],
    )


def _inherited(deliveries: Sequence[Row[Any]]) -> Counter[str]:
    """How many attempts a delivery took over from what was merged into it."""
    attempts: Counter[str] = Counter()
    for row in deliveries:
        if row.superseded_by:
            attempts[row.superseded_by] = max(attempts[row.superseded_by], row.attempts)
    return attempts


def _delivery(row: Row[Any], group_key: str, ended: Sequence[str], claims: int) -> Delivery:
    return read_delivery(
        row,
        key=_key(row, group_key),
        receipts=ended.count("ok"),
        unknown_outcomes=claims - len(ended) + sum(reason in _UNANSWERED for reason in ended),
    )


def _key(row: Row[Any], group_key: str) -> str:
    if row.channel == "pagerduty":
        return deduplication_keys.dedup_key(group_key)
    if row.channel == "email":
        return deduplication_keys.message_id(row.id, CHANNELS["email"].readers, SENDER.partition("@")[2])
    return str(row.id)


def read_updates(database: DatabaseUrl) -> list[Update]:
    """Those of each channel of Slack. For a thread."""
    of = tables.deliveries.c
    engine = create_engine(database)
    try:
        with engine.connect() as connection:
            sent = select(of.id, of.finished_at, of.payload).where(of.state == "delivered", of.payload.is_not(None))
            rows = connection.execute(sent.where(of.channel.in_(_SLACK_CHANNELS))).all()
    finally:
        engine.dispose()
    payloads = [(row, json.loads(zlib.decompress(row.payload))) for row in rows]
    return [
        Update(row.id, payload["ts"], row.finished_at, payload["text"] + json.dumps(payload.get("blocks")))
        for row, payload in payloads
        if "ts" in payload  # of chat.update; a post has none yet
    ]


def has_failed(database: DatabaseUrl, channel: str) -> bool:
    """Whether the outbox has a failed attempt of a channel, and so what followed from it. For a thread."""
    engine = create_engine(database)
    try:
        with engine.connect() as connection:
            of = tables.deliveries.c
            failed = select(of.id).where(of.channel == channel, of.state == "retrying").limit(1)
            return connection.execute(failed).first() is not None
    finally:
        engine.dispose()


def count_unfinished(database: DatabaseUrl) -> Counter[str]:
    """How many deliveries are still to be made, and messages still to be edited, by channel. For a thread."""
    of, edit = tables.deliveries.c, tables.edits.c
    engine = create_engine(database)
    try:
        with engine.connect() as connection:
            waiting = connection.execute(select(of.channel).where(of.finished_at.is_(None))).scalars().all()
            edited = connection.execute(select(edit.channel).where(edit.wanted > edit.shown)).scalars().all()
            return Counter([*waiting, *edited])
    finally:
        engine.dispose()


def count_queued(database: DatabaseUrl, channel: str) -> int:
    """How many deliveries of a channel wait and are not being sent. For a thread."""
    of = tables.deliveries.c
    is_queued = of.finished_at.is_(None), of.state != tables.DeliveryState.SENDING
    return _count(database, select(of.seq).where(of.channel == channel, *is_queued))


def count_attempts(database: DatabaseUrl, channel: str) -> int:
    """How many attempts of a channel ended, whose outcome is committed. For a thread."""
    attempted = select(tables.attempts.c.number).join(tables.deliveries)
    return _count(database, attempted.where(tables.deliveries.c.channel == channel))


def _count(database: DatabaseUrl, query: Select[Any]) -> int:
    engine = create_engine(database)
    try:
        with engine.connect() as connection:
            return len(connection.execute(query).all())
    finally:
        engine.dispose()


def read_edits_given_up(database: DatabaseUrl) -> set[tuple[str, int, str]]:
    """Incident, episode and channel of each message whose last edit its provider refused for ever. For a thread."""
    edit = tables.edits.c
    engine = create_engine(database)
    try:
        with engine.connect() as connection:
            refused = select(edit.incident_id, edit.episode, edit.channel).where(edit.reason == "rejected")
            return {(row[0], row[1], row[2]) for row in connection.execute(refused)}
    finally:
        engine.dispose()


def end_leases(database: DatabaseUrl) -> None:
    """What a relay that was killed has claimed is due, as if the time of its leases were over. For a thread."""
    engine = create_engine(database)
    try:
        with engine.begin() as connection:
            for table in (tables.deliveries, tables.edits):
                connection.execute(update(table).where(table.c.lease.is_not(None)).values(due_at=0))
    finally:
        engine.dispose()
