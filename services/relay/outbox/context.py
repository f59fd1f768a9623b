"""The context of a message: other incidents of the service, how often this one fired, and the message before.

One read serves all deliveries that are prepared at the time, so that a storm reads little. It changes nothing.
"""

import hashlib
import json
from collections.abc import Collection, Mapping, Sequence
from datetime import UTC, datetime
from typing import Final, NamedTuple

import msgspec
from sqlalchemy import Connection, and_, bindparam, case, func, literal_column, or_, select

from services.relay.model import DeliveryTask, Event, IncidentContext, RelatedIncident, Status
from services.relay.outbox.tables import DeliveryState, clean_for_database, deliveries, events, incidents
from services.relay.text import format_event_title, truncate
from shared.http.untrusted_json import UntrustedJsonError, decode_json
from shared.sql.rows import RowQuery, select_columns, select_rows, select_tuples, select_values

EPISODE_WINDOW: Final = 7 * 86400.0
"""Seconds in which the starts of an incident are counted."""
MAX_RELATED: Final = 5
"""How many other incidents a message names."""
_MAX_TITLE: Final = 200
"""Characters."""
_MAX_PREVIOUS_BYTES: Final = 256 * 1024
"""Bytes of an event over which it is not read again for its alerts."""


class _IncidentContextRow(NamedTuple):
    id: str
    episode: int
    is_open: int
    service_id: str | None
    started_at: float
    episode_starts: str
    acknowledged_by: str | None
    acknowledged_at: float | None
    escalated_to: str | None
    escalated_at: float | None


def _build_related(id: str, title: str, started_at: float) -> RelatedIncident:  # noqa: A002
    return RelatedIncident(id, title, datetime.fromtimestamp(started_at, UTC))


class _OpenIncidents(NamedTuple):
    open_count: int
    oldest: Sequence[RelatedIncident]
    """Empty where there is one alone."""


class _PreviousRow(NamedTuple):
    incident_id: str
    episode: int
    channel: str
    finished_at: float | None
    event: bytes | None
    """None if it is large."""


class _SentAlert(msgspec.Struct, gc=False):
    fingerprint: str
    status: Status


class _SentEvent(msgspec.Struct, gc=False):
    alerts: list[_SentAlert]


_SENT_EVENT: Final = msgspec.json.Decoder(_SentEvent)

_delivery = deliveries.c
_READ_INCIDENTS: Final = select_rows(_IncidentContextRow, incidents.c).where(
    incidents.c.id.in_(bindparam("incidents", expanding=True))
)
_is_open = incidents.c.is_open == literal_column("1")  # as the index `incidents_of_service` has it
_COUNT_OPEN: Final = select_tuples(
    tuple[str | None, int],
    select(incidents.c.service_id, func.count()).group_by(incidents.c.service_id),
).where(incidents.c.service_id.in_(bindparam("services", expanding=True)), _is_open)
_READ_OLDEST: Final = (
    RowQuery(_build_related, select(incidents.c.id, incidents.c.title, incidents.c.started_at))
    .where(incidents.c.service_id == bindparam("service"), _is_open)
    .order_by(incidents.c.started_at)
    .limit(MAX_RELATED + 1)  # the incident itself may be one of them
)
_last_delivered = (
    select(func.max(_delivery.seq))
    .where(
        _delivery.incident_id.in_(bindparam("incidents", expanding=True)),
        _delivery.episode.in_(bindparam("episodes", expanding=True)),
        _delivery.channel.in_(bindparam("channels", expanding=True)),
        _delivery.state.concat("")
        == DeliveryState.DELIVERED,  # otherwise a database reads every delivery of the channel
    )
    .group_by(_delivery.incident_id, _delivery.episode, _delivery.channel)
)
_READ_PREVIOUS: Final = RowQuery(
    _PreviousRow,
    select(
        *select_columns(
            _PreviousRow,
            _delivery,
            event=case((func.length(events.c.event) <= _MAX_PREVIOUS_BYTES, events.c.event)),
        )
    ).join(events, and_(events.c.seq == _delivery.event_seq)),
).where(_delivery.seq.in_(_last_delivered))


def find_service(event: Event) -> str:
    """The service of all its alerts; empty if there is none, or several."""
    return event.group_labels.get("service") or event.common_labels.get("service", "")


def build_service_id(event: Event) -> str | None:
    """The same for all incidents of an environment and service; None for one without a service."""
    service = find_service(event)
    if not service:
        return None
    env = event.group_labels.get("env", event.common_labels.get("env", ""))
    return hashlib.sha256(json.dumps([env, service]).encode()).hexdigest()


def build_title(event: Event) -> str:
    """How messages of other incidents name this one."""
    return clean_for_database(truncate(format_event_title(event), _MAX_TITLE))


def read_contexts(connection: Connection, tasks: Sequence[DeliveryTask]) -> list[IncidentContext]:
    """The context of each claimed delivery, in their order."""
    ids = sorted({task.incident_id for task in tasks})
    rows = {row.id: row for row in _READ_INCIDENTS.fetch_all(connection, {"incidents": ids})}
    services = _read_services(connection, rows.values())
    previous = _read_previous(
        connection, [task for task in tasks if task.first_receipt is not None and not task.is_edit]
    )
    return [
        _build_context(
            task,
            rows.get(task.incident_id),
            services,
            previous.get((task.incident_id, task.episode, task.channel)),
        )
        for task in tasks
    ]


def _read_services(
    connection: Connection, rows: Collection[_IncidentContextRow]
) -> Mapping[str | None, _OpenIncidents]:
    services = sorted({row.service_id for row in rows if row.service_id})
    if not services:
        return {}
    ended = {row.service_id for row in rows if not row.is_open}
    found = {}
    for service, count in _COUNT_OPEN.fetch_all(connection, {"services": services}):
        has_others = count > 1 or service in ended
        oldest = _READ_OLDEST.fetch_all(connection, {"service": service}) if has_others else ()
        found[service] = _OpenIncidents(count, oldest)
    return found


def _read_previous(
    connection: Connection, tasks: Sequence[DeliveryTask]
) -> Mapping[tuple[str, int, str], _PreviousRow]:
    if not tasks:
        return {}
    values = {
        "incidents": sorted({task.incident_id for task in tasks}),
        "episodes": sorted({task.episode for task in tasks}),
        "channels": sorted({task.channel for task in tasks}),
    }
    return {(row.incident_id, row.episode, row.channel): row for row in _READ_PREVIOUS.fetch_all(connection, values)}


def _build_context(
    task: DeliveryTask,
    row: _IncidentContextRow | None,
    services: Mapping[str | None, _OpenIncidents],
    previous: _PreviousRow | None,
) -> IncidentContext:
    context = task.context
    if row is not None:
        since = task.accepted_at.timestamp() + task.age - EPISODE_WINDOW
        of_service = services.get(row.service_id, _OpenIncidents(0, ()))
        others = [each for each in of_service.oldest if each.incident_id != row.id]
        context = context._replace(
            started_at=_convert_time(row.started_at),
            episodes_in_7_days=sum(start > since for start in json.loads(row.episode_starts)),
            related=tuple(others[:MAX_RELATED]),
            related_count=of_service.open_count - row.is_open if others else 0,
        )
    if row is not None and row.episode == task.episode:
        context = context._replace(
            acknowledged_by=row.acknowledged_by or "",
            acknowledged_at=_convert_time(row.acknowledged_at),
            escalated_to=tuple(json.loads(row.escalated_to or "[]")),
            escalated_at=_convert_time(row.escalated_at),
        )
    if previous is not None and previous.finished_at is not None:
        context = context._replace(
            previous_at=datetime.fromtimestamp(previous.finished_at, UTC),
            previous_alerts=_read_alerts(previous.event),
        )
    return context


def _convert_time(seconds: float | None) -> datetime | None:
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC)


def _read_alerts(event_json: bytes | None) -> Mapping[str, Status]:
    try:
        event = decode_json(_SENT_EVENT, event_json or b"")
    except UntrustedJsonError:  # a large event, or something else than this program wrote it
        return {}
    return {alert.fingerprint: alert.status for alert in event.alerts}


ACKNOWLEDGED: Final = "acknowledged"
"""The key in a receipt with the acknowledgement that the provider got."""


class ProviderAcknowledgement(NamedTuple):
    """What a delivery has to do of an acknowledgement."""

    acknowledgement: str = ""
    """The one that the provider still has to get, named by its time; empty if there is none."""
    is_repeat: bool = False
    """Whether the channel accepted all events of the delivery before, so that nothing else is new."""


_ACKNOWLEDGED_AT: Final = select_values(float, incidents.c.acknowledged_at).where(
    incidents.c.id == bindparam("incident"),
    incidents.c.episode == bindparam("episode"),
    incidents.c.acknowledged_at.is_not(None),
)
_ACCEPTED: Final = select_tuples(tuple[int, str | None], select(_delivery.event_seq, _delivery.receipt)).where(
    _delivery.incident_id == bindparam("incident"),
    _delivery.episode == bindparam("episode"),
    _delivery.channel == bindparam("channel"),
    _delivery.state.concat("") == DeliveryState.DELIVERED,  # so that `deliveries_of_episode` is used
)


def read_provider_acknowledgement(connection: Connection, task: DeliveryTask) -> ProviderAcknowledgement:
    """For a delivery on a channel whose provider knows acknowledgements.

    The first message after an acknowledgement carries it to the provider, and no later one repeats it: somebody may
    have withdrawn it there. The receipts of the episode say whether that was done, so no crash loses it. Unlike the
    context this is no ornament: where it cannot be read, the attempt fails.
    """
    values = {"incident": task.incident_id, "episode": task.episode}
    acknowledged_at = _ACKNOWLEDGED_AT.fetch_first(connection, values)
    if acknowledged_at is None:
        return ProviderAcknowledgement()
    name = datetime.fromtimestamp(acknowledged_at, UTC).isoformat()
    accepted = _ACCEPTED.fetch_all(connection, {**values, "channel": task.channel})
    if any(json.loads(receipt or "{}").get(ACKNOWLEDGED) == name for _, receipt in accepted):
        return ProviderAcknowledgement()
    return ProviderAcknowledgement(name, is_repeat=any(seq >= task.last_event_seq for seq, _ in accepted))


_of_incident = (_delivery.incident_id == bindparam("incident"), _delivery.channel == bindparam("channel"))
_LAST_ARRIVED: Final = (
    select_tuples(
        tuple[str, str],
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
            # A backup was restored: the relay may have delivered the episode after the backup was made.
            and_(
                incidents.c.episode == bindparam("episode"),
                _delivery.maybe_delivered_up_to >= incidents.c.first_event_seq,
            ),
        ),
    )
    .limit(1)
)


def may_have_earlier_open(connection: Connection, task: DeliveryTask) -> bool:
    """Whether the provider may have an earlier episode of the incident open, and nothing of this episode.

    An earlier episode has the key of this one. Where its resolve never arrived, the provider has it open, perhaps
    acknowledged, and a trigger then notifies nobody: so it is resolved before this one is triggered. What was begun of
    this episode, in a delivery that was merged into this one, began with that resolve. Where a backup was restored,
    nobody is called twice.
    """
    if task.episode == 1 or task.first_receipt is not None:
        return False
    values = {"incident": task.incident_id, "channel": task.channel, "episode": task.episode}
    last = _LAST_ARRIVED.fetch_first(connection, values)
    if last is None or last == (DeliveryState.DELIVERED, Status.RESOLVED):
        return False
    return _BEGUN_OF_EPISODE.fetch_first(connection, {**values, "delivery": task.delivery_id}) is None
