"""The state of the incident that a new event belongs to, and lists of incidents that are open or that the relay closed.

A list is read in pages, so that a night with thousands of incidents costs little memory.
"""

import json
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple, TypeVar

from sqlalchemy import Connection, and_, bindparam, literal_column, select, text

from services.relay.model import EscalationStep, Event, Status, decode_event, decode_steps
from services.relay.outbox.database import build_insert
from services.relay.outbox.merge import lock_incidents
from services.relay.outbox.served_channels import read_served_channels
from services.relay.outbox.store import BulkStatement, Store, Transaction
from services.relay.outbox.tables import (
    EVENTS,
    INCIDENT_STATES,
    INCIDENTS,
    DeliveryState,
    IncidentRow,
    IncidentStateRow,
    deliveries,
    events,
    incidents,
)
from shared.sql.rows import RowQuery, select_rows, select_tuples

_Position = TypeVar("_Position", int, str)

PAGE_SIZE: Final = 20
"""How many are read at once. An event of a large group has megabytes."""
_EARLIER_EVENTS: Final = 8
"""How many events before the latest one are remembered: a twin is not so late."""


class CurrentState(NamedTuple):
    episode: int
    latest_event_seq: int


class EarlierEvent(NamedTuple):
    """An event before the latest one."""

    fingerprint: str
    sent_at: float
    """When the last of its receivers sent it first."""


class IncidentState(NamedTuple):
    """What the outbox holds of an incident that has had events, and of its latest event."""

    episode: int
    is_open: bool
    """Whether it is open as far as is known."""
    open_channels: frozenset[str]
    """The channels that were given something of this episode."""
    event_id: str
    fingerprint: str
    accepted_at: float
    delivery_count: int
    has_dead_delivery: bool
    """Whether a delivery of the latest event was given up."""
    is_latest_own: bool
    """Whether the relay made the latest event itself."""
    latest_event_seq: int = 0
    latest_channels: frozenset[str] = frozenset()
    """The channels that have a delivery of the latest event."""
    latest_receivers: Mapping[str, float] = {}
    """The receivers that sent the latest event, the first one first, and when each sent it first."""
    escalation: tuple[EscalationStep, ...] = ()
    """The steps that are still to come."""
    earlier_events: tuple[EarlierEvent, ...] = ()
    """The last few events before the latest one, the oldest first."""
    served_channels: frozenset[str] = frozenset()
    """The channels on which any replica delivers."""
    started_at: float = 0.0
    """When its episode started."""
    episode_starts: tuple[float, ...] = ()
    """When its last episodes started, the oldest first."""
    latest_event_json: bytes | None = None
    """The latest event, where one of `earlier_events` has the same content as the new event."""

    def encode_earlier_events(self) -> str:
        """What to keep in the incident's row once another event is the latest."""
        *_, sent_at = self.latest_receivers.values()
        return json.dumps([*self.earlier_events, (self.fingerprint, sent_at)][-_EARLIER_EVENTS:])


@dataclass(frozen=True, slots=True)
class Incident:
    id: str
    episode: int
    event_id: str
    """Of its latest event; another one there means that it has changed since."""
    event: Event | None
    """The latest event; None if something else than this program wrote it."""


_NEW_INCIDENT: Final = {"episode": 0, "is_open": 0, "latest_event_seq": 0}
_INSERT_INCIDENTS: Final = {
    name: BulkStatement(build_insert(incidents, name).on_conflict_do_nothing(), ["id", *_NEW_INCIDENT])
    for name in ("sqlite", "postgresql")
}
_READ_STATES: Final = INCIDENT_STATES.where(incidents.c.id.in_(bindparam("incidents", expanding=True)))
_READ_CURRENT_STATE: Final = select_rows(CurrentState, incidents.c).where(incidents.c.id == bindparam("incident"))
_READ_DELIVERY_STATES: Final = select_tuples(
    tuple[int, str, str], select(deliveries.c.event_seq, deliveries.c.channel, deliveries.c.state)
).where(deliveries.c.event_seq.in_(bindparam("events", expanding=True)))
_READ_OPEN_CHANNELS: Final = select_tuples(
    tuple[str, str],
    select(deliveries.c.incident_id, deliveries.c.channel)
    .distinct()
    .join(incidents, and_(incidents.c.id == deliveries.c.incident_id, incidents.c.episode == deliveries.c.episode)),
).where(incidents.c.id.in_(bindparam("incidents", expanding=True)))
_READ_EVENT: Final = EVENTS.where(events.c.seq == bindparam("event"))
_NEWEST_FIRST: Final = (
    EVENTS.where(events.c.incident_id == bindparam("incident")).order_by(events.c.seq.desc()).limit(PAGE_SIZE)
)
_OPEN: Final = INCIDENTS.where(incidents.c.is_open == literal_column("1"))  # as the index `incidents_open` has it
_READ_OPEN: Final = _OPEN.where(incidents.c.id == bindparam("incident"))
_OPEN_PAGE: Final = (
    _OPEN.where(incidents.c.first_event_seq > bindparam("after")).order_by(incidents.c.first_event_seq).limit(PAGE_SIZE)
)
# As the index `events_of_relay` has it: among a hundred thousand incidents that are over they are few.
_CLOSED_BY_RELAY_PAGE: Final = (
    INCIDENTS.where(incidents.c.is_open == 0, text("length(events.body) = 0"))
    .where(events.c.incident_id > bindparam("after"))
    .order_by(events.c.incident_id)
    .limit(PAGE_SIZE)
)
_waiting_for_comparison = select(deliveries.c.incident_id).where(
    deliveries.c.finished_at.is_(None), deliveries.c.maybe_delivered_up_to >= deliveries.c.event_seq
)
_RESTORED_PAGE: Final = (
    INCIDENTS.where(incidents.c.is_open == bindparam("is_open"), incidents.c.id.in_(_waiting_for_comparison))
    .where(incidents.c.id > bindparam("after"))
    .order_by(incidents.c.id)
    .limit(PAGE_SIZE)
)


def lock_states(transaction: Transaction, fingerprints: Mapping[str, str]) -> dict[str, IncidentState]:
    """What is known of incidents; their rows, inserted if need be, are locked until the transaction ends.

    `fingerprints` has that of the event that comes in, by its incident.
    """
    connection, ids = transaction.connection, sorted(fingerprints)
    _INSERT_INCIDENTS[connection.dialect.name].execute(connection, [{"id": each, **_NEW_INCIDENT} for each in ids])
    lock_incidents(transaction, ids)
    return _read_states(connection, fingerprints, transaction.now)


async def read_state(store: Store, incident_id: str, fingerprint: str) -> tuple[IncidentState | None, float]:
    """What is known of an incident, None if it has had no event; and the database's time.

    `fingerprint` is of an event that might come in. Raises StoreUnavailableError.
    """
    return await store.read_at(
        lambda connection, now: (_read_states(connection, {incident_id: fingerprint}, now).get(incident_id), now)
    )


def _read_states(connection: Connection, fingerprints: Mapping[str, str], now: float) -> dict[str, IncidentState]:
    rows = _READ_STATES.fetch_all(connection, {"incidents": sorted(fingerprints)})
    if not rows:
        return {}
    latest: dict[int, list[tuple[str, str]]] = {}
    for seq, channel, state in _READ_DELIVERY_STATES.fetch_all(
        connection, {"events": [row.latest_event_seq for row in rows]}
    ):
        latest.setdefault(seq, []).append((channel, state))
    channels: dict[str, set[str]] = {}
    for incident_id, channel in _READ_OPEN_CHANNELS.fetch_all(connection, {"incidents": [row.id for row in rows]}):
        channels.setdefault(incident_id, set()).add(channel)
    served = read_served_channels(connection, now)
    result = {}
    for row in rows:
        incident = _build_state(row, latest.get(row.latest_event_seq, []), channels.get(row.id, set()), served)
        if fingerprints[row.id] in {earlier.fingerprint for earlier in incident.earlier_events}:
            event = _READ_EVENT.fetch_one(connection, {"event": row.latest_event_seq}).event
            incident = incident._replace(latest_event_json=event)
        result[row.id] = incident
    return result


def read_current_state(connection: Connection, incident_id: str) -> CurrentState | None:
    """The episode and the latest event of an incident; None if there is no such incident."""
    return _READ_CURRENT_STATE.fetch_first(connection, {"incident": incident_id})


def read_last_firing(connection: Connection, incident_id: str) -> frozenset[str]:
    """The fingerprints of all alerts whose last known state is firing, as far as the incident's newest events say.

    The latest event need not have all: a late twin's lacks what began since, and silenced alerts are left out.
    """
    last: dict[str, Status] = {}
    for row in _NEWEST_FIRST.fetch_all(connection, {"incident": incident_id}):
        try:
            event = decode_event(row.event)
        except ValueError:
            continue
        if event.status is Status.RESOLVED and not event.truncated_alerts:
            break  # the end of the episode before
        for alert in event.alerts:
            last.setdefault(alert.fingerprint, alert.status)
    return frozenset(fingerprint for fingerprint, status in last.items() if status is Status.FIRING)


def read_open_incident(connection: Connection, incident_id: str) -> Incident | None:
    """None where it is not open."""
    row = _READ_OPEN.fetch_first(connection, {"incident": incident_id})
    return None if row is None else _build_incident(row)


def iterate_open_incidents(store: Store) -> AsyncIterator[Incident]:
    """Every open incident, the oldest first; one whose next episode starts meanwhile comes again.

    Raises StoreUnavailableError.
    """
    return _iterate(store, _OPEN_PAGE, {}, 0, lambda row: row.first_event_seq)


def iterate_closed_by_relay(store: Store) -> AsyncIterator[Incident]:
    """Every incident whose latest event is a resolve of the relay's own. Raises StoreUnavailableError."""
    return _iterate(store, _CLOSED_BY_RELAY_PAGE, {}, "", lambda row: row.id)


def iterate_restored(store: Store, *, is_open: bool) -> AsyncIterator[Incident]:
    """Every incident with deliveries that wait for the comparison after a restored backup, and with no newer event.

    Raises StoreUnavailableError.
    """
    return _iterate(store, _RESTORED_PAGE, {"is_open": int(is_open)}, "", lambda row: row.id)


async def _iterate(
    store: Store,
    page: RowQuery[IncidentRow],
    values: Mapping[str, object],
    after: _Position,
    get_position: Callable[[IncidentRow], _Position],
) -> AsyncIterator[Incident]:
    def read(connection: Connection) -> list[tuple[_Position, Incident]]:
        rows = page.fetch_all(connection, {**values, "after": after})
        return [(get_position(row), _build_incident(row)) for row in rows]

    while found := await store.read(read):
        for position, incident in found:
            yield incident
            after = position


def _build_state(
    row: IncidentStateRow, latest: Sequence[tuple[str, str]], open_channels: set[str], served_channels: frozenset[str]
) -> IncidentState:
    return IncidentState(
        episode=row.episode,
        is_open=bool(row.is_open),
        open_channels=frozenset(open_channels),
        event_id=row.event_id,
        fingerprint=row.fingerprint,
        accepted_at=row.accepted_at,
        delivery_count=len(latest),
        has_dead_delivery=any(state == DeliveryState.DEAD for _, state in latest),
        is_latest_own=not row.body_size,
        latest_event_seq=row.latest_event_seq,
        latest_channels=frozenset(channel for channel, _ in latest),
        latest_receivers={row.receiver: row.accepted_at, **json.loads(row.repeated_by or "{}")},
        escalation=decode_steps(row.escalation),
        served_channels=served_channels,
        earlier_events=tuple(EarlierEvent(*each) for each in json.loads(row.earlier_events)),
        started_at=row.started_at,
        episode_starts=tuple(json.loads(row.episode_starts)),
    )


def _build_incident(row: IncidentRow) -> Incident:
    try:
        event = decode_event(row.event)
    except ValueError:
        event = None
    return Incident(row.id, row.episode, row.event_id, event)
