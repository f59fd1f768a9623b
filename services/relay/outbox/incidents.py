"""The incidents that go on, as far as was told: each with the latest event, which says how its alerts stand."""

from dataclasses import dataclass
from typing import Final

from sqlalchemy import Connection, Row, select

from services.relay.model import Event
from services.relay.outbox.schema import decode, events, incidents

PAGE: Final = 20
"""How many are read at once. An event of a large group has megabytes."""


@dataclass(frozen=True, slots=True)
class OpenIncident:
    """An incident that was told to fire and not yet to be over."""

    id: str
    episode: int
    event_id: str
    """Of its latest event; another one there means that it has changed since."""
    event: Event | None
    """The latest event; None where something else than this program wrote it."""


_OPEN: Final = (
    select(incidents.c.id, incidents.c.episode, events.c.id.label("event_id"), events.c.event)
    .join(events, events.c.seq == incidents.c.latest_event)
    .where(incidents.c.open == 1)
)


def open_incident(connection: Connection, incident_id: str) -> OpenIncident | None:
    """The incident, where it is open."""
    row = connection.execute(_OPEN.where(incidents.c.id == incident_id)).first()
    return row and _incident(row)


def open_incidents(connection: Connection, after: str) -> list[OpenIncident]:
    """The next `PAGE` open incidents in the order of their ids; fewer only at the end.

    Args:
        connection: to the outbox.
        after: the id of the last one of the page before; empty for the first page.
    """
    page = _OPEN.where(incidents.c.id > after).order_by(incidents.c.id).limit(PAGE)
    return [_incident(row) for row in connection.execute(page)]


def _incident(row: Row[*tuple[object, ...]]) -> OpenIncident:
    try:
        event = decode(row.event)
    except ValueError:
        event = None
    return OpenIncident(row.id, row.episode, row.event_id, event)
