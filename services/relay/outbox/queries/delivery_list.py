"""What people and metrics read of the outbox: deliveries, counts and channels, and how API and CLI write them as JSON.

No query changes the outbox or waits for a writer.
"""

import json
import zlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any, Final, NamedTuple

from sqlalchemy import Connection, bindparam, func, select

from services.relay.model import Event, decode_event
from services.relay.outbox.engine.store import Store
from services.relay.outbox.queries.delivery_search import NEWEST, DeliveryFilter, Examined, Position, search_deliveries
from services.relay.outbox.rows import CHANNELS, RowQuery, select_values
from services.relay.outbox.tables import (
    IS_UNSETTLED,
    DeliveryState,
    attempts,
    clean_for_database,
    deliveries,
    events,
    incidents,
)
from shared.config.settings import parse_duration
from shared.http.json_api import format_json_time

_MAX_DURATION: Final = 1e10
_EXPECTED_TIME: Final = "expected a time with its zone, such as 2026-11-24T22:46:10Z"
_EXPECTED_SINCE: Final = "expected a duration such as 1h or 30d, or a time with its zone, such as 2026-11-24T22:46:10Z"


@dataclass(frozen=True, slots=True)
class DeliverySummary:
    """One event, or several merged events, on one channel. Times are unix seconds."""

    id: str
    event_id: str
    incident_id: str
    receiver: str
    alertname: str
    title: str | None
    """Of its incident; None if an older version accepted that."""
    service: str | None
    """Likewise; empty if it has none."""
    status: str
    """Of the event: firing or resolved."""
    channel: str
    state: DeliveryState
    attempt_count: int
    reason: str | None
    """How the last attempt ended; None before the first."""
    accepted_at: float
    finished_at: float | None
    superseded_by: str | None
    """The delivery that it was merged into."""
    remark: str | None
    """What the relay itself adds for the reader, such as why this channel gets it."""
    receipt: Mapping[str, str] | None
    digest: str | None
    """The digest that delivered it; before its own message, the one that named it."""


@dataclass(frozen=True, slots=True)
class AttemptRow:
    """One try. Times are unix seconds."""

    number: int
    started_at: float
    seconds: float
    reason: str
    detail: str
    """The provider's answer, or what went wrong."""


@dataclass(frozen=True, slots=True)
class DeliveryDetails:
    """One delivery with its attempts and payload."""

    delivery: DeliverySummary
    attempts: list[AttemptRow]
    """The oldest first."""
    supersedes: list[str]
    """The deliveries that were merged into it; those that retention has pruned are missing."""
    payload: str | None
    """What was last sent, that of its digest included, credentials masked; None before the first attempt."""
    due_at: float
    """When it may be claimed, unix seconds; while it is being sent, when its lease ends."""


@dataclass(frozen=True, slots=True)
class DeliveryPage:
    """Some deliveries, the newest first."""

    deliveries: list[DeliverySummary]
    older: int | None
    """Where the next page begins; None if there is none. It stays correct while deliveries are added."""
    newer: int | None
    """Where the page before this one ends, likewise."""
    examined: Examined | None
    """How far it searched, if it ended before it was full; see `delivery_search`."""


@dataclass(frozen=True, slots=True)
class DeliveryCount:
    """How many deliveries of a channel are in a state, and when the oldest of them was accepted (unix seconds)."""

    channel: str
    state: DeliveryState
    count: int
    oldest_accepted_at: float


@dataclass(frozen=True, slots=True)
class ChannelState:
    """The state of a channel, for all replicas."""

    name: str
    is_down: bool
    """Whether it is down until a person acts."""
    paused_until: float
    """Until then its circuit breaker is open; unix seconds."""
    failures: int
    """Attempts in a row that did not reach it."""


class _SummaryRow(NamedTuple):
    """A delivery with its last event, for `DeliverySummary`."""

    seq: int
    id: str
    event_id: str
    incident_id: str
    receiver: str
    alertname: str
    title: str | None
    service: str | None
    status: str
    channel: str
    state: str
    attempts: int
    reason: str | None
    accepted_at: float
    finished_at: float | None
    superseded_by: str | None
    remark: str | None
    receipt: str | None
    digest: str | None

    def build_summary(self) -> DeliverySummary:
        """As people read it."""
        values = self._asdict()
        del values["seq"]
        values["attempt_count"] = values.pop("attempts")
        values["state"] = DeliveryState(self.state)
        values["receipt"] = json.loads(self.receipt) if self.receipt else None
        return DeliverySummary(**values)


class _CountRow(NamedTuple):
    """For `DeliveryCount`."""

    channel: str
    state: str
    delivery_count: int
    oldest_accepted_at: float


_MAX_EVENT: Final = 256 * 1024
"""Bytes of an event over which it is not read for a person."""
_of = deliveries.c
_of_attempt = attempts.c
_SUMMARIES: Final = RowQuery(
    _SummaryRow,
    select(
        _of.seq,
        _of.id,
        events.c.id.label("event_id"),
        _of.incident_id,
        events.c.receiver,
        events.c.alertname,
        incidents.c.title,
        incidents.c.service,
        events.c.status,
        _of.channel,
        _of.state,
        _of.attempts,
        _of.reason,
        _of.accepted_at,
        _of.finished_at,
        _of.superseded_by,
        _of.remark,
        _of.receipt,
        func.coalesce(_of.digest_id, _of.named_in).label("digest"),
    )
    .join(events, events.c.seq == _of.event_seq)
    .outerjoin(incidents, incidents.c.id == _of.incident_id),
)
_PAGE: Final = _SUMMARIES.where(_of.seq.in_(bindparam("seqs", expanding=True))).order_by(_of.seq.desc())
_SUMMARY: Final = _SUMMARIES.where(_of.id == bindparam("delivery"))
_DUE_AT: Final = select_values(float, _of.due_at).where(_of.id == bindparam("delivery"))
_EVENT: Final = select_values(bytes, events.c.event).where(
    events.c.id == bindparam("event"), func.length(events.c.event) <= _MAX_EVENT
)
_PAYLOAD: Final = select_values(bytes, _of.payload).where(_of.id == bindparam("delivery"), _of.payload.is_not(None))
_DIGEST_PAYLOAD: Final = (
    select_values(bytes, _of.payload).where(_of.digest_id == bindparam("digest"), _of.payload.is_not(None)).limit(1)
)
_ATTEMPTS: Final = (
    RowQuery(
        AttemptRow,
        select(_of_attempt.number, _of_attempt.started_at, _of_attempt.seconds, _of_attempt.reason, _of_attempt.detail),
    )
    .where(_of_attempt.delivery_seq == bindparam("seq"))
    .order_by(_of_attempt.number)
)
_SUPERSEDED: Final = (
    select_values(str, _of.id)
    .where(
        _of.incident_id == bindparam("incident"),
        _of.channel == bindparam("channel"),
        _of.superseded_by == bindparam("delivery"),
    )
    .order_by(_of.seq)
)
_COUNTS: Final = RowQuery(
    _CountRow,
    select(
        _of.channel,
        _of.state,
        func.count().label("delivery_count"),
        func.min(_of.oldest_accepted_at).label("oldest_accepted_at"),
    ).group_by(_of.channel, _of.state),
).where(IS_UNSETTLED)


async def list_deliveries(
    store: Store, filter_: DeliveryFilter, *, limit: int, position: Position = NEWEST
) -> DeliveryPage:
    """Deliveries, the newest first.

    Args:
        store: the outbox.
        filter_: which of them.
        limit: at most so many.
        position: where the page begins.

    Raises:
        StoreUnavailableError: they cannot be read.
    """

    def read(connection: Connection) -> DeliveryPage:
        found = search_deliveries(connection, filter_, position, limit)
        rows = _PAGE.fetch_all(connection, {"seqs": found.seqs}) if found.seqs else []
        return DeliveryPage([row.build_summary() for row in rows], found.older, found.newer, found.examined)

    return await store.read(read)


async def read_delivery(store: Store, delivery_id: str) -> DeliveryDetails | None:
    """One delivery with its attempts and payload; None if there is none. Raises StoreUnavailableError."""
    return await store.read(lambda connection: _read_details(connection, delivery_id))


async def read_event(store: Store, event_id: str) -> Event | None:
    """An event; None if it is not stored, or too large to be shown. Raises StoreUnavailableError."""
    event_json = await store.read(lambda connection: _EVENT.fetch_first(connection, {"event": event_id}))
    try:
        return None if event_json is None else decode_event(event_json)
    except ValueError:  # something else than this program wrote it
        return None


def count_deliveries(connection: Connection) -> list[DeliveryCount]:
    """How many deliveries each channel has in each state of `UNSETTLED`, for `Store.read`; no row where it has none."""
    return [
        DeliveryCount(row.channel, DeliveryState(row.state), row.delivery_count, row.oldest_accepted_at)
        for row in _COUNTS.fetch_all(connection)
    ]


def read_channel_states(connection: Connection) -> list[ChannelState]:
    """The state of each channel that was ever used; for `Store.read`."""
    return [
        ChannelState(row.name, bool(row.is_down), row.paused_until, row.failures)
        for row in CHANNELS.fetch_all(connection)
    ]


def _read_details(connection: Connection, delivery_id: str) -> DeliveryDetails | None:
    values = {"delivery": delivery_id}
    row = _SUMMARY.fetch_first(connection, values)
    if row is None:
        return None
    payload = _PAYLOAD.fetch_first(connection, values)
    if payload is None and row.digest is not None:
        payload = _DIGEST_PAYLOAD.fetch_first(connection, {"digest": row.digest})
    superseded = {**values, "incident": row.incident_id, "channel": row.channel}
    return DeliveryDetails(
        delivery=row.build_summary(),
        attempts=_ATTEMPTS.fetch_all(connection, {"seq": row.seq}),
        supersedes=_SUPERSEDED.fetch_all(connection, superseded),
        payload=None if payload is None else zlib.decompress(payload).decode(),
        due_at=_DUE_AT.fetch_one(connection, values),
    )


def encode_delivery(delivery: DeliverySummary) -> dict[str, Any]:
    """A delivery."""
    times = {
        "accepted_at": format_json_time(delivery.accepted_at),
        "finished_at": format_json_time(delivery.finished_at),
    }
    return {**asdict(delivery), **times}


def encode_details(details: DeliveryDetails) -> dict[str, Any]:
    """A delivery with its attempts, what it stands for, and the payload as sent."""
    return {
        **encode_delivery(details.delivery),
        "supersedes": details.supersedes,
        "attempts": [
            {**asdict(attempt), "started_at": format_json_time(attempt.started_at)} for attempt in details.attempts
        ],
        "payload": details.payload,
    }


def parse_since(text: str, now: float) -> float:
    """RFC 3339, or a duration until `now` such as 1h → unix seconds. Raises ValueError with what was expected."""
    try:
        seconds = parse_duration(text)
    except ValueError:
        seconds = None
    if isinstance(seconds, float) and 0 < seconds < _MAX_DURATION:  # a number without a unit stays a text
        return max(now - seconds, 0.0)
    try:
        return parse_time(text)
    except ValueError:
        raise ValueError(_EXPECTED_SINCE) from None


def parse_time(text: str) -> float:
    """RFC 3339 → unix seconds. Raises ValueError with what was expected."""
    try:
        read = datetime.fromisoformat(text)
        if read.tzinfo is not None:
            return read.astimezone(UTC).timestamp()
    except (ValueError, OverflowError):  # the year 0, or 10000
        pass
    raise ValueError(_EXPECTED_TIME)


def check_text(text: str) -> str:
    """Raises ValueError with what was expected: a database takes only what it could hold itself."""
    if text != clean_for_database(text):
        raise ValueError("expected UTF-8 without a NUL character")
    return text


def parse_state(text: str) -> DeliveryState:
    """Raises ValueError with what was expected."""
    if text not in list(DeliveryState):
        raise ValueError(f"expected one of {', '.join(DeliveryState)}")
    return DeliveryState(text)
