"""Figures of the deliveries of a period: how many, how fast, on which channel, and what was never delivered.

A delivery belongs to the period in which it was delivered or given up. Its time goes from the acceptance of the oldest
event in it to its receipt; of one that a retry, a fallback, an escalation or a person added later, from then on. A
quantile is the smallest time that so many percent do not exceed: exact, and computed by the database. No query changes
the outbox or waits for a writer.
"""

from collections.abc import Iterable, Mapping
from typing import Any, Final, NamedTuple

from sqlalchemy import ColumnElement, Connection, Select, and_, bindparam, case, func, literal_column, select

from services.relay.outbox.rows import RowQuery
from services.relay.outbox.tables import IS_UNSETTLED, UNFINISHED, attempts, deliveries, quarantine


class Period(NamedTuple):
    """From `since` until before `until`, unix seconds."""

    since: float
    until: float


class Quantiles(NamedTuple):
    """Of times, in seconds; None of no times."""

    p50: float | None = None
    p95: float | None = None
    worst: float | None = None


class ChannelFigures(NamedTuple):
    """One channel in a period."""

    channel: str
    delivered: int
    dead: int
    waiting: int
    """Accepted in the period, and still to be sent now."""
    time_to_deliver: Quantiles


class DeadGroup(NamedTuple):
    """What was given up in a period on a channel for a reason, and was not sent again."""

    channel: str
    reason: str | None
    """How the last attempt ended; None without an attempt."""
    delivery_count: int
    last_id: str
    """The delivery that was given up last."""
    last_at: float
    last_answer: str | None
    """The provider's, to its last attempt."""


class RefusedGroup(NamedTuple):
    """Webhooks of a period that were not accepted, for one reason."""

    code: int
    reason: str
    webhook_count: int
    last_at: float


class _DeliveredRow(NamedTuple):
    channel: str
    time_count: int
    p50: float
    p95: float
    worst: float


class _DeadRow(NamedTuple):
    channel: str
    reason: str | None
    delivery_count: int
    last_seq: int
    last_at: float


class _LastDeadRow(NamedTuple):
    seq: int
    id: str
    last_answer: str


class _WaitingRow(NamedTuple):
    channel: str
    delivery_count: int


_of = deliveries.c
# In literals, as the indexes `deliveries_delivered` and `deliveries_dead` have it.
IS_DELIVERED: Final = _of.state == literal_column("'delivered'")
IS_DEAD: Final = and_(_of.state == literal_column("'dead'"), _of.finished_at.is_not(None))
TIME_TO_DELIVER: Final = _of.finished_at - _of.oldest_accepted_at


def is_within(moment: ColumnElement[Any]) -> ColumnElement[bool]:
    """Whether a time is in the period of the bound parameters `since` and `until`."""
    return and_(moment >= bindparam("since"), moment < bindparam("until"))


def select_quantiles(times: Select[Any], *groups: str) -> Select[*tuple[Any, ...]]:
    """For each group: its columns, how many times there are, and their quantiles.

    Args:
        times: with a column `seconds`.
        groups: the names of its other columns.
    """
    of = times.subquery().c
    share = func.cume_dist().over(partition_by=[of[name] for name in groups] or None, order_by=of.seconds)
    ranked = select(*(of[name] for name in groups), of.seconds, share.label("share")).subquery().c
    return select(
        *(ranked[name] for name in groups),
        func.count().label("time_count"),
        func.min(case((ranked.share >= literal_column("0.5"), ranked.seconds))).label("p50"),
        func.min(case((ranked.share >= literal_column("0.95"), ranked.seconds))).label("p95"),
        func.max(ranked.seconds).label("worst"),
    ).group_by(*(ranked[name] for name in groups))


_DELIVERED: Final = RowQuery(
    _DeliveredRow,
    select_quantiles(
        select(_of.channel, TIME_TO_DELIVER.label("seconds")).where(IS_DELIVERED, is_within(_of.finished_at)),
        "channel",
    ),
)
_DEAD: Final = RowQuery(
    _DeadRow,
    select(
        _of.channel,
        _of.reason,
        func.count().label("delivery_count"),
        func.max(_of.seq).label("last_seq"),
        func.max(_of.finished_at).label("last_at"),
    )
    .where(IS_DEAD, is_within(_of.finished_at))
    .group_by(_of.channel, _of.reason),
)
_any_attempt = attempts.alias("any_attempt").c
_last_attempt = (
    select(func.max(_any_attempt.number)).where(_any_attempt.delivery_seq == _of.seq).correlate(deliveries)
).scalar_subquery()
_LAST_DEAD: Final = RowQuery(
    _LastDeadRow,
    select(_of.seq, _of.id, func.coalesce(attempts.c.detail, "").label("last_answer"))
    .select_from(deliveries)
    .outerjoin(attempts, and_(attempts.c.delivery_seq == _of.seq, attempts.c.number == _last_attempt))
    .where(_of.seq.in_(bindparam("seqs", expanding=True))),
)
_WAITING: Final = RowQuery(
    _WaitingRow,
    select(_of.channel, func.count().label("delivery_count"))
    .where(IS_UNSETTLED, _of.state.in_([*map(str, UNFINISHED)]), is_within(_of.oldest_accepted_at))
    .group_by(_of.channel),
)
_REFUSED: Final = RowQuery(
    RefusedGroup,
    select(
        quarantine.c.code,
        quarantine.c.reason,
        func.count().label("webhook_count"),
        func.max(quarantine.c.received_at).label("last_at"),
    )
    .where(is_within(quarantine.c.received_at))
    .group_by(quarantine.c.code, quarantine.c.reason),
).order_by(func.count().desc(), quarantine.c.code, quarantine.c.reason)


def read_dead(connection: Connection, period: Period) -> list[DeadGroup]:
    """What was given up and not sent again, the most frequent first."""
    rows = _DEAD.fetch_all(connection, period._asdict())
    found = _LAST_DEAD.fetch_all(connection, {"seqs": [row.last_seq for row in rows]})
    last = {row.seq: row for row in found}
    groups = [
        DeadGroup(
            row.channel,
            row.reason,
            row.delivery_count,
            last[row.last_seq].id,
            row.last_at,
            last[row.last_seq].last_answer or None,
        )
        for row in rows
        if row.last_seq in last  # PostgreSQL: retention may delete it between two statements
    ]
    return sorted(groups, key=lambda group: (-group.delivery_count, group.channel, group.reason or ""))


def read_channels(
    connection: Connection, period: Period, configured: Iterable[str], dead: Iterable[DeadGroup]
) -> list[ChannelFigures]:
    """Each configured channel, and each other one with deliveries in the period, by name."""
    delivered = {row.channel: row for row in _DELIVERED.fetch_all(connection, period._asdict())}
    waiting: Mapping[str, int] = dict(_WAITING.fetch_all(connection, period._asdict()))
    given_up: dict[str, int] = {}
    for group in dead:
        given_up[group.channel] = given_up.get(group.channel, 0) + group.delivery_count
    return [
        ChannelFigures(
            name,
            delivered[name].time_count if name in delivered else 0,
            given_up.get(name, 0),
            waiting.get(name, 0),
            Quantiles(*delivered[name][2:]) if name in delivered else Quantiles(),
        )
        for name in sorted({*configured, *delivered, *waiting, *given_up})
    ]


def read_refused(connection: Connection, period: Period) -> list[RefusedGroup]:
    """The webhooks of the period that were not accepted and are still in quarantine, the most frequent first."""
    return _REFUSED.fetch_all(connection, period._asdict())
