"""What people read of channels: whether each can be used now, what waits for it, and what happened last.

No query changes the outbox or waits for a writer, and none searches what was delivered.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Final, NamedTuple

from sqlalchemy import Connection, bindparam, func, literal_column, select

from services.relay.outbox.channel_state.breaker import FAILURE_THRESHOLD, compute_pauses
from services.relay.outbox.channel_state.channel_checks import CheckKind, CheckRow, list_checks
from services.relay.outbox.queries.delivery_list import count_deliveries
from services.relay.outbox.rows import CHANNELS, ChannelRow, RowQuery, select_values
from services.relay.outbox.tables import UNFINISHED, WAITING, DeliveryState, deliveries


class BreakerState(StrEnum):
    """Of a circuit breaker."""

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
    """The last attempt that failed."""

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
    """An overview of each channel, in their order; for `Store.read`.

    Args:
        connection: to read with.
        names: of channels, those that were never used included.
        now: unix seconds.
    """
    rows = {row.name: row for row in CHANNELS.fetch_all(connection)}
    counts: dict[str, dict[DeliveryState, tuple[int, float]]] = {}
    for each in count_deliveries(connection):
        counts.setdefault(each.channel, {})[each.state] = each.count, each.oldest_accepted_at
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
    row = row or ChannelRow(name, 0.0, 0.0, 0.0, 0, 0)
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
