"""Incidents with their latest event, which says how their alerts stand: the open ones, and those that we closed.

They are read in pages, so that a night with thousands of them costs little memory.
"""

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import Column, Connection, Row, Select, and_, bindparam, select, text

from services.relay.event_json import decode_event
from services.relay.model import Event, Status
from services.relay.outbox.schema import deliveries, events, incidents
from services.relay.outbox.store import Store

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
    events, and_(events.c.seq == incidents.c.latest_event, events.c.incident_id == incidents.c.id)
)
_OPEN: Final = _INCIDENTS.where(incidents.c.open == 1)
# In the words of the index `events_of_ours`: among a hundred thousand incidents that are over they are few.
_CLOSED_BY_RELAY: Final = _INCIDENTS.where(incidents.c.open == 0, text("length(events.body) = 0"))
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
    waits = select(of.incident_id).where(of.finished_at.is_(None), of.maybe_told >= of.event_seq)
    query = _INCIDENTS.where(incidents.c.open == int(is_open), incidents.c.id.in_(waits))
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
