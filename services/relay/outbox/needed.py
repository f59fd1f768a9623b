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

from services.relay.event_json import decode
from services.relay.model import spoken_of
from services.relay.outbox.schema import State, deliveries, events
from services.relay.outbox.store import Store

_of = deliveries.c
TOLD: Final = (State.DELIVERED, State.SUPERSEDED)
"""How a delivery ends that nobody has to look at."""
NOT_TOLD: Final = [state.value for state in State if state not in TOLD]  # as an index of `schema` has it
_KEPT: Final = (
    _of.state.in_(NOT_TOLD),
    or_(_of.finished_at.is_(None), _of.finished_at >= bindparam("cutoff")),
)
_RANGES: Final = select(_of.incident_id, _of.first_event, _of.event_seq).where(*_KEPT)
_first = (
    select(_of.incident_id, func.min(_of.first_event).label("event")).where(*_KEPT).group_by(_of.incident_id).subquery()
)
_UNUSED: Final = ~exists().where(_of.event_seq == events.c.seq)
_GROWN: Final = (
    select(events.c.incident_id)
    .distinct()
    .join(_first, and_(_first.c.incident_id == events.c.incident_id, _first.c.event < events.c.seq))
    .where(_UNUSED)
)
_NEWEST_FIRST: Final = (
    select(events.c.seq, _UNUSED.label("unused"))
    .where(events.c.incident_id == bindparam("incident"), events.c.seq >= bindparam("first"))
    .order_by(events.c.seq.desc())
)

Needed = Mapping[str, Sequence[range]]
"""By incident: for each delivery that is not told, the events from its first to its last."""


async def needed(store: Store, cutoff: float) -> Needed:
    """What is not told, but for what was given up before `cutoff` (unix seconds). Raises StoreUnavailableError."""
    found: dict[str, list[range]] = {}
    for incident, first, last in await store.read(partial(_rows, _RANGES, {"cutoff": cutoff})):
        found.setdefault(incident, []).append(range(first, last + 1))
    return found


async def said_again(store: Store, needed: Needed, cutoff: float) -> set[int]:
    """Events of these incidents that add nothing to what would be told. Raises StoreUnavailableError."""
    superfluous: set[int] = set()
    for (incident,) in await store.read(partial(_rows, _GROWN, {"cutoff": cutoff})):
        ranges = needed.get(incident, ())
        first = min((each.start for each in ranges), default=0)
        spoken: set[bytes] = set()
        for seq, unused in await store.read(partial(_rows, _NEWEST_FIRST, {"incident": incident, "first": first})):
            alerts = await store.read(partial(_alerts, seq))
            if alerts is None:
                continue
            if unused and alerts <= spoken and not any(seq in each for each in ranges):
                superfluous.add(seq)
            spoken |= alerts
    return superfluous


def _rows(query: Select[*tuple[Any, ...]], values: Mapping[str, object], connection: Connection) -> Sequence[Any]:
    return connection.execute(query, values).all()


def _alerts(seq: int, connection: Connection) -> frozenset[bytes] | None:
    """The digests of the alerts that an event speaks of; None where it cannot be read."""
    written = connection.execute(select(events.c.event).where(events.c.seq == seq)).scalar()
    try:
        event = None if written is None else decode(written)
    except ValueError:
        return None
    return spoken_of(event) if event else None
