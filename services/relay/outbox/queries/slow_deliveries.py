"""The slowest deliveries of a period, each with what is stored of its delay: its attempts, and those of others.

Each query reads a bounded number of rows, however many the outbox has. None changes the outbox or waits for a writer.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

from sqlalchemy import ColumnElement, Connection, bindparam, func, select, union_all

from services.relay.outbox.queries.delivery_figures import IS_DEAD, IS_DELIVERED, TIME_TO_DELIVER, Period, is_within
from services.relay.outbox.rows import RowQuery
from services.relay.outbox.tables import attempts, deliveries, events
from services.relay.send_error import SendReason

MAX_SLOW: Final = 20
_MAX_MERGED: Final = 50
"""Deliveries of the same incident whose attempts are read: those that were merged into it."""
_MAX_ATTEMPTS: Final = 1000
_MAX_OTHERS: Final = 200
"""Other deliveries on the channel whose attempts are read."""
MIN_WAIT: Final = 1.0
"""Seconds before the first attempt of which a cause is looked for."""
_NOT_OF_THE_CHANNEL: Final = [SendReason.OK.value, SendReason.REJECTED.value, SendReason.INTERNAL.value]
"""How attempts end that pause no channel."""
MAX_COUNTED: Final = 1000
"""Other deliveries that are counted."""


class SlowAttempt(NamedTuple):
    """One try of a delivery, or of one that was merged into it."""

    started_at: float
    seconds: float
    reason: str
    detail: str


class SlowDelivery(NamedTuple):
    """A delivery that took long, and what is known of the reason. Times are unix seconds."""

    id: str
    incident_id: str
    channel: str
    alertname: str
    status: str
    accepted_at: float
    """When its oldest event was accepted."""
    delivered_at: float
    is_digest: bool
    """Whether a digest delivered or named it."""
    is_restored: bool
    """Whether it waited in an outbox that was restored from a backup."""
    attempts: Sequence[SlowAttempt]
    """The oldest first; some are of deliveries that were merged into it."""
    blocked: float = 0.0
    """Seconds of `waited`, from the beginning, in which nothing else was delivered on its channel."""
    other_failures: Mapping[str, int] = {}
    """Of attempts of other deliveries on its channel in these seconds, by reason."""
    others_delivered: int = 0
    """On its channel, in the rest of `waited`; at most `MAX_COUNTED`."""

    @property
    def seconds(self) -> float:
        """From acceptance to receipt."""
        return self.delivered_at - self.accepted_at

    @property
    def waited(self) -> float:
        """Seconds before its first attempt."""
        if not self.attempts:
            return self.seconds
        return min(max(self.attempts[0].started_at - self.accepted_at, 0.0), self.seconds)


class _SlowRow(NamedTuple):
    seq: int
    id: str
    incident_id: str
    episode: int
    channel: str
    alertname: str
    status: str
    oldest_accepted_at: float
    finished_at: float | None
    digest: str | None
    maybe_delivered_up_to: int | None


class _MomentRow(NamedTuple):
    at: float | None


class _FailureRow(NamedTuple):
    reason: str
    attempt_count: int


_of = deliveries.c
_attempt = attempts.c
_slowest = (
    select(_of.seq)
    .where(IS_DELIVERED, is_within(_of.finished_at))
    .order_by(TIME_TO_DELIVER.desc(), _of.seq)
    .limit(MAX_SLOW)
    .subquery()
)
_SLOWEST: Final = RowQuery(
    _SlowRow,
    select(
        _of.seq,
        _of.id,
        _of.incident_id,
        _of.episode,
        _of.channel,
        events.c.alertname,
        events.c.status,
        _of.oldest_accepted_at,
        _of.finished_at,
        func.coalesce(_of.digest_id, _of.named_in).label("digest"),
        _of.maybe_delivered_up_to,
    )
    .join(_slowest, _slowest.c.seq == _of.seq)
    .join(events, events.c.seq == _of.event_seq),
).order_by(TIME_TO_DELIVER.desc(), _of.seq)
_merged = (
    select(_of.seq)
    .where(
        _of.incident_id == bindparam("incident_id"),
        _of.episode == bindparam("episode"),
        _of.channel == bindparam("channel"),
        _of.seq <= bindparam("seq"),
    )
    .order_by(_of.seq.desc())
    .limit(_MAX_MERGED)
    .subquery()
)
_ATTEMPTS: Final = (
    RowQuery(
        SlowAttempt,
        select(_attempt.started_at, _attempt.seconds, _attempt.reason, _attempt.detail).join(
            _merged, _merged.c.seq == _attempt.delivery_seq
        ),
    )
    .where(_attempt.started_at.between(bindparam("oldest_accepted_at"), bindparam("finished_at")))
    .order_by(_attempt.started_at)
    .limit(_MAX_ATTEMPTS)
)


_on_channel = _of.channel == bindparam("channel")
_is_other = _of.seq != bindparam("seq")
_FIRST_OTHER: Final = RowQuery(
    _MomentRow, select(func.min(_of.finished_at).label("at")).where(IS_DELIVERED, _on_channel, _is_other)
).where(is_within(_of.finished_at))
_COUNT_OTHERS: Final = RowQuery(
    int,
    select(func.count()).select_from(
        select(_of.seq)
        .where(IS_DELIVERED, _on_channel, _is_other, is_within(_of.finished_at))
        .limit(MAX_COUNTED)
        .subquery()
    ),
)


def _select_ended(state: ColumnElement[bool]) -> Any:
    """The first deliveries of the channel that ended from `since` on: those that were tried in the seconds after it."""
    ended = select(_of.seq).where(state, _on_channel, _is_other, _of.finished_at >= bindparam("since"))
    return select(ended.order_by(_of.finished_at).limit(_MAX_OTHERS).subquery().c.seq)


_others = union_all(_select_ended(IS_DELIVERED), _select_ended(IS_DEAD)).subquery()
_OTHER_FAILURES: Final = RowQuery(
    _FailureRow,
    select(_attempt.reason, func.count().label("attempt_count"))
    .join(_others, _others.c.seq == _attempt.delivery_seq)
    .group_by(_attempt.reason),
).where(_attempt.reason.not_in(_NOT_OF_THE_CHANNEL), is_within(_attempt.started_at))


def read_slowest(connection: Connection, period: Period) -> list[SlowDelivery]:
    """The slowest deliveries of the period, the slowest first."""
    return [_read_delay(connection, row) for row in _SLOWEST.fetch_all(connection, period._asdict())]


def _read_delay(connection: Connection, row: _SlowRow) -> SlowDelivery:
    start, end = row.oldest_accepted_at, row.finished_at or row.oldest_accepted_at
    delivery = SlowDelivery(
        row.id,
        row.incident_id,
        row.channel,
        row.alertname,
        row.status,
        start,
        end,
        row.digest is not None,
        row.maybe_delivered_up_to is not None,
        _ATTEMPTS.fetch_all(connection, row._asdict()),
    )
    if delivery.waited < MIN_WAIT:
        return delivery
    values = {"channel": row.channel, "seq": row.seq, "since": start, "until": start + delivery.waited}
    first = _FIRST_OTHER.fetch_one(connection, values).at
    blocked = delivery.waited if first is None else first - start
    failures = _OTHER_FAILURES.fetch_all(connection, {**values, "until": start + blocked})
    return delivery._replace(
        blocked=blocked,
        other_failures={failure.reason: failure.attempt_count for failure in failures},
        others_delivered=0 if first is None else _COUNT_OTHERS.fetch_one(connection, values),
    )
