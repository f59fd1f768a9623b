"""Finds the events that an unsettled delivery still needs: one that waits or is dead.

It has every event from its first to its last. Sent again, it becomes the current state of its incident, so it needs
later events, too: otherwise an alert that ended in them would look as if it still fired. But an event adds nothing if
newer events have all its alerts. So what is kept grows with the alerts of an incident, not with its events.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Final, NamedTuple

from sqlalchemy import Connection, and_, bindparam, exists, func, or_, select

from services.relay.model import collect_digests, decode_event
from services.relay.outbox.engine.store import Store
from services.relay.outbox.rows import EVENTS, RowQuery
from services.relay.outbox.tables import IS_UNSETTLED, deliveries, events

UnsettledRanges = Mapping[str, Sequence[range]]
"""By incident: for each unsettled delivery, the events from its first to its last."""


class _EventRangeRow(NamedTuple):
    """The events of a delivery."""

    incident_id: str
    first_event_seq: int
    event_seq: int


class _EventUseRow(NamedTuple):
    """Whether an event has no delivery of its own."""

    seq: int
    is_unused: bool


_delivery = deliveries.c
WITHOUT_DELIVERY: Final = ~exists().where(_delivery.event_seq == events.c.seq)
_UNSETTLED_DELIVERIES: Final = (
    IS_UNSETTLED,
    or_(_delivery.finished_at.is_(None), _delivery.finished_at >= bindparam("cutoff")),
)
_READ_RANGES: Final = RowQuery(
    _EventRangeRow, select(_delivery.incident_id, _delivery.first_event_seq, _delivery.event_seq)
).where(*_UNSETTLED_DELIVERIES)
_first = (
    select(_delivery.incident_id, func.min(_delivery.first_event_seq).label("event"))
    .where(*_UNSETTLED_DELIVERIES)
    .group_by(_delivery.incident_id)
    .subquery()
)
_INCIDENTS_WITH_LATER_EVENTS: Final = RowQuery(
    str,
    select(events.c.incident_id)
    .distinct()
    .join(_first, and_(_first.c.incident_id == events.c.incident_id, _first.c.event < events.c.seq)),
).where(WITHOUT_DELIVERY)
_NEWEST_FIRST: Final = (
    RowQuery(_EventUseRow, select(events.c.seq, WITHOUT_DELIVERY.label("is_unused")))
    .where(events.c.incident_id == bindparam("incident"), events.c.seq >= bindparam("first"))
    .order_by(events.c.seq.desc())
)
_READ_EVENT: Final = EVENTS.where(events.c.seq == bindparam("event"))


async def find_unsettled_ranges(store: Store, cutoff: float) -> UnsettledRanges:
    """What is unsettled, but for what was given up before `cutoff` (unix seconds). Raises StoreUnavailableError."""
    found: dict[str, list[range]] = {}
    for row in await store.read(partial(_READ_RANGES.fetch_all, values={"cutoff": cutoff})):
        found.setdefault(row.incident_id, []).append(range(row.first_event_seq, row.event_seq + 1))
    return found


async def find_redundant_events(store: Store, unsettled: UnsettledRanges, cutoff: float) -> set[int]:
    """Events of these incidents that add nothing to what would be delivered. Raises StoreUnavailableError."""
    redundant: set[int] = set()
    for incident in await store.read(partial(_INCIDENTS_WITH_LATER_EVENTS.fetch_all, values={"cutoff": cutoff})):
        ranges = unsettled.get(incident, ())
        first = min((each.start for each in ranges), default=0)
        newer: set[bytes] = set()
        values = {"incident": incident, "first": first}
        for row in await store.read(partial(_NEWEST_FIRST.fetch_all, values=values)):
            alerts = await store.read(partial(_read_digests, row.seq))
            if alerts is None:
                continue
            if row.is_unused and alerts <= newer and not any(row.seq in each for each in ranges):
                redundant.add(row.seq)
            newer |= alerts
    return redundant


def _read_digests(seq: int, connection: Connection) -> frozenset[bytes] | None:
    """The digests of an event's alerts; None if it cannot be read."""
    row = _READ_EVENT.fetch_first(connection, {"event": seq})
    try:
        return None if row is None else collect_digests(decode_event(row.event))
    except ValueError:
        return None
