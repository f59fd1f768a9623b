"""Incidents of the same source and groupKey, whatever their receiver: to some channels, as to PagerDuty, they are one.

A receiver that is renamed during an incident, or a second one, makes such a pair. What resolves the one there resolves
the other, too: so the end of the one is not told there while the other is open and needs it. That of the last one is.

An alert that one of them tells as over needs nothing of the others: each remembers that, in `resolved_elsewhere`, with
its latest event by then, since a newer one says more. It stays open, for elsewhere its own end is still to be told.
"""

import hashlib
import json
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Final

from sqlalchemy import Connection, Row, and_, bindparam, literal_column, select, update

from services.relay.model import Event, Status, compute_digest, decode_event, split_digests
from services.relay.outbox.engine.batching import Transaction
from services.relay.outbox.tables import deliveries, events, incidents

_STALE_AFTER: Final = 24 * 3600.0
"""Seconds after its latest event in which an open incident needs its key.

Alertmanager repeats what fires at its `repeat_interval`, 4 h by default. So one that has been quiet for a day is of a
receiver that is gone, and nobody tells its end.
"""

_delivery = deliveries.c
_other = incidents.alias("other")
_FIND_OPEN: Final = (
    select(incidents.c.id, _other.c.id.label("other"), _other.c.episode, _other.c.latest_event_seq, _delivery.channel)
    .distinct()
    .select_from(incidents)
    .join(
        _other,
        and_(
            _other.c.group_id == incidents.c.group_id,
            _other.c.id != incidents.c.id,
            _other.c.is_open == literal_column("1"),  # in the words of the index `incidents_of_group`
        ),
    )
    .join(deliveries, and_(_delivery.incident_id == _other.c.id, _delivery.episode == _other.c.episode))
    .where(incidents.c.id.in_(bindparam("incidents", expanding=True)))
    .where(_delivery.channel.in_(bindparam("channels", expanding=True)))
)
_READ_LATEST: Final = (
    select(incidents.c.id, incidents.c.group_id, incidents.c.latest_event_seq, incidents.c.resolved_elsewhere)
    .join(events, events.c.seq == incidents.c.latest_event_seq)
    .where(incidents.c.is_open == literal_column("1"), events.c.accepted_at > bindparam("since"))
)
_LOCK_GROUPS: Final = _READ_LATEST.where(incidents.c.group_id.in_(bindparam("groups", expanding=True))).with_for_update(
    of=incidents, skip_locked=True
)
_READ_INCIDENTS: Final = _READ_LATEST.add_columns(events.c.event).where(
    incidents.c.id.in_(bindparam("incidents", expanding=True))
)
_UPDATE_RESOLVED_ELSEWHERE: Final = (
    update(incidents).where(incidents.c.id == bindparam("incident")).values(resolved_elsewhere=bindparam("ends"))
)


def build_group_id(event: Event) -> str:
    """The same for every receiver of a group: a hash of source and groupKey."""
    return hashlib.sha256(json.dumps([event.source, event.group_key]).encode()).hexdigest()


def find_open_incidents(
    connection: Connection, ids: Collection[str], channels: Collection[str]
) -> Mapping[str, Sequence[Row[*tuple[Any, ...]]]]:
    """For each incident, the open ones of its group that were given to one of these channels.

    Their rows have other (its id), episode, latest_event_seq and channel.
    """
    found: dict[str, list[Row[*tuple[Any, ...]]]] = {}
    asked = {"incidents": sorted(ids), "channels": sorted(channels)}
    for row in connection.execute(_FIND_OPEN, asked) if channels else ():
        found.setdefault(row.id, []).append(row)
    return found


def record_resolved_elsewhere(transaction: Transaction, events: Sequence[tuple[int, Event]]) -> None:
    """Remembers of the other open incidents of their groups which alerts these events tell as over.

    Nobody waits for it: one that another replica is just changing is left out, and needs its key until the next time.

    Args:
        transaction: the one that commits them.
        events: the events with their seq, in its order.
    """
    groups = [build_group_id(event) for _, event in events]
    asked = {"groups": sorted(set(groups)), "since": transaction.now - _STALE_AFTER}
    for row in transaction.connection.execute(_LOCK_GROUPS, asked).all():
        before = ended = _read_resolved_elsewhere(row)
        for group, (seq, event) in zip(groups, events, strict=True):
            if group == row.group_id and seq > row.latest_event_seq:
                ended = (ended | _collect_digests(event, Status.RESOLVED)) - _collect_digests(event, Status.FIRING)
        if ended != before:
            ends = json.dumps([row.latest_event_seq, b"".join(sorted(ended)).hex()])
            transaction.connection.execute(_UPDATE_RESOLVED_ELSEWHERE, {"incident": row.id, "ends": ends})


def is_dedup_key_in_use(connection: Connection, incident_ids: Collection[str], now: float) -> bool:
    """Whether one of these incidents is open, lives, and has an alert that fires as far as any of its group says.

    Args:
        connection: to read with.
        incident_ids: their ids.
        now: unix seconds by the database's clock.
    """
    for row in connection.execute(_READ_INCIDENTS, {"incidents": sorted(incident_ids), "since": now - _STALE_AFTER}):
        event = decode_event(row.event)
        # Of what Alertmanager cut off nobody knows whether it fires.
        if event.truncated_alerts or not _collect_digests(event, Status.FIRING) <= _read_resolved_elsewhere(row):
            return True
    return False


def _collect_digests(event: Event, status: Status) -> frozenset[bytes]:
    """The digests of the alerts that an event tells with this status."""
    listed = frozenset(compute_digest(alert.fingerprint) for alert in event.alerts if alert.status is status)
    return listed | split_digests(event.unlisted_firing if status is Status.FIRING else event.unlisted_resolved)


def _read_resolved_elsewhere(row: Row[*tuple[Any, ...]]) -> frozenset[bytes]:
    """The digests of the alerts that were told as over since its latest event, by other incidents of its group."""
    if row.resolved_elsewhere is None:
        return frozenset()
    event, ended = json.loads(row.resolved_elsewhere)
    return split_digests(bytes.fromhex(ended)) if event == row.latest_event_seq else frozenset()
