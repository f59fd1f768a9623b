"""Incidents of the same source and groupKey, whatever their receiver: to some channels, as to PagerDuty, they are one.

A receiver that is renamed during an incident, or a second one, makes such a pair. What resolves the one there resolves
the other, too: so the end of the one is not told there while the other is open and needs it. That of the last one is.
"""

import hashlib
import json
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Final

from sqlalchemy import Connection, Row, and_, bindparam, literal_column, select

from services.relay.event_json import decode
from services.relay.model import Event, Status
from services.relay.outbox.schema import deliveries, events, incidents

_LOOKED_THROUGH: Final = 20
"""How many events are looked through for the end of an alert."""

_of = deliveries.c
_other = incidents.alias("other")
_OPEN_ON: Final = (
    select(incidents.c.id, _other.c.id.label("other"), _other.c.episode, _other.c.latest_event, _of.channel)
    .distinct()
    .select_from(incidents)
    .join(
        _other,
        and_(
            _other.c.group_id == incidents.c.group_id,
            _other.c.id != incidents.c.id,
            _other.c.open == literal_column("1"),  # in the words of the index `incidents_of_group`
        ),
    )
    .join(deliveries, and_(_of.incident_id == _other.c.id, _of.episode == _other.c.episode))
    .where(incidents.c.id.in_(bindparam("incidents", expanding=True)))
    .where(_of.channel.in_(bindparam("channels", expanding=True)))
)
_LATEST: Final = (
    select(events.c.seq, events.c.event)
    .join(incidents, and_(incidents.c.id == events.c.incident_id, incidents.c.latest_event == events.c.seq))
    .where(incidents.c.id.in_(bindparam("incidents", expanding=True)), incidents.c.open == literal_column("1"))
)
_SINCE: Final = (
    select(events.c.event)
    .where(events.c.incident_id == bindparam("incident"))
    .where(events.c.seq > bindparam("after"), events.c.seq <= bindparam("last"))
    .order_by(events.c.seq.desc())
    .limit(_LOOKED_THROUGH)
)


def group_id(event: Event) -> str:
    """The same for every receiver of a group: a hash of source and groupKey."""
    return hashlib.sha256(json.dumps([event.source, event.group_key]).encode()).hexdigest()


def open_on(
    connection: Connection, ids: Collection[str], channels: Collection[str]
) -> Mapping[str, Sequence[Row[*tuple[Any, ...]]]]:
    """For each incident, the open ones of its group that were given to one of these channels.

    Their rows have other (its id), episode, latest_event and channel.
    """
    found: dict[str, list[Row[*tuple[Any, ...]]]] = {}
    asked = {"incidents": sorted(ids), "channels": sorted(channels)}
    for row in connection.execute(_OPEN_ON, asked) if channels else ():
        found.setdefault(row.id, []).append(row)
    return found


def needed_by(connection: Connection, others: Collection[str], incident_id: str, last_event: int) -> bool:
    """Whether one of these incidents is open, and has an alert that fires as far as the end of another one says.

    Args:
        connection: to read with.
        others: their ids.
        incident_id: of the one that ends.
        last_event: with which it does.
    """
    for seq, written in connection.execute(_LATEST, {"incidents": sorted(others)}).all():
        event = decode(written)
        if event.truncated_alerts:
            return True  # nobody knows what else fires
        ended = {"incident": incident_id, "after": seq, "last": last_event}
        said = [decode(each) for each in connection.execute(_SINCE, ended).scalars()]
        if any(alert.status is Status.FIRING and not _is_over(alert.fingerprint, said) for alert in event.alerts):
            return True
    return False


def _is_over(fingerprint: str, said: Sequence[Event]) -> bool:
    """What the newest event that speaks of an alert says; these come the newest first."""
    for event in said:
        for alert in event.alerts:
            if alert.fingerprint == fingerprint:
                return alert.status is Status.RESOLVED
    return False
