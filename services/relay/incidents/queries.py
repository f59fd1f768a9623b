"""What people read of incidents: a list in pages, and one incident. Each read is bounded, and waits for no writer.

The list begins with the open incidents, the worst first; then come the resolved ones, the newest first.
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Final, NamedTuple

from sqlalchemy import Connection, and_, bindparam, case, func, literal_column, not_, select

from services.relay.model import Status
from services.relay.outbox.database import read_clock
from services.relay.outbox.store import Store
from services.relay.outbox.tables import DeliveryState, deliveries, events, incidents, silences
from services.relay.text import WORST_FIRST
from shared.http.json_api import RefusedError, format_json_time
from shared.sql.rows import RowQuery, select_columns, select_rows, select_values


class UnknownIncidentError(RefusedError):
    """There is no such incident or episode, or not any more; or the beginning of an id names several."""

    status = 404


@dataclass(frozen=True, slots=True)
class IncidentSummary:
    """An incident in its current, or last, episode. Times are unix seconds."""

    id: str
    alertname: str
    service: str | None
    status: Status
    episode: int
    title: str
    """Cause and effect by its latest event."""
    severity: str | None
    """The worst one of its latest event; None if that has no usual one."""
    receiver: str
    since: float
    """When the episode started."""
    ended_at: float | None
    """When the event that resolved it was accepted; None while it fires."""
    acknowledged_by: str | None
    acknowledged_at: float | None
    acknowledged_via: str | None
    """`api`, `command line`, `console` or `slack`."""
    escalated_to: Sequence[str]
    escalated_at: float | None
    silenced_by: str | None = None
    """Who silenced the episode through the relay; None if that is over. Alertmanager may have other silences."""
    silenced_until: float | None = None
    channels: Sequence[str] = ()
    """The channels of the episode."""
    channel_states: Mapping[str, DeliveryState] = field(default_factory=dict)
    """The state of the newest delivery on each of them."""


@dataclass(frozen=True, slots=True)
class IncidentPage:
    """Some incidents in the order of the list."""

    incidents: list[IncidentSummary]
    before: int | None
    """Where the next page begins; None if there is none. It stays correct while events are added."""


@dataclass(frozen=True, slots=True)
class IncidentFilter:
    """Which incidents; None stands for all."""

    status: Status | None = None
    is_acknowledged: bool | None = None
    alertname: str | None = None
    service: str | None = None
    since: float | None = None
    """Whose episode started at or after it, unix seconds."""


class _ListRow(NamedTuple):
    first_event_seq: int
    summary: IncidentSummary


def _build_list_row(*values: Any) -> _ListRow:
    first_event_seq, *rest = values
    summary = IncidentSummary(*rest)
    summary = replace(summary, status=Status(summary.status), escalated_to=json.loads(rest[-2] or "[]"))
    return _ListRow(first_event_seq, summary)


class _ChannelRow(NamedTuple):
    incident_id: str
    channel: str
    state: str


class _SilenceRow(NamedTuple):
    incident_id: str
    created_by: str | None
    ends_at: float | None


_incident = incidents.c
_SUMMARIES: Final = RowQuery(
    _build_list_row,
    select(
        _incident.first_event_seq,
        _incident.id,
        events.c.alertname,
        func.nullif(_incident.service, ""),
        case((_incident.is_open == 1, Status.FIRING.value), else_=Status.RESOLVED.value),
        _incident.episode,
        _incident.title,
        func.nullif(_incident.severity, ""),
        events.c.receiver,
        _incident.started_at,
        case((_incident.is_open == 0, events.c.accepted_at)),
        _incident.acknowledged_by,
        _incident.acknowledged_at,
        _incident.acknowledged_via,
        _incident.escalated_to,
        _incident.escalated_at,
    ).join(events, events.c.seq == _incident.latest_event_seq),
)
_SUMMARY: Final = _SUMMARIES.where(_incident.id == bindparam("incident"))
_RESOLVED: Final = 0
"""The last group of the list; each before it is the open incidents of a severity, the worst with the highest number."""
_GROUP: Final = 1 << 48
"""A position in the list: the group times this, and in it the number of the episode's first event."""


async def list_incidents(
    store: Store, filter_: IncidentFilter, *, limit: int, before: int | None = None
) -> IncidentPage:
    """A page of the list, from the `before` of the page that came before it on. Raises StoreUnavailableError."""
    return await store.read(lambda connection: read_incidents(connection, store.clock, filter_, limit, before))


def read_incidents(
    connection: Connection,
    clock: Callable[[], float],
    filter_: IncidentFilter,
    limit: int,
    before: int | None = None,
) -> IncidentPage:
    """The same, for `Store.read`."""
    first_group, before_seq = (len(WORST_FIRST), None) if before is None else divmod(before, _GROUP)
    rows: list[tuple[int, _ListRow]] = []
    for group in range(min(first_group, len(WORST_FIRST)), _RESOLVED - 1, -1):
        if filter_.status not in {None, Status.RESOLVED if group == _RESOLVED else Status.FIRING}:
            continue
        query = _build_query(filter_, group)
        if before_seq is not None and group == first_group:
            query = query.where(_incident.first_event_seq < before_seq)
        rows += [(group, row) for row in query.limit(limit + 1 - len(rows)).fetch_all(connection)]
        if len(rows) > limit:
            break
    page = rows[:limit]
    next_before = page[-1][0] * _GROUP + page[-1][1].first_event_seq if len(rows) > limit else None
    return IncidentPage(_add_channels(connection, [row for _, row in page], clock), next_before)


def _build_query(filter_: IncidentFilter, group: int) -> RowQuery[_ListRow]:
    """Each filter has an index that is in the order of the pages, and the time has one that says where to stop."""
    query = _SUMMARIES.order_by(_incident.first_event_seq.desc())
    # In literals, so that a database sees that it may use the indexes of open incidents.
    query = query.where(_incident.is_open == literal_column("0" if group == _RESOLVED else "1"))
    if group != _RESOLVED:
        severity = WORST_FIRST[-group]
        query = query.where(_incident.severity == severity)
    if filter_.is_acknowledged is not None:
        has_nobody = _incident.acknowledged_at.is_(None)
        query = query.where(not_(has_nobody) if filter_.is_acknowledged else has_nobody)
    if filter_.alertname is not None:
        query = query.where(_incident.alertname == filter_.alertname)
    if filter_.service is not None:
        query = query.where(_incident.service == filter_.service)
    if filter_.since is not None:
        earlier = incidents.alias("earlier").c
        last = select(earlier.first_event_seq).where(earlier.started_at < filter_.since)
        bound = last.order_by(earlier.started_at.desc()).limit(1).scalar_subquery()
        query = query.where(_incident.started_at >= filter_.since, _incident.first_event_seq > func.coalesce(bound, 0))
    return query


async def read_incident(store: Store, incident_id: str) -> IncidentSummary | None:
    """One incident; None if there is none. Raises StoreUnavailableError."""

    def read(connection: Connection) -> IncidentSummary | None:
        rows = _SUMMARY.fetch_all(connection, {"incident": incident_id})
        return next(iter(_add_channels(connection, rows, store.clock)), None)

    return await store.read(read)


_is_current = and_(_incident.id == deliveries.c.incident_id, _incident.episode == deliveries.c.episode)
_newest_deliveries = (
    select(func.max(deliveries.c.seq))
    .join(incidents, _is_current)
    .where(_incident.id.in_(bindparam("incidents", expanding=True)))
    .group_by(deliveries.c.incident_id, deliveries.c.channel)
)
_READ_CHANNELS: Final = (
    select_rows(_ChannelRow, deliveries.c)
    .where(deliveries.c.seq.in_(_newest_deliveries))
    .order_by(deliveries.c.channel)
)
_READ_SILENCES: Final = (
    RowQuery(
        _SilenceRow,
        select(*select_columns(_SilenceRow, silences.c)).join(
            incidents, and_(_incident.id == silences.c.incident_id, _incident.episode == silences.c.episode)
        ),
    )
    .where(
        silences.c.incident_id.in_(bindparam("incidents", expanding=True)),
        _incident.is_open == 1,
        silences.c.state == "created",
        silences.c.ends_at > bindparam("now"),
    )
    .order_by(silences.c.ends_at)
)


def _add_channels(
    connection: Connection, rows: Sequence[_ListRow], clock: Callable[[], float]
) -> list[IncidentSummary]:
    """With the state of each channel, and the silence."""
    if not rows:
        return []
    values = {"incidents": [row.summary.id for row in rows], "now": read_clock(connection, clock)}
    states: dict[str, dict[str, DeliveryState]] = {}
    for row in _READ_CHANNELS.fetch_all(connection, values):
        states.setdefault(row.incident_id, {})[row.channel] = DeliveryState(row.state)
    silenced = {row.incident_id: row for row in _READ_SILENCES.fetch_all(connection, values)}
    return [
        replace(
            summary,
            channels=list(states.get(summary.id, ())),
            channel_states=states.get(summary.id, {}),
            silenced_by=silenced[summary.id].created_by if summary.id in silenced else None,
            silenced_until=silenced[summary.id].ends_at if summary.id in silenced else None,
        )
        for _, summary in rows
    ]


_ID_LENGTH: Final = 64
_FIND_ID: Final = (
    select_values(str, _incident.id)
    .where(_incident.id >= bindparam("first"), _incident.id < bindparam("last"))
    .order_by(_incident.id)
    .limit(2)
)


async def find_incident_id(store: Store, prefix: str) -> str:
    """The id of the only incident whose id begins so; `prefix` itself where it is no beginning of an id.

    Raises:
        UnknownIncidentError: several incidents begin so.
        StoreUnavailableError: it cannot be read.
    """
    if len(prefix) == _ID_LENGTH or not re.fullmatch("[0-9a-fA-F]+", prefix):
        return prefix
    prefix = prefix.lower()
    values = {"first": prefix, "last": f"{prefix}g"}  # an id is hexadecimal: all that begin so sort before the last
    found = await store.read(lambda connection: _FIND_ID.fetch_all(connection, values))
    if len(found) > 1 and prefix not in found:
        some = " and ".join(each[: len(prefix) + 8] for each in found)
        raise UnknownIncidentError(f"several incidents begin with {prefix}, such as {some}; write more of the id")
    return found[0] if found else prefix


def encode_incident(incident: IncidentSummary) -> dict[str, Any]:
    """An incident as API and CLI write it."""
    names = ("since", "ended_at", "acknowledged_at", "escalated_at", "silenced_until")
    times = {name: format_json_time(getattr(incident, name)) for name in names}
    return {**asdict(incident), **times}


def parse_episode(text: str) -> int:
    """The number of an episode. Raises ValueError with what was expected."""
    if not re.fullmatch("[1-9][0-9]{0,8}", text):
        raise ValueError("expected the number of an episode, 1 for the first one")
    return int(text)


def parse_status(text: str) -> Status:
    """Raises ValueError with what was expected."""
    if text not in list(Status):
        raise ValueError(f"expected one of {', '.join(Status)}")
    return Status(text)
