"""What the outbox holds of incidents, and that nobody else changes it until the transaction ends."""

import json
from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

from sqlalchemy import Row, and_, bindparam, func, select

from services.relay.outbox.dialect import insert_new
from services.relay.outbox.lock import lock
from services.relay.outbox.many import Many
from services.relay.outbox.schema import State, deliveries, events, incidents
from services.relay.outbox.served import served
from services.relay.outbox.together import Transaction

_NEW: Final = {
    dialect: Many(insert_new(incidents, dialect).on_conflict_do_nothing(), [column.name for column in incidents.c])
    for dialect in ("sqlite", "postgresql")
}
_LATEST: Final = (
    select(incidents.c.id.label("incident"), *(incidents.c[name] for name in ("episode", "open", "latest_event")))
    .add_columns(incidents.c.earlier)
    .add_columns(events.c.id, events.c.fingerprint, events.c.accepted_at, func.length(events.c.body).label("size"))
    .outerjoin(events, events.c.seq == incidents.c.latest_event)
    .where(incidents.c.id.in_(bindparam("incidents", expanding=True)))
)
_STATES: Final = select(deliveries.c.event_seq, deliveries.c.state).where(
    deliveries.c.event_seq.in_(bindparam("events", expanding=True))
)
_ON: Final = (
    select(deliveries.c.incident_id, deliveries.c.channel)
    .distinct()
    .join(incidents, and_(incidents.c.id == deliveries.c.incident_id, incidents.c.episode == deliveries.c.episode))
    .where(incidents.c.id.in_(bindparam("incidents", expanding=True)))
)
"""The channels that were given something of an incident's episode."""
_WRITTEN: Final = select(events.c.event).where(events.c.seq == bindparam("event"))
_EARLIER: Final = 8
"""How many events before the latest one are remembered: a twin is not so late."""


class Earlier(NamedTuple):
    """An event before the latest one."""

    fingerprint: str
    accepted_at: float


class Known(NamedTuple):
    """What the outbox holds of an incident that has been told of before, and of its latest event."""

    episode: int
    open: bool
    """Whether it still goes on, as far as we were told."""
    open_on: frozenset[str]
    """The channels that were given something of this episode."""
    event_id: str
    fingerprint: str
    accepted_at: float
    deliveries: int
    any_dead: bool
    """Whether a delivery of the latest event was given up."""
    ours: bool
    """Whether the relay made the latest event itself."""
    earlier: tuple[Earlier, ...] = ()
    """The last few events before the latest one, the oldest first."""
    served: frozenset[str] = frozenset()
    """The channels on which any replica delivers."""
    written: bytes | None = None
    """The latest event, where one of those told the same as what comes in."""

    def remembered(self) -> str:
        """What to keep in the incident's row once another event is the latest."""
        return json.dumps([*self.earlier, (self.fingerprint, self.accepted_at)][-_EARLIER:])


def known_of(transaction: Transaction, coming: Mapping[str, str]) -> dict[str, Known]:
    """What is known of incidents; their rows, made where there are none, are locked until the transaction ends.

    Args:
        transaction: the one under way.
        coming: the fingerprint of the event that comes in, by its incident.
    """
    connection, ids = transaction.connection, sorted(coming)
    none = {"episode": 0, "open": 0, "latest_event": 0, "group_id": None, "ended_elsewhere": None, "earlier": None}
    rows = [{"id": incident, **none} for incident in ids]
    _NEW[connection.dialect.name].execute(connection, rows)
    lock(transaction, ids)
    latest = [row for row in connection.execute(_LATEST, {"incidents": ids}).all() if row.id is not None]
    if not latest:
        return {}
    states: dict[int, list[str]] = {}
    for event, state in connection.execute(_STATES, {"events": [row.latest_event for row in latest]}):
        states.setdefault(event, []).append(state)
    on: dict[str, set[str]] = {}
    for incident, channel in connection.execute(_ON, {"incidents": [row.incident for row in latest]}):
        on.setdefault(incident, set()).add(channel)
    live = served(connection, transaction.now)
    known = {}
    for row in latest:
        known[row.incident] = _of_row(row, states.get(row.latest_event, []), on.get(row.incident, set()), live)
        if coming[row.incident] in {earlier.fingerprint for earlier in known[row.incident].earlier}:
            written = connection.execute(_WRITTEN, {"event": row.latest_event}).scalar_one()
            known[row.incident] = known[row.incident]._replace(written=written)
    return known


def _of_row(row: Row[*tuple[Any, ...]], states: Sequence[str], on: set[str], live: frozenset[str]) -> Known:
    return Known(
        episode=row.episode,
        open=bool(row.open),
        open_on=frozenset(on),
        event_id=row.id,
        fingerprint=row.fingerprint,
        accepted_at=row.accepted_at,
        deliveries=len(states),
        any_dead=State.DEAD in states,
        ours=not row.size,
        served=live,
        earlier=tuple(Earlier(*each) for each in json.loads(row.earlier)) if row.earlier else (),
    )
