"""Whether the provider of a channel still has to get the acknowledgement of an incident.

The first message after an acknowledgement carries it to the provider, and no later one repeats it: somebody may have
withdrawn it there. Whether that was done is in the receipts of the episode, so a crash or a failed attempt loses none.
Unlike the rest that a message says of its incident, this is no ornament: where it cannot be read, the attempt fails.

Incidents of one source and groupKey, whatever their receiver: a channel such as PagerDuty has one key for them all.

A receiver that is renamed during an incident, or a second one, makes such a pair. What resolves the one there resolves
the other, too: so the resolve of the one is not sent there while the other is open and needs it. That of the last is.

An earlier episode of an incident has the key of the next one. Where its resolve never arrived, the provider has it
open, perhaps acknowledged, and a trigger then notifies nobody: so it is resolved before the next one is triggered.

An alert that is resolved in one of them does not keep the others open: each records it in `resolved_elsewhere`, with
its latest event by then, since a newer event counts more. It stays open, since other channels still need its resolve.
"""

import hashlib
import json
from collections.abc import Collection, Mapping, Sequence
from datetime import UTC, datetime
from typing import Final, NamedTuple

from sqlalchemy import Connection, and_, bindparam, literal_column, or_, select, update

from services.relay.model import DeliveryTask, Event, Status, compute_digest, decode_event, split_digests
from services.relay.outbox.store import Transaction
from services.relay.outbox.tables import (
    OPEN_INCIDENT_EVENTS,
    OPEN_INCIDENTS,
    DeliveryState,
    GroupIncidentRow,
    OpenIncidentRow,
    RowQuery,
    deliveries,
    events,
    incidents,
    select_columns,
    select_values,
)

ACKNOWLEDGED: Final = "acknowledged"
"""The key in a receipt with the acknowledgement that the provider got."""


class ProviderAcknowledgement(NamedTuple):
    """What a delivery has to do of an acknowledgement."""

    acknowledgement: str = ""
    """The one that the provider still has to get, named by its time; empty if there is none."""
    is_repeat: bool = False
    """Whether the channel accepted all events of the delivery before, so that nothing else is new."""


class _AcceptedRow(NamedTuple):
    """What a channel accepted of an episode."""

    event_seq: int
    receipt: str | None


_delivery = deliveries.c
_ACKNOWLEDGED_AT: Final = select_values(float, incidents.c.acknowledged_at).where(
    incidents.c.id == bindparam("incident"),
    incidents.c.episode == bindparam("episode"),
    incidents.c.acknowledged_at.is_not(None),
)
_ACCEPTED: Final = RowQuery(_AcceptedRow, select(*select_columns(_AcceptedRow, _delivery))).where(
    _delivery.incident_id == bindparam("incident"),
    _delivery.episode == bindparam("episode"),
    _delivery.channel == bindparam("channel"),
    _delivery.state.concat("") == DeliveryState.DELIVERED,  # so that `deliveries_of_episode` is used
)


def read_provider_acknowledgement(connection: Connection, task: DeliveryTask) -> ProviderAcknowledgement:
    """For a delivery on a channel whose provider knows acknowledgements."""
    values = {"incident": task.incident_id, "episode": task.episode}
    acknowledged_at = _ACKNOWLEDGED_AT.fetch_first(connection, values)
    if acknowledged_at is None:
        return ProviderAcknowledgement()
    name = datetime.fromtimestamp(acknowledged_at, UTC).isoformat()
    accepted = _ACCEPTED.fetch_all(connection, {**values, "channel": task.channel})
    if any(json.loads(row.receipt or "{}").get(ACKNOWLEDGED) == name for row in accepted):
        return ProviderAcknowledgement()
    return ProviderAcknowledgement(name, is_repeat=any(row.event_seq >= task.last_event_seq for row in accepted))


_STALE_AFTER: Final = 24 * 3600.0
"""Seconds after its latest event in which an open incident needs its key.

Alertmanager repeats what fires at its `repeat_interval`, 4 h by default. So an incident without events for a day is of
a receiver that is gone, and nobody will resolve it.
"""


class _ArrivedRow(NamedTuple):
    """A delivery that arrived, or may have, and the status that it gave."""

    state: str
    status: str


_other = incidents.alias("other")
_FIND_OPEN: Final = RowQuery(
    GroupIncidentRow,
    select(
        incidents.c.id.label("incident_id"),
        _other.c.id.label("other_id"),
        _other.c.episode,
        _other.c.latest_event_seq,
        _delivery.channel,
    )
    .distinct()
    .select_from(incidents)
    .join(
        _other,
        and_(
            _other.c.group_id == incidents.c.group_id,
            _other.c.id != incidents.c.id,
            _other.c.is_open == literal_column("1"),  # as the index `incidents_of_group` has it
        ),
    )
    .join(deliveries, and_(_delivery.incident_id == _other.c.id, _delivery.episode == _other.c.episode)),
).where(
    incidents.c.id.in_(bindparam("incidents", expanding=True)),
    _delivery.channel.in_(bindparam("channels", expanding=True)),
)
_is_live = (incidents.c.is_open == literal_column("1"), events.c.accepted_at > bindparam("since"))
_LOCK_GROUPS: Final = OPEN_INCIDENTS.where(
    *_is_live, incidents.c.group_id.in_(bindparam("groups", expanding=True))
).for_update(of=incidents, skip_locked=True)
_READ_INCIDENTS: Final = OPEN_INCIDENT_EVENTS.where(
    *_is_live, incidents.c.id.in_(bindparam("incidents", expanding=True))
)
_UPDATE_RESOLVED_ELSEWHERE: Final = (
    update(incidents).where(incidents.c.id == bindparam("incident")).values(resolved_elsewhere=bindparam("ends"))
)
_of_incident = (
    _delivery.incident_id == bindparam("incident"),
    _delivery.channel.in_(bindparam("channels", expanding=True)),
)
_LAST_ARRIVED: Final = (
    RowQuery(
        _ArrivedRow,
        select(_delivery.state, events.c.status).join(events, events.c.seq == _delivery.event_seq),
    )
    .where(
        *_of_incident,
        _delivery.episode < bindparam("episode"),
        # So that `deliveries_of_episode` is used. One that was given up may have arrived, too.
        or_(
            _delivery.state.concat("") != DeliveryState.SUPERSEDED,
            _delivery.maybe_sent == 1,
            _delivery.progress.is_not(None),
        ),
    )
    .order_by(_delivery.episode.desc(), _delivery.seq.desc())  # so that an incident with many episodes is read once
    .limit(1)
)
_BEGUN_OF_EPISODE: Final = (
    select_values(int, _delivery.seq)
    .where(
        incidents.c.id == _delivery.incident_id,
        *_of_incident,
        _delivery.episode == bindparam("episode"),
        or_(
            and_(_delivery.id != bindparam("delivery"), _delivery.progress.is_not(None)),
            # What may have arrived without progress may be the resolve alone.
            and_(_delivery.channel != bindparam("channel"), _delivery.state.concat("") == DeliveryState.DELIVERED),
            # A backup was restored: the relay may have delivered the episode after the backup was made.
            and_(
                incidents.c.episode == bindparam("episode"),
                _delivery.maybe_delivered_up_to >= incidents.c.first_event_seq,
            ),
        ),
    )
    .limit(1)
)


def build_group_id(event: Event) -> str:
    """The same for every receiver of a group: a hash of source and groupKey."""
    return hashlib.sha256(json.dumps([event.source, event.group_key]).encode()).hexdigest()


def find_open_group_incidents(
    connection: Connection, ids: Collection[str], channels: Collection[str]
) -> Mapping[str, Sequence[GroupIncidentRow]]:
    """For each incident, the open ones of its group that have a delivery on one of these channels."""
    found: dict[str, list[GroupIncidentRow]] = {}
    if channels:
        for row in _FIND_OPEN.fetch_all(connection, {"incidents": sorted(ids), "channels": sorted(channels)}):
            found.setdefault(row.incident_id, []).append(row)
    return found


def record_resolved_elsewhere(transaction: Transaction, events: Sequence[tuple[int, Event]]) -> None:
    """Records in the other open incidents of their groups which alerts these events resolve.

    Nobody waits for it: an incident that another replica is changing is left out until the next event.

    Args:
        transaction: the one that commits them.
        events: the events with their seq, in its order.
    """
    groups = [build_group_id(event) for _, event in events]
    parameters = {"groups": sorted(set(groups)), "since": transaction.now - _STALE_AFTER}
    for row in _LOCK_GROUPS.fetch_all(transaction.connection, parameters):
        before = ended = _read_resolved_elsewhere(row)
        for group, (seq, event) in zip(groups, events, strict=True):
            if group == row.group_id and seq > row.latest_event_seq:
                ended = (ended | _collect_digests(event, Status.RESOLVED)) - _collect_digests(event, Status.FIRING)
        if ended != before:
            ends = json.dumps([row.latest_event_seq, b"".join(sorted(ended)).hex()])
            transaction.connection.execute(_UPDATE_RESOLVED_ELSEWHERE, {"incident": row.id, "ends": ends})


def is_dedup_key_in_use(connection: Connection, incident_ids: Collection[str], now: float) -> bool:
    """Whether one of these incidents is open and recent, and has a firing alert that its group has not resolved.

    Args:
        connection: to read with.
        incident_ids: their ids.
        now: unix seconds by the database's clock.
    """
    values = {"incidents": sorted(incident_ids), "since": now - _STALE_AFTER}
    for row in _READ_INCIDENTS.fetch_all(connection, values):
        event = decode_event(row.event)
        # Of what Alertmanager cut off nobody knows whether it fires.
        resolved = _read_resolved_elsewhere(row.incident)
        if event.truncated_alerts or not _collect_digests(event, Status.FIRING) <= resolved:
            return True
    return False


def may_have_earlier_open(connection: Connection, task: DeliveryTask) -> bool:
    """Whether the provider may have an earlier episode of the incident open, and nothing of this episode.

    Its last delivery with the key decides: only a resolve leaves nothing open. One that was left out, because another
    incident needed the key, counts as well: the end of that one resolves the key. What was begun of this episode, in a
    delivery that was merged into this one, began with that resolve; what another channel has delivered or begun of it
    counts, too. Two channels of one key that begin at the same moment may both resolve. Where a backup was restored,
    nobody is called twice.
    """
    if task.episode == 1 or task.first_receipt is not None:
        return False
    channels = task.dedup_channels or (task.channel,)
    values = {"incident": task.incident_id, "channels": channels, "episode": task.episode}
    last = _LAST_ARRIVED.fetch_first(connection, values)
    if last is None or (last.state, last.status) == (DeliveryState.DELIVERED, Status.RESOLVED):
        return False
    values |= {"channel": task.channel, "delivery": task.delivery_id}
    return _BEGUN_OF_EPISODE.fetch_first(connection, values) is None


def _collect_digests(event: Event, status: Status) -> frozenset[bytes]:
    """The digests of the alerts of an event that have this status."""
    listed = frozenset(compute_digest(alert.fingerprint) for alert in event.alerts if alert.status is status)
    return listed | split_digests(event.unlisted_firing if status is Status.FIRING else event.unlisted_resolved)


def _read_resolved_elsewhere(row: OpenIncidentRow) -> frozenset[bytes]:
    """The digests of the alerts that other incidents of its group resolved since its latest event."""
    if row.resolved_elsewhere is None:
        return frozenset()
    event, ended = json.loads(row.resolved_elsewhere)
    return split_digests(bytes.fromhex(ended)) if event == row.latest_event_seq else frozenset()
