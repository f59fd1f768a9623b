"""All that the first page of the console reads of the outbox, as of one moment; and how each channel is.

No query changes the outbox or waits for a writer, and none searches what was delivered.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final, NamedTuple

from sqlalchemy import Connection, bindparam, func, literal_column, select

from services.relay.channel_health.store import CheckKind, CheckRow, list_checks
from services.relay.deliveries.queries import count_deliveries
from services.relay.incidents.queries import IncidentFilter, IncidentSummary, read_incidents
from services.relay.model import Status
from services.relay.outbox.breaker import FAILURE_THRESHOLD, compute_pauses
from services.relay.outbox.database import read_clock
from services.relay.outbox.heartbeats import read_heartbeats, read_last_seen
from services.relay.outbox.tables import (
    CHANNELS,
    UNFINISHED,
    WAITING,
    ChannelRow,
    DeliveryState,
    deliveries,
    events,
    incidents,
    quarantine,
    watchdogs,
)
from services.relay.proofs.queries import Standing, read_standings
from shared.sql.rows import RowQuery, select_values


class BreakerState(StrEnum):
    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half-open"
    """Its pause is over: the next delivery tries."""


class LastSuccess(NamedTuple):
    """The last delivery that a channel's provider accepted."""

    id: str
    finished_at: float | None
    """Unix seconds."""


@dataclass(frozen=True, slots=True)
class LastFailure:
    at: float
    """Unix seconds."""
    reason: str
    detail: str
    """The provider's answer, or what went wrong."""


@dataclass(frozen=True, slots=True)
class ChannelOverview:
    """A channel, for all replicas. Times are unix seconds."""

    name: str
    is_down: bool
    """Whether it is down until a person acts."""
    reason: str | None
    """How the last attempt that did not reach it ended; None since one did."""
    breaker: BreakerState
    failures: int
    """Attempts in a row that did not reach it."""
    paused_until: float | None
    """The end of the breaker's pause; None if it does not pause."""
    retry_after_until: float | None
    """The end of the pause that the provider asked for; None if there is none."""
    next_token_at: float
    """When its rate limit has the next token, once it has none left."""
    waiting: int
    """Deliveries that wait."""
    sending: int
    dead: int
    """Dead letters."""
    oldest_accepted_at: float | None
    """When the oldest was accepted that waits or is being sent."""
    due_at: float | None
    """When the next one that waits is due."""
    last_success: LastSuccess | None
    last_failure: LastFailure | None
    last_check: CheckRow | None
    last_test: CheckRow | None


_delivery = deliveries.c
_LAST_SUCCESS: Final = (
    RowQuery(LastSuccess, select(_delivery.id, _delivery.finished_at))
    .where(
        _delivery.state == literal_column("'delivered'"),  # as the index `deliveries_delivered` has it
        _delivery.channel == bindparam("channel"),
    )
    .order_by(_delivery.finished_at.desc())
    .limit(1)
)
_DUE_AT: Final = (
    select_values(float, _delivery.due_at)
    .where(
        _delivery.finished_at.is_(None),
        _delivery.channel == bindparam("channel"),
        _delivery.state.in_(bindparam("waiting", [*map(str, WAITING)], expanding=True)),
    )
    .order_by(_delivery.due_at)
    .limit(1)
)


class _DeliveredRow(NamedTuple):
    """How much of what a channel delivered is still in the outbox."""

    channel: str
    delivered: int


_DELIVERED: Final = RowQuery(
    _DeliveredRow, select(_delivery.channel, func.count().label("delivered")).group_by(_delivery.channel)
).where(_delivery.state == literal_column("'delivered'"))


def read_channel_overviews(connection: Connection, names: Iterable[str], now: float) -> list[ChannelOverview]:
    """An overview of each channel, in their order; for `Store.read`."""
    rows = {row.name: row for row in CHANNELS.fetch_all(connection)}
    counts: dict[str, dict[DeliveryState, tuple[int, float]]] = {}
    for each in count_deliveries(connection):
        counts.setdefault(each.channel, {})[DeliveryState(each.state)] = each.delivery_count, each.oldest_accepted_at
    return [_read_overview(connection, name, rows.get(name), counts.get(name, {}), now) for name in names]


def count_delivered(connection: Connection) -> Mapping[str, int]:
    """How many deliveries of each channel the outbox still has as delivered; for `Store.read`. Reads a whole index."""
    return {row.channel: row.delivered for row in _DELIVERED.fetch_all(connection)}


def _read_overview(
    connection: Connection,
    name: str,
    row: ChannelRow | None,
    counts: Mapping[DeliveryState, tuple[int, float]],
    now: float,
) -> ChannelOverview:
    row = row or ChannelRow(name, 0.0, 0.0, 0, 0)
    pause, retry_after = compute_pauses(row, now)
    (last_check, last_test) = (next(iter(list_checks(connection, name, kind, 1)), None) for kind in CheckKind)
    return ChannelOverview(
        name=name,
        is_down=bool(row.is_down),
        reason=row.reason,
        breaker=_find_breaker_state(row, pause),
        failures=row.failures,
        paused_until=now + pause if pause else None,
        retry_after_until=now + retry_after if retry_after else None,
        next_token_at=row.next_token_at,
        waiting=sum(counts.get(state, (0, 0.0))[0] for state in WAITING),
        sending=counts.get(DeliveryState.SENDING, (0, 0.0))[0],
        dead=counts.get(DeliveryState.DEAD, (0, 0.0))[0],
        oldest_accepted_at=min((counts[state][1] for state in UNFINISHED if state in counts), default=None),
        due_at=_DUE_AT.fetch_first(connection, {"channel": name}),
        last_success=_LAST_SUCCESS.fetch_first(connection, {"channel": name}),
        last_failure=(
            LastFailure(row.failed_at, row.failed_reason or "", row.failed_detail or "") if row.failed_at else None
        ),
        last_check=last_check,
        last_test=last_test,
    )


def _find_breaker_state(row: ChannelRow, pause: float) -> BreakerState:
    if pause:
        return BreakerState.OPEN
    return BreakerState.HALF_OPEN if row.failures >= FAILURE_THRESHOLD or row.is_down else BreakerState.CLOSED


@dataclass(frozen=True, slots=True)
class OpenIncidents:
    """The worst ones, and how many there are in all."""

    incidents: Sequence[IncidentSummary]
    """The worst first; of one severity, the newest first."""
    counts: Mapping[str, int]
    """How many there are of each severity that has any."""
    unacknowledged_counts: Mapping[str, int]
    """How many of them nobody has acknowledged."""

    @property
    def total(self) -> int:
        return sum(self.counts.values())

    @property
    def unacknowledged(self) -> int:
        return sum(self.unacknowledged_counts.values())


class OpenCount(NamedTuple):
    """How many incidents of a severity are open; the empty one is of those that have no usual one."""

    severity: str
    open_count: int
    acknowledged_count: int


_of = incidents.c
_COUNTS: Final = RowQuery(
    OpenCount,
    select(
        _of.severity,
        func.count().label("open_count"),
        func.count(_of.acknowledged_by).label("acknowledged_count"),
    ).group_by(_of.severity),
).where(_of.is_open == literal_column("1"))  # as the index `incidents_open_by_severity` has it


def count_open_incidents(connection: Connection) -> list[OpenCount]:
    """For `Store.read`; no row of a severity that no open incident has."""
    return _COUNTS.fetch_all(connection)


def read_open_incidents(connection: Connection, clock: Callable[[], float], most: int) -> OpenIncidents:
    """At most so many open incidents, and the counts of all; for `Store.read`."""
    rows = count_open_incidents(connection)
    return OpenIncidents(
        read_incidents(connection, clock, IncidentFilter(status=Status.FIRING), most).incidents,
        {row.severity: row.open_count for row in rows},
        {row.severity: row.open_count - row.acknowledged_count for row in rows},
    )


_NEWEST: Final = 100
"""Events that are searched for one that came as a webhook: an incident of the relay's own has none."""


class WebhookTimes(NamedTuple):
    """What is known of the webhooks that came."""

    accepted_at: float | None
    """Unix seconds, by the database's clock; None where none has come, or retention left none."""
    quarantined: int


def _read_time(at: float | None) -> float | None:
    return at


_newest = (
    select(events.c.accepted_at, func.length(events.c.body).label("size"))
    .order_by(events.c.seq.desc())
    .limit(_NEWEST)
    .subquery()
)
_ACCEPTED: Final = RowQuery(_read_time, select(func.max(_newest.c.accepted_at)).where(_newest.c.size > 0))
_HEARTBEAT: Final = RowQuery(_read_time, select(func.max(watchdogs.c.heartbeat_at)))
_QUARANTINED: Final = RowQuery(int, select(func.count()).select_from(quarantine))


def read_webhook_times(connection: Connection) -> WebhookTimes:
    """For `Store.read`."""
    accepted = [_ACCEPTED.fetch_one(connection), _HEARTBEAT.fetch_one(connection)]
    newest = max((at for at in accepted if at is not None), default=None)
    return WebhookTimes(newest, _QUARANTINED.fetch_one(connection))


@dataclass(frozen=True, slots=True)
class Overview:
    """The state of the relay. Times are unix seconds by the database's clock."""

    now: float
    channels: Sequence[ChannelOverview]
    incidents: OpenIncidents
    webhooks: WebhookTimes
    heartbeats: Mapping[str, float | None]
    """The last heartbeat of each watchdog; None before the first."""
    heartbeats_awaited: Mapping[str, float]
    """The same, or since when one is awaited."""
    proofs: Sequence[Standing]
    """How far each channel is proven."""


EMPTY_OVERVIEW: Final = Overview(0.0, (), OpenIncidents((), {}, {}), WebhookTimes(None, 0), {}, {}, ())
"""Before the outbox could be read."""


def read_overview(
    connection: Connection, clock: Callable[[], float], channels: Sequence[str], max_incidents: int, proof_every: float
) -> Overview:
    """For `Store.read`."""
    now = read_clock(connection, clock)
    return Overview(
        now,
        read_channel_overviews(connection, channels, now),
        read_open_incidents(connection, clock, max_incidents),
        read_webhook_times(connection),
        read_heartbeats(connection),
        read_last_seen(connection),
        read_standings(connection, channels, now, proof_every) if proof_every else (),
    )
