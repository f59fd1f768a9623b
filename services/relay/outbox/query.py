"""What people and metrics read of the outbox; nothing here changes it."""

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from sqlalchemy import Row, Select, func, select

from services.relay.outbox.schema import OPEN, State, attempts, deliveries, events
from services.relay.outbox.store import Store


@dataclass(frozen=True, slots=True)
class Delivery:
    """One event on its way to one channel. Times are unix seconds."""

    id: str
    event_id: str
    incident_id: str
    receiver: str
    alertname: str
    status: str
    """Of the event: firing or resolved."""
    channel: str
    state: State
    attempts: int
    reason: str | None
    """How the last attempt ended; None before the first."""
    accepted_at: float
    finished_at: float | None
    receipt: Mapping[str, str] | None


@dataclass(frozen=True, slots=True)
class Attempt:
    """One try. Times are unix seconds."""

    number: int
    started_at: float
    seconds: float
    reason: str
    detail: str


@dataclass(frozen=True, slots=True)
class Count:
    """How many deliveries of a channel are in a state, and when the oldest of them was accepted (unix seconds)."""

    channel: str
    state: State
    deliveries: int
    oldest: float


_columns = (
    select(deliveries, events.c.id.label("public_event_id"), events.c.receiver, events.c.alertname, events.c.status)
    .join(events, events.c.seq == deliveries.c.event_seq)
)  # fmt: skip
COUNTED = (*OPEN, State.DEAD)
"""What the gauges show: what is still to be made, and what was given up. The rest only grows."""


@dataclass(frozen=True, slots=True)
class Filter:
    """Which deliveries; None stands for all."""

    state: State | None = None
    channel: str | None = None
    alertname: str | None = None
    since: float | None = None
    """Accepted at or after it, unix seconds."""


async def recent(store: Store, wanted: Filter, *, limit: int) -> list[Delivery]:
    """Deliveries, the newest first.

    Args:
        store: the outbox.
        wanted: which of them.
        limit: at most so many.

    Raises:
        StoreUnavailableError: they cannot be read.
    """
    query: Select[*tuple[object, ...]] = _columns.order_by(deliveries.c.seq.desc()).limit(limit)
    for column, value in (
        (deliveries.c.state, wanted.state),
        (deliveries.c.channel, wanted.channel),
        (events.c.alertname, wanted.alertname),
    ):
        if value is not None:
            query = query.where(column == value)
    if wanted.since is not None:
        query = query.where(deliveries.c.accepted_at >= wanted.since)
    return await store.run(lambda connection: [_delivery(row) for row in connection.execute(query)])


async def one(store: Store, delivery_id: str) -> tuple[Delivery, list[Attempt]] | None:
    """A delivery and its attempts, the oldest first; None where there is none. Raises StoreUnavailableError."""
    query = _columns.where(deliveries.c.id == delivery_id)
    tries = (
        select(attempts.c.number, attempts.c.started_at, attempts.c.seconds, attempts.c.reason, attempts.c.detail)
        .join(deliveries, deliveries.c.seq == attempts.c.delivery_seq)
        .where(deliveries.c.id == delivery_id)
        .order_by(attempts.c.number)
    )
    row, tried = await store.run(
        lambda connection: (connection.execute(query).first(), connection.execute(tries).all())
    )
    return None if row is None else (_delivery(row), [Attempt(*attempt) for attempt in tried])


def counts(store: Store, seconds: float) -> list[Count]:
    """How many deliveries each channel has in each of `COUNTED`; those with none are left out.

    Blocks, for `seconds` at most: for a thread other than the event loop's.

    Raises:
        StoreUnavailableError: they cannot be read.
        TimeoutError: not in time.
    """
    state = deliveries.c.state
    query = (
        select(deliveries.c.channel, state, func.count(), func.min(deliveries.c.accepted_at))
        .where(state.in_([literal.value for literal in COUNTED]))
        .group_by(deliveries.c.channel, state)
    )
    rows = store.submit(lambda connection: connection.execute(query).all()).result(seconds)
    return [Count(channel, State(state), number, oldest) for channel, state, number, oldest in rows]


async def refused(store: Store, reasons: Collection[str]) -> set[str]:
    """The channels that hold an unfinished delivery whose last attempt ended for one of `reasons`.

    Raises:
        StoreUnavailableError: they cannot be read.
    """
    query = (
        select(deliveries.c.channel)
        .distinct()
        .where(deliveries.c.finished_at.is_(None), deliveries.c.reason.in_([str(reason) for reason in reasons]))
    )
    return await store.run(lambda connection: set(connection.execute(query).scalars()))


def _delivery(row: Row[*tuple[object, ...]]) -> Delivery:
    return Delivery(
        id=row.id,
        event_id=row.public_event_id,
        incident_id=row.incident_id,
        receiver=row.receiver,
        alertname=row.alertname,
        status=row.status,
        channel=row.channel,
        state=State(row.state),
        attempts=row.attempts,
        reason=row.reason,
        accepted_at=row.accepted_at,
        finished_at=row.finished_at,
        receipt=json.loads(row.receipt) if row.receipt else None,
    )
