"""The rows that the outbox's queries return, each with the one SELECT that all queries for it narrow.

A field has the name and the type of its column, and None if the column may be null; a test compares them.
"""

from collections.abc import Callable, Mapping
from typing import Any, Final, Generic, NamedTuple, TypeVar, TypeVarTuple

from sqlalchemy import ColumnElement, Connection, Integer, Result, Select, Table, TextClause, and_, func, select
from sqlalchemy.sql.base import ReadOnlyColumnCollection

from services.relay.outbox.tables import channels, database_identity, deliveries, events, incidents, watchdogs

R = TypeVar("R")
V = TypeVar("V")
Columns = TypeVarTuple("Columns")
_NO_VALUES: Final[Mapping[str, object]] = {}


class RowQuery(Generic[R]):
    """A SELECT and the type of its rows. Build each once: that takes longer than a database needs to run it.

    mypy compares the number of columns, and the types of those that it knows; a test compares each type.

    Args:
        build_row: makes a row of the values of its columns.
        statement: selects these columns, in this order.
        value_type: of the only column, where `build_row` gives it as it is.
    """

    def __init__(
        self, build_row: Callable[[*Columns], R], statement: Select[*Columns], value_type: type[R] | None = None
    ) -> None:
        self.build_row: Callable[..., R] = build_row
        self.statement: Select[*tuple[Any, ...]] = statement
        self.value_type = value_type

    def where(self, *conditions: ColumnElement[bool] | TextClause) -> "RowQuery[R]":
        """Only the rows that meet all conditions."""
        return self._replace(self.statement.where(*conditions))

    def order_by(self, *columns: Any) -> "RowQuery[R]":
        """In this order."""
        return self._replace(self.statement.order_by(*columns))

    def limit(self, count: Any) -> "RowQuery[R]":
        """The first rows."""
        return self._replace(self.statement.limit(count))

    def offset(self, count: Any) -> "RowQuery[R]":
        """Without the first rows."""
        return self._replace(self.statement.offset(count))

    def for_update(self, *, of: Table | None = None, skip_locked: bool = False) -> "RowQuery[R]":
        """Locks the rows until the transaction ends."""
        return self._replace(self.statement.with_for_update(of=of, skip_locked=skip_locked))

    def fetch_all(self, connection: Connection, values: Mapping[str, object] = _NO_VALUES) -> list[R]:
        """All rows; `values` are those of the bound parameters."""
        return [self.build_row(*row) for row in self._execute(connection, values)]

    def fetch_first(self, connection: Connection, values: Mapping[str, object] = _NO_VALUES) -> R | None:
        """The first row; None if there is none."""
        row = self._execute(connection, values).first()
        return None if row is None else self.build_row(*row)

    def fetch_one(self, connection: Connection, values: Mapping[str, object] = _NO_VALUES) -> R:
        """The only row."""
        return self.build_row(*self._execute(connection, values).one())

    def _replace(self, statement: Select[*tuple[Any, ...]]) -> "RowQuery[R]":
        return RowQuery(self.build_row, statement, self.value_type)

    def _execute(self, connection: Connection, values: Mapping[str, object]) -> Result[*tuple[Any, ...]]:
        return connection.execute(self.statement, dict(values))


def select_values(value_type: type[V], column: ColumnElement[V]) -> RowQuery[V]:
    """A query whose rows have one column."""

    def build(value: V) -> V:
        return value

    return RowQuery(build, select(column), value_type)


class DeliveryRow(NamedTuple):
    """A delivery, without receipt and payload, which only people read."""

    seq: int
    id: str
    event_seq: int
    first_event_seq: int
    incident_id: str
    episode: int
    channel: str
    state: str
    attempts: int
    reason: str | None
    accepted_at: float
    oldest_accepted_at: float
    due_at: float
    due_set_at: float
    lease: str | None
    maybe_sent: int
    progress: str | None
    remark: str | None
    fallback_up_to: int | None
    maybe_delivered_up_to: int | None
    finished_at: float | None
    digest_id: str | None
    named_in: str | None


class DueRow(NamedTuple):
    """A delivery to claim, with what a claim has to know of its last event."""

    delivery: DeliveryRow
    event_size: int
    event_status: str
    severity: str | None
    """The worst of the incident's latest event, which is almost always this one."""

    @classmethod
    def build(cls, *values: Any) -> "DueRow":
        """Of a delivery's columns and its own."""
        *delivery, size, status, severity = values
        return cls(DeliveryRow(*delivery), size, status, severity)


class CurrentState(NamedTuple):
    """How an incident stands now."""

    episode: int
    latest_event_seq: int


class OutdatedRow(NamedTuple):
    """A delivery whose incident has a newer event than its own."""

    delivery: DeliveryRow
    current: CurrentState

    @classmethod
    def build(cls, *values: Any) -> "OutdatedRow":
        """Of a delivery's columns and an incident's."""
        *delivery, episode, latest_event_seq = values
        return cls(DeliveryRow(*delivery), CurrentState(episode, latest_event_seq))


class IncidentRow(NamedTuple):
    """An incident with its latest event."""

    id: str
    episode: int
    event_id: str
    event: bytes


class IncidentStateRow(NamedTuple):
    """What decides whether an event is a duplicate: an incident, and its latest event without its content."""

    id: str
    episode: int
    is_open: int
    latest_event_seq: int
    earlier_events: str | None
    started_at: float | None
    episode_starts: str | None
    event_id: str
    fingerprint: str
    accepted_at: float
    body_size: int


class OpenIncidentRow(NamedTuple):
    """An open incident of a group; see `shared_dedup_key`."""

    id: str
    group_id: str | None
    latest_event_seq: int
    resolved_elsewhere: str | None


class OpenIncidentEventRow(NamedTuple):
    """An open incident of a group, with its latest event."""

    incident: OpenIncidentRow
    event: bytes

    @classmethod
    def build(cls, *values: Any) -> "OpenIncidentEventRow":
        """Of an incident's columns and an event."""
        *incident, event = values
        return cls(OpenIncidentRow(*incident), event)


class GroupIncidentRow(NamedTuple):
    """An open incident of the same group as `incident_id`, on one of its channels."""

    incident_id: str
    other_id: str
    episode: int
    latest_event_seq: int
    channel: str


class EventRow(NamedTuple):
    """An event as it was encoded."""

    seq: int
    event: bytes


class EventSizeRow(NamedTuple):
    """How large an event is, in bytes."""

    seq: int
    accepted_at: float
    event_size: int
    body_size: int


class ChannelRow(NamedTuple):
    """What all replicas share about a channel."""

    name: str
    paused_until: float
    paused_set_at: float
    next_token_at: float
    failures: int
    is_down: int
    reason: str | None = None
    retry_after_until: float | None = None
    retry_after_set_at: float | None = None
    served_at: float | None = None
    failed_at: float | None = None
    failed_reason: str | None = None
    failed_detail: str | None = None
    check_started_at: float | None = None
    test_started_at: float | None = None


class WatchdogRow(NamedTuple):
    """When a watchdog was last seen, and for how long it has been silent."""

    name: str
    last_seen_at: float
    silent_seconds: float
    counted_at: float


class DatabaseIdentityRow(NamedTuple):
    """Which database this is."""

    identity: str
    last_used_at: float


def select_columns(row_type: type[tuple[Any, ...]], columns: ReadOnlyColumnCollection[str, Any]) -> list[Any]:
    """The columns of a table that a row has fields for."""
    return [columns[name] for name in row_type.__annotations__]


_delivery_columns = select_columns(DeliveryRow, deliveries.c)
DELIVERIES: Final = RowQuery(DeliveryRow, select(*_delivery_columns))
DUE_DELIVERIES: Final = RowQuery(
    DueRow.build,
    select(
        *_delivery_columns,
        func.length(events.c.event, type_=Integer).label("event_size"),
        events.c.status.label("event_status"),
        incidents.c.severity,
    )
    .select_from(deliveries)
    .join(events, events.c.seq == deliveries.c.event_seq)
    .join(incidents, incidents.c.id == deliveries.c.incident_id),
)
OUTDATED_DELIVERIES: Final = RowQuery(
    OutdatedRow.build,
    select(*_delivery_columns, incidents.c.episode, incidents.c.latest_event_seq)
    .select_from(deliveries)
    .join(incidents, incidents.c.id == deliveries.c.incident_id)
    .join(events, events.c.seq == deliveries.c.event_seq),
)
CURRENT_STATES: Final = RowQuery(CurrentState, select(*select_columns(CurrentState, incidents.c)))
INCIDENTS: Final = RowQuery(
    IncidentRow,
    select(incidents.c.id, incidents.c.episode, events.c.id.label("event_id"), events.c.event).join(
        events, and_(events.c.seq == incidents.c.latest_event_seq, events.c.incident_id == incidents.c.id)
    ),
)
INCIDENT_STATES: Final = RowQuery(
    IncidentStateRow,
    select(
        incidents.c.id,
        incidents.c.episode,
        incidents.c.is_open,
        incidents.c.latest_event_seq,
        incidents.c.earlier_events,
        incidents.c.started_at,
        incidents.c.episode_starts,
        events.c.id.label("event_id"),
        events.c.fingerprint,
        events.c.accepted_at,
        func.length(events.c.body, type_=Integer).label("body_size"),
    ).join(events, events.c.seq == incidents.c.latest_event_seq),
)
_open_incidents = select(*select_columns(OpenIncidentRow, incidents.c)).join(
    events, events.c.seq == incidents.c.latest_event_seq
)
OPEN_INCIDENTS: Final = RowQuery(OpenIncidentRow, _open_incidents)
OPEN_INCIDENT_EVENTS: Final = RowQuery(OpenIncidentEventRow.build, _open_incidents.add_columns(events.c.event))
EVENTS: Final = RowQuery(EventRow, select(*select_columns(EventRow, events.c)))
EVENT_SIZES: Final = RowQuery(
    EventSizeRow,
    select(
        events.c.seq,
        events.c.accepted_at,
        func.length(events.c.event, type_=Integer).label("event_size"),
        func.length(events.c.body, type_=Integer).label("body_size"),
    ),
)
CHANNELS: Final = RowQuery(ChannelRow, select(*select_columns(ChannelRow, channels.c)))
WATCHDOGS: Final = RowQuery(WatchdogRow, select(*select_columns(WatchdogRow, watchdogs.c)))
DATABASE_IDENTITIES: Final = RowQuery(
    DatabaseIdentityRow, select(*select_columns(DatabaseIdentityRow, database_identity.c))
)
