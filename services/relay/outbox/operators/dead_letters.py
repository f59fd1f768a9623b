"""Dead letters: how many a channel has for each reason, the newest of each, and which of them a retry takes.

The queries go by `deliveries_dead_groups`, or by `deliveries_unsettled` for all of a channel: both have only what was
not delivered, in the order of acceptance.
"""

from dataclasses import dataclass
from typing import Final, NamedTuple

from sqlalchemy import ColumnElement, Connection, bindparam, func, literal_column, select

from services.relay.outbox.rows import DELIVERIES, DeliveryRow, RowQuery, select_values
from services.relay.outbox.tables import IS_UNSETTLED, attempts, deliveries, events, incidents

NO_ATTEMPT: Final = "no_attempt"
"""The reason of a delivery that was given up before its first attempt."""
_MAX_GROUPS: Final = 50
"""Groups with examples, those with the most dead letters."""
_EXAMPLES: Final = 3
"""Of a group."""

_delivery = deliveries.c


class DeadLetterExample(NamedTuple):
    """One dead letter."""

    id: str
    incident_id: str
    alertname: str
    title: str | None
    """Of its incident; None if an older version wrote it."""
    oldest_accepted_at: float
    finished_at: float | None
    """When it was given up."""
    detail: str | None
    """The provider's answer to the last attempt, or what went wrong; None without an attempt."""


class _CountRow(NamedTuple):
    """The dead letters of a channel for a reason."""

    channel: str
    reason: str | None
    letter_count: int
    oldest_accepted_at: float
    newest_accepted_at: float


class DeadLetterGroup(NamedTuple):
    """The dead letters of a channel for a reason. Times are unix seconds."""

    channel: str
    reason: str
    """Of their last attempt: one of `SendReason`, or `NO_ATTEMPT`."""
    letter_count: int
    oldest_accepted_at: float
    newest_accepted_at: float
    examples: tuple[DeadLetterExample, ...]
    """The newest."""


class DeadLetters(NamedTuple):
    """All dead letters."""

    letter_count: int
    groups: tuple[DeadLetterGroup, ...]
    """The largest first."""
    further_groups: int
    """How many smaller ones were left out."""


# A literal, as the indexes of dead letters have it: else PostgreSQL does not see that it may use them.
_IS_DEAD: Final = _delivery.state == literal_column("'dead'")
_COUNTS: Final = RowQuery(
    _CountRow,
    select(
        _delivery.channel,
        _delivery.reason,
        func.count().label("letter_count"),
        func.min(_delivery.oldest_accepted_at).label("oldest_accepted_at"),
        func.max(_delivery.oldest_accepted_at).label("newest_accepted_at"),
    ).group_by(_delivery.channel, _delivery.reason),
).where(_IS_DEAD)
_last_detail = (
    select(attempts.c.detail)
    .where(attempts.c.delivery_seq == _delivery.seq)
    .order_by(attempts.c.number.desc())
    .limit(1)
    .scalar_subquery()
)
_EXAMPLE: Final = (
    RowQuery(
        DeadLetterExample,
        select(
            _delivery.id,
            _delivery.incident_id,
            events.c.alertname,
            incidents.c.title,
            _delivery.oldest_accepted_at,
            _delivery.finished_at,
            _last_detail.label("detail"),
        )
        .select_from(deliveries)
        .join(events, events.c.seq == _delivery.event_seq)
        .join(incidents, incidents.c.id == _delivery.incident_id),
    )
    .order_by(_delivery.oldest_accepted_at.desc(), _delivery.seq.desc())
    .limit(_EXAMPLES)
)


@dataclass(frozen=True, slots=True)
class _Queries:
    """The queries for a kind of filter."""

    count: RowQuery[int]
    find: RowQuery[DeliveryRow]
    """The oldest first."""
    examples: RowQuery[DeadLetterExample]


def _build_queries(*conditions: ColumnElement[bool]) -> _Queries:
    chosen = (_IS_DEAD, _delivery.channel == bindparam("channel"), *conditions)
    oldest_first = (_delivery.oldest_accepted_at, _delivery.seq)
    return _Queries(
        select_values(int, func.count(_delivery.seq)).where(*chosen),
        DELIVERIES.where(*chosen).order_by(*oldest_first).limit(bindparam("most")),
        _EXAMPLE.where(*chosen),
    )


_OF_CHANNEL: Final = _build_queries(IS_UNSETTLED)
_OF_REASON: Final = _build_queries(_delivery.reason == bindparam("reason"))
_WITHOUT_ATTEMPT: Final = _build_queries(_delivery.reason.is_(None))


class DeadLetterFilter(NamedTuple):
    """Which dead letters of a channel."""

    channel: str
    reason: str | None = None
    """None stands for all."""

    def count(self, connection: Connection) -> int:
        """How many there are."""
        return self._queries.count.fetch_one(connection, self._values)

    def find(self, connection: Connection, limit: int) -> list[DeliveryRow]:
        """The oldest ones."""
        return self._queries.find.fetch_all(connection, {**self._values, "most": limit})

    def find_examples(self, connection: Connection) -> tuple[DeadLetterExample, ...]:
        """The newest ones."""
        return tuple(self._queries.examples.fetch_all(connection, self._values))

    @property
    def _queries(self) -> _Queries:
        if self.reason is None:
            return _OF_CHANNEL
        return _WITHOUT_ATTEMPT if self.reason == NO_ATTEMPT else _OF_REASON

    @property
    def _values(self) -> dict[str, object]:
        values: dict[str, object] = {"channel": self.channel}
        return {**values, "reason": self.reason} if self._queries is _OF_REASON else values


def read_dead_letters(connection: Connection) -> DeadLetters:
    """All dead letters, grouped; for `Store.read`."""
    rows = sorted(_COUNTS.fetch_all(connection), key=lambda row: row.letter_count, reverse=True)
    groups = tuple(_read_group(connection, row) for row in rows[:_MAX_GROUPS])
    return DeadLetters(sum(row.letter_count for row in rows), groups, max(0, len(rows) - _MAX_GROUPS))


def _read_group(connection: Connection, row: _CountRow) -> DeadLetterGroup:
    reason = NO_ATTEMPT if row.reason is None else row.reason
    examples = DeadLetterFilter(row.channel, reason).find_examples(connection)
    return DeadLetterGroup(
        row.channel, reason, row.letter_count, row.oldest_accepted_at, row.newest_accepted_at, examples
    )
