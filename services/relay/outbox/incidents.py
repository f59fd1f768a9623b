"""What the outbox holds of incidents, and that nobody else changes it until the transaction ends.

Incidents with their latest event, which says how their alerts stand: the open ones, and those that we closed.

They are read in pages, so that a night with thousands of them costs little memory.

"""

import json
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from sqlalchemy import Column, Connection, Row, Select, and_, bindparam, func, select, text

from services.relay.model import Event, Status, decode_event
from services.relay.outbox.engine.batching import BulkStatement, Transaction
from services.relay.outbox.engine.dialect import build_insert
from services.relay.outbox.engine.store import Store
from services.relay.outbox.merge import lock_incidents
from services.relay.outbox.replicas import read_served_channels
from services.relay.outbox.tables import State, deliveries, events, incidents

_INSERT_INCIDENTS: Final = {
    dialect: BulkStatement(
        build_insert(incidents, dialect).on_conflict_do_nothing(), [column.name for column in incidents.c]
    )
    for dialect in ("sqlite", "postgresql")
}
_READ_LATEST: Final = (
    select(
        incidents.c.id.label("incident"), *(incidents.c[name] for name in ("episode", "is_open", "latest_event_seq"))
    )
    .add_columns(incidents.c.earlier_events)
    .add_columns(events.c.id, events.c.fingerprint, events.c.accepted_at, func.length(events.c.body).label("size"))
    .outerjoin(events, events.c.seq == incidents.c.latest_event_seq)
    .where(incidents.c.id.in_(bindparam("incidents", expanding=True)))
)
_READ_DELIVERY_STATES: Final = select(deliveries.c.event_seq, deliveries.c.state).where(
    deliveries.c.event_seq.in_(bindparam("events", expanding=True))
)
_READ_OPEN_CHANNELS: Final = (
    select(deliveries.c.incident_id, deliveries.c.channel)
    .distinct()
    .join(incidents, and_(incidents.c.id == deliveries.c.incident_id, incidents.c.episode == deliveries.c.episode))
    .where(incidents.c.id.in_(bindparam("incidents", expanding=True)))
)
"""The channels that were given something of an incident's episode."""
_READ_EVENT: Final = select(events.c.event).where(events.c.seq == bindparam("event"))
_EARLIER_EVENTS: Final = 8
"""How many events before the latest one are remembered: a twin is not so late."""


class EarlierEvent(NamedTuple):
    """An event before the latest one."""

    fingerprint: str
    accepted_at: float


class IncidentState(NamedTuple):
    """What the outbox holds of an incident that has been told of before, and of its latest event."""

    episode: int
    is_open: bool
    """Whether it still goes on, as far as we were told."""
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
    earlier_events: tuple[EarlierEvent, ...] = ()
    """The last few events before the latest one, the oldest first."""
    served_channels: frozenset[str] = frozenset()
    """The channels on which any replica delivers."""
    latest_event_json: bytes | None = None
    """The latest event, where one of those told the same as what comes in."""

    def encode_earlier_events(self) -> str:
        """What to keep in the incident's row once another event is the latest."""
        return json.dumps([*self.earlier_events, (self.fingerprint, self.accepted_at)][-_EARLIER_EVENTS:])


def lock_states(transaction: Transaction, fingerprints: Mapping[str, str]) -> dict[str, IncidentState]:
    """What is known of incidents; their rows, made where there are none, are locked until the transaction ends.

    Args:
        transaction: the one under way.
        fingerprints: the fingerprint of the event that comes in, by its incident.
    """
    connection, ids = transaction.connection, sorted(fingerprints)
    none = {
        "episode": 0,
        "is_open": 0,
        "latest_event_seq": 0,
        "group_id": None,
        "resolved_elsewhere": None,
        "earlier_events": None,
    }
    rows = [{"id": incident, **none} for incident in ids]
    _INSERT_INCIDENTS[connection.dialect.name].execute(connection, rows)
    lock_incidents(transaction, ids)
    latest = [row for row in connection.execute(_READ_LATEST, {"incidents": ids}).all() if row.id is not None]
    if not latest:
        return {}
    states: dict[int, list[str]] = {}
    for event, state in connection.execute(_READ_DELIVERY_STATES, {"events": [row.latest_event_seq for row in latest]}):
        states.setdefault(event, []).append(state)
    on: dict[str, set[str]] = {}
    for incident, channel in connection.execute(_READ_OPEN_CHANNELS, {"incidents": [row.incident for row in latest]}):
        on.setdefault(incident, set()).add(channel)
    live = read_served_channels(connection, transaction.now)
    known = {}
    for row in latest:
        known[row.incident] = _build_state(row, states.get(row.latest_event_seq, []), on.get(row.incident, set()), live)
        if fingerprints[row.incident] in {earlier.fingerprint for earlier in known[row.incident].earlier_events}:
            written = connection.execute(_READ_EVENT, {"event": row.latest_event_seq}).scalar_one()
            known[row.incident] = known[row.incident]._replace(latest_event_json=written)
    return known


def _build_state(
    row: Row[*tuple[Any, ...]], states: Sequence[str], open_channels: set[str], served_channels: frozenset[str]
) -> IncidentState:
    return IncidentState(
        episode=row.episode,
        is_open=bool(row.is_open),
        open_channels=frozenset(open_channels),
        event_id=row.id,
        fingerprint=row.fingerprint,
        accepted_at=row.accepted_at,
        delivery_count=len(states),
        has_dead_delivery=State.DEAD in states,
        is_latest_own=not row.size,
        served_channels=served_channels,
        earlier_events=tuple(EarlierEvent(*each) for each in json.loads(row.earlier_events))
        if row.earlier_events
        else (),
    )


PAGE_SIZE: Final = 20
"""How many are read at once. An event of a large group has megabytes."""


@dataclass(frozen=True, slots=True)
class Incident:
    """One incident as it stands."""

    id: str
    episode: int
    event_id: str
    """Of its latest event; another one there means that it has changed since."""
    event: Event | None
    """The latest event; None where something else than this program wrote it."""


_INCIDENTS: Final = select(incidents.c.id, incidents.c.episode, events.c.id.label("event_id"), events.c.event).join(
    events, and_(events.c.seq == incidents.c.latest_event_seq, events.c.incident_id == incidents.c.id)
)
_OPEN: Final = _INCIDENTS.where(incidents.c.is_open == 1)
# In the words of the index `events_of_relay`: among a hundred thousand incidents that are over they are few.
_CLOSED_BY_RELAY: Final = _INCIDENTS.where(incidents.c.is_open == 0, text("length(events.body) = 0"))
_NEWEST_FIRST: Final = (
    select(events.c.event)
    .where(events.c.incident_id == bindparam("incident"))
    .order_by(events.c.seq.desc())
    .limit(PAGE_SIZE)
)


def read_last_firing(connection: Connection, incident_id: str) -> frozenset[str]:
    """The fingerprints of all alerts that an incident last told as firing, as far as its newest events say.

    The latest one need not speak of all: a late twin's lacks what began since, and what is muted is left out.
    """
    last: dict[str, Status] = {}
    for (written,) in connection.execute(_NEWEST_FIRST, {"incident": incident_id}):
        try:
            event = decode_event(written)
        except ValueError:
            continue
        if event.status is Status.RESOLVED and not event.truncated_alerts:
            break  # the end of the episode before
        for alert in event.alerts:
            last.setdefault(alert.fingerprint, alert.status)
    return frozenset(fingerprint for fingerprint, status in last.items() if status is Status.FIRING)


def read_open_incident(connection: Connection, incident_id: str) -> Incident | None:
    """The incident, where it is open."""
    row = connection.execute(_OPEN.where(incidents.c.id == incident_id)).first()
    return row and _build_incident(row)


def iterate_open_incidents(store: Store) -> AsyncIterator[Incident]:
    """Every open incident, in the order of their ids. Raises StoreUnavailableError."""
    return _iterate(store, _OPEN, incidents.c.id)


def iterate_closed_by_relay(store: Store) -> AsyncIterator[Incident]:
    """Every incident whose latest event is an end that the relay told by itself. Raises StoreUnavailableError."""
    return _iterate(store, _CLOSED_BY_RELAY, events.c.incident_id)


def iterate_restored(store: Store, *, is_open: bool) -> AsyncIterator[Incident]:
    """Every incident of which something is held back since a backup was restored, and nothing came since.

    Args:
        store: the outbox.
        is_open: whether those that are open, or those that are over.

    Raises:
        StoreUnavailableError: they cannot be read.
    """
    of = deliveries.c
    waits = select(of.incident_id).where(of.finished_at.is_(None), of.maybe_delivered_up_to >= of.event_seq)
    query = _INCIDENTS.where(incidents.c.is_open == int(is_open), incidents.c.id.in_(waits))
    return _iterate(store, query, incidents.c.id)


async def _iterate(store: Store, query: Select[*tuple[Any, ...]], key: Column[str]) -> AsyncIterator[Incident]:
    """In the order of `key`, the incident's id in the table whose index the database shall follow."""

    def page(connection: Connection) -> list[Incident]:
        return [_build_incident(row) for row in connection.execute(query.where(key > after))]

    query = query.order_by(key).limit(PAGE_SIZE)
    after = ""
    while found := await store.read(page):
        for incident in found:
            yield incident
        after = found[-1].id


def _build_incident(row: Row[*tuple[Any, ...]]) -> Incident:
    try:
        event = decode_event(row.event)
    except ValueError:
        event = None
    return Incident(row.id, row.episode, row.event_id, event)
