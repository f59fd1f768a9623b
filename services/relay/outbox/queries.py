"""What people and metrics read of the outbox; nothing here changes it, and nothing here waits for who does.

A delivery as JSON, and what is asked for as it is written: the same for the API and for the command line.
"""

import json
import zlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Connection, Row, func, select

from services.relay.outbox import tables
from services.relay.outbox.engine.store import Store
from services.relay.outbox.tables import IS_UNSETTLED, State, attempts, clean_for_database, deliveries, events

_of = deliveries.c
_select_deliveries = (
    select(*(column for column in _of if column is not _of.payload), events.c.id.label("public_event_id"))
    .add_columns(events.c.receiver, events.c.alertname, events.c.status)
    .join(events, events.c.seq == _of.event_seq)
)


@dataclass(frozen=True, slots=True)
class DeliveryRow:
    """One event, or several merged, on the way to one channel. Times are unix seconds."""

    id: str
    event_id: str
    incident_id: str
    receiver: str
    alertname: str
    status: str
    """Of the event: firing or resolved."""
    channel: str
    state: State
    attempt_count: int
    reason: str | None
    """How the last attempt ended; None before the first."""
    accepted_at: float
    finished_at: float | None
    superseded_by: str | None
    """The delivery that tells it instead."""
    remark: str | None
    """What the relay itself has to say to the reader, such as why it comes here."""
    receipt: Mapping[str, str] | None


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
    """All that is known of one delivery."""

    delivery: DeliveryRow
    attempts: list[AttemptRow]
    """The oldest first."""
    supersedes: list[str]
    """The deliveries that it tells of, too; those that retention has taken are missing."""
    payload: str | None
    """What was last sent, credentials masked; None before the first attempt."""


@dataclass(frozen=True, slots=True)
class DeliveryPage:
    """Some deliveries, the newest first."""

    deliveries: list[DeliveryRow]
    before: int | None
    """Where the next page begins; None where there is none. It stays right while deliveries are added."""


@dataclass(frozen=True, slots=True)
class DeliveryCount:
    """How many deliveries of a channel are in a state, and when the oldest of them was accepted (unix seconds)."""

    channel: str
    state: State
    count: int
    oldest_accepted_at: float


@dataclass(frozen=True, slots=True)
class ChannelState:
    """How a channel stands with all replicas."""

    name: str
    is_down: bool
    """Whether it refuses everything until a person acts."""
    paused_until: float
    """Its breaker lets nothing be claimed before; unix seconds."""
    failures: int
    """Attempts in a row that did not reach it."""


@dataclass(frozen=True, slots=True)
class DeliveryFilter:
    """Which deliveries; None stands for all."""

    state: State | None = None
    channel: str | None = None
    alertname: str | None = None
    since: float | None = None
    """Accepted at or after it, unix seconds."""


async def list_deliveries(
    store: Store, filter_: DeliveryFilter, *, limit: int, before: int | None = None
) -> DeliveryPage:
    """Deliveries, the newest first.

    Args:
        store: the outbox.
        filter_: which of them.
        limit: at most so many.
        before: the `before` of the page that came before this one; None begins with the newest.

    Raises:
        StoreUnavailableError: they cannot be read.
    """
    query = _select_deliveries.order_by(_of.seq.desc()).limit(limit + 1)
    for column, value in (
        (_of.state, filter_.state),
        (_of.channel, filter_.channel),
        (events.c.alertname, filter_.alertname),
    ):
        if value is not None:
            query = query.where(column == value)
    if filter_.since is not None:
        query = query.where(_of.accepted_at >= filter_.since)
    if before is not None:
        query = query.where(_of.seq < before)
    rows = await store.read(lambda connection: connection.execute(query).all())
    shown = rows[:limit]
    return DeliveryPage([_build_delivery(row) for row in shown], shown[-1].seq if len(rows) > limit else None)


async def read_delivery(store: Store, delivery_id: str) -> DeliveryDetails | None:
    """All that is known of a delivery; None where there is none. Raises StoreUnavailableError."""
    return await store.read(lambda connection: _read_details(connection, delivery_id))


def count_deliveries(connection: Connection) -> list[DeliveryCount]:
    """How many deliveries each channel has in each of `COUNTED`, for `Store.read`; those with none are left out."""
    query = (
        select(_of.channel, _of.state, func.count(), func.min(_of.oldest_accepted_at))
        .where(IS_UNSETTLED)
        .group_by(_of.channel, _of.state)
    )
    rows = connection.execute(query)
    return [DeliveryCount(channel, State(state), number, oldest) for channel, state, number, oldest in rows]


async def count_dead(store: Store, channel: str) -> int:
    """How many deliveries of a channel were given up. Raises StoreUnavailableError."""
    of_channel = _of.channel == channel, _of.state == State.DEAD, IS_UNSETTLED
    query = select(func.count()).select_from(deliveries).where(*of_channel)
    return await store.read(lambda connection: connection.execute(query).scalar_one())


def read_channel_states(connection: Connection) -> list[ChannelState]:
    """How each channel stands that was ever tried; for `Store.read`."""
    columns = tables.channels.c
    query = select(columns.name, columns.is_down, columns.paused_until, columns.failures)
    return [
        ChannelState(name, bool(is_down), paused_until, failures)
        for name, is_down, paused_until, failures in connection.execute(query)
    ]


def _read_details(connection: Connection, delivery_id: str) -> DeliveryDetails | None:
    row = connection.execute(_select_deliveries.add_columns(_of.payload).where(_of.id == delivery_id)).first()
    if row is None:
        return None
    of_try = attempts.c
    tried = connection.execute(
        select(of_try.number, of_try.started_at, of_try.seconds, of_try.reason, of_try.detail)
        .where(of_try.delivery_seq == row.seq)
        .order_by(of_try.number)
    )
    superseded = connection.execute(
        select(_of.id)
        .where(_of.incident_id == row.incident_id, _of.channel == row.channel, _of.superseded_by == delivery_id)
        .order_by(_of.seq)
    )
    return DeliveryDetails(
        delivery=_build_delivery(row),
        attempts=[AttemptRow(*each) for each in tried],
        supersedes=list(superseded.scalars()),
        payload=None if row.payload is None else zlib.decompress(row.payload).decode(),
    )


def _build_delivery(row: Row[*tuple[object, ...]]) -> DeliveryRow:
    return DeliveryRow(
        id=row.id,
        event_id=row.public_event_id,
        incident_id=row.incident_id,
        receiver=row.receiver,
        alertname=row.alertname,
        status=row.status,
        channel=row.channel,
        state=State(row.state),
        attempt_count=row.attempts,
        reason=row.reason,
        accepted_at=row.accepted_at,
        finished_at=row.finished_at,
        superseded_by=row.superseded_by,
        remark=row.remark,
        receipt=json.loads(row.receipt) if row.receipt else None,
    )


def encode_delivery(delivery: DeliveryRow) -> dict[str, Any]:
    """A delivery."""
    times = {"accepted_at": format_time(delivery.accepted_at), "finished_at": format_time(delivery.finished_at)}
    return {**asdict(delivery), **times}


def encode_details(details: DeliveryDetails) -> dict[str, Any]:
    """A delivery with its attempts, what it stands for, and the payload as sent."""
    return {
        **encode_delivery(details.delivery),
        "supersedes": details.supersedes,
        "attempts": [
            {**asdict(attempt), "started_at": format_time(attempt.started_at)} for attempt in details.attempts
        ],
        "payload": details.payload,
    }


def format_time(seconds: float | None) -> str | None:
    """Unix seconds → RFC 3339 in UTC with milliseconds."""
    if seconds is None:
        return None
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def parse_time(text: str) -> float:
    """RFC 3339 → unix seconds. Raises ValueError with what was expected."""
    try:
        read = datetime.fromisoformat(text)
    except ValueError:
        read = None
    if read is None or read.tzinfo is None:
        raise ValueError("expected a time with its zone, such as 2026-11-24T22:46:10Z")
    return read.timestamp()


def check_text(text: str) -> str:
    """Raises ValueError with what was expected: a database takes only what it could hold itself."""
    if text != clean_for_database(text):
        raise ValueError("expected UTF-8 without a NUL character")
    return text


def parse_state(text: str) -> State:
    """Raises ValueError with what was expected."""
    if text not in list(State):
        raise ValueError(f"expected one of {', '.join(State)}")
    return State(text)
