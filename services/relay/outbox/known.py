"""What the outbox holds of incidents, and that nobody else changes it until the transaction ends."""

import json
from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

from sqlalchemy import Row, and_, bindparam, func, select

from services.relay.outbox.dialect import build_insert
from services.relay.outbox.lock import lock_incidents
from services.relay.outbox.many import BulkStatement
from services.relay.outbox.schema import State, deliveries, events, incidents
from services.relay.outbox.served import read_served_channels
from services.relay.outbox.together import Transaction

_INSERT_INCIDENTS: Final = {
    dialect: BulkStatement(build_insert(incidents, dialect).on_conflict_do_nothing(), [column.name for column in incidents.c])
    for dialect in ("sqlite", "postgresql")
}
_READ_LATEST: Final = (
    select(incidents.c.id.label("incident"), *(incidents.c[name] for name in ("episode", "open", "latest_event")))
    .add_columns(incidents.c.earlier)
    .add_columns(events.c.id, events.c.fingerprint, events.c.accepted_at, func.length(events.c.body).label("size"))
    .outerjoin(events, events.c.seq == incidents.c.latest_event)
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
    none = {"episode": 0, "open": 0, "latest_event": 0, "group_id": None, "ended_elsewhere": None, "earlier": None}
    rows = [{"id": incident, **none} for incident in ids]
    _INSERT_INCIDENTS[connection.dialect.name].execute(connection, rows)
    lock_incidents(transaction, ids)
    latest = [row for row in connection.execute(_READ_LATEST, {"incidents": ids}).all() if row.id is not None]
    if not latest:
        return {}
    states: dict[int, list[str]] = {}
    for event, state in connection.execute(_READ_DELIVERY_STATES, {"events": [row.latest_event for row in latest]}):
        states.setdefault(event, []).append(state)
    on: dict[str, set[str]] = {}
    for incident, channel in connection.execute(_READ_OPEN_CHANNELS, {"incidents": [row.incident for row in latest]}):
        on.setdefault(incident, set()).add(channel)
    live = read_served_channels(connection, transaction.now)
    known = {}
    for row in latest:
        known[row.incident] = _build_state(row, states.get(row.latest_event, []), on.get(row.incident, set()), live)
        if fingerprints[row.incident] in {earlier.fingerprint for earlier in known[row.incident].earlier_events}:
            written = connection.execute(_READ_EVENT, {"event": row.latest_event}).scalar_one()
            known[row.incident] = known[row.incident]._replace(latest_event_json=written)
    return known


def _build_state(row: Row[*tuple[Any, ...]], states: Sequence[str], open_channels: set[str], served_channels: frozenset[str]) -> IncidentState:
    return IncidentState(
        episode=row.episode,
        is_open=bool(row.open),
        open_channels=frozenset(open_channels),
        event_id=row.id,
        fingerprint=row.fingerprint,
        accepted_at=row.accepted_at,
        delivery_count=len(states),
        has_dead_delivery=State.DEAD in states,
        is_latest_own=not row.size,
        served_channels=served_channels,
        earlier_events=tuple(EarlierEvent(*each) for each in json.loads(row.earlier)) if row.earlier else (),
    )
