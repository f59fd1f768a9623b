"""Which events retention must leave for what was not told: what waits, and what was given up and may be sent again.

Such a delivery tells every event from its first to its last. Sent again, it tells how its incident stands by then, so
it needs what came after, too: else an alert that ended there would be told as if it still fired. But where newer events
speak of all alerts of one, that one adds nothing. So what is kept grows with the alerts of an incident, not with its
events.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Final

from sqlalchemy import Connection, Select, and_, bindparam, exists, func, or_, select

from services.relay.event_json import decode_event
from services.relay.model import collect_digests
from services.relay.outbox.schema import State, deliveries, events
from services.relay.outbox.store import Store

_delivery = deliveries.c
SETTLED: Final = (State.DELIVERED, State.SUPERSEDED)
"""How a delivery ends that nobody has to look at."""
UNSETTLED: Final = [state.value for state in State if state not in SETTLED]  # as an index of `schema` has it
_UNSETTLED_DELIVERIES: Final = (
    _delivery.state.in_(UNSETTLED),
    or_(_delivery.finished_at.is_(None), _delivery.finished_at >= bindparam("cutoff")),
)
_READ_RANGES: Final = select(_delivery.incident_id, _delivery.first_event, _delivery.event_seq).where(*_UNSETTLED_DELIVERIES)
_first = (
    select(_delivery.incident_id, func.min(_delivery.first_event).label("event")).where(*_UNSETTLED_DELIVERIES).group_by(_delivery.incident_id).subquery()
)
_WITHOUT_DELIVERY: Final = ~exists().where(_delivery.event_seq == events.c.seq)
_INCIDENTS_WITH_LATER_EVENTS: Final = (
    select(events.c.incident_id)
    .distinct()
    .join(_first, and_(_first.c.incident_id == events.c.incident_id, _first.c.event < events.c.seq))
    .where(_WITHOUT_DELIVERY)
)
_NEWEST_FIRST: Final = (
    select(events.c.seq, _WITHOUT_DELIVERY.label("unused"))
    .where(events.c.incident_id == bindparam("incident"), events.c.seq >= bindparam("first"))
    .order_by(events.c.seq.desc())
)

UnsettledRanges = Mapping[str, Sequence[range]]
"""By incident: for each delivery that is not told, the events from its first to its last."""


async def find_unsettled_ranges(store: Store, cutoff: float) -> UnsettledRanges:
    """What is not told, but for what was given up before `cutoff` (unix seconds). Raises StoreUnavailableError."""
    found: dict[str, list[range]] = {}
    for incident, first, last in await store.read(partial(_read_rows, _READ_RANGES, {"cutoff": cutoff})):
        found.setdefault(incident, []).append(range(first, last + 1))
    return found


async def find_redundant_events(store: Store, unsettled: UnsettledRanges, cutoff: float) -> set[int]:
    """Events of these incidents that add nothing to what would be told. Raises StoreUnavailableError."""
    superfluous: set[int] = set()
    for (incident,) in await store.read(partial(_read_rows, _INCIDENTS_WITH_LATER_EVENTS, {"cutoff": cutoff})):
        ranges = unsettled.get(incident, ())
        first = min((each.start for each in ranges), default=0)
        spoken: set[bytes] = set()
        for seq, unused in await store.read(partial(_read_rows, _NEWEST_FIRST, {"incident": incident, "first": first})):
            alerts = await store.read(partial(_read_digests, seq))
            if alerts is None:
                continue
            if unused and alerts <= spoken and not any(seq in each for each in ranges):
                superfluous.add(seq)
            spoken |= alerts
    return superfluous


def _read_rows(query: Select[*tuple[Any, ...]], values: Mapping[str, object], connection: Connection) -> Sequence[Any]:
    return connection.execute(query, values).all()


def _read_digests(seq: int, connection: Connection) -> frozenset[bytes] | None:
    """The digests of the alerts that an event speaks of; None where it cannot be read."""
    written = connection.execute(select(events.c.event).where(events.c.seq == seq)).scalar()
    try:
        event = None if written is None else decode_event(written)
    except ValueError:
        return None
    return collect_digests(event) if event else None
