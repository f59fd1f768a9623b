"""What people read of incidents: a list in pages, or one. No query changes the outbox or waits for a writer.

The list begins with the open incidents, the worst first; then come the resolved ones, the newest first.
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, Final, NamedTuple

from sqlalchemy import Connection, and_, bindparam, func, literal_column, not_, select

from services.relay.model import Status
from services.relay.outbox.engine.dialect import read_clock
from services.relay.outbox.engine.store import Store
from services.relay.outbox.rows import RowQuery, select_columns
from services.relay.outbox.tables import DeliveryState, deliveries, events, incidents, silences
from services.relay.text import WORST_FIRST
from shared.http.json_api import format_json_time


@dataclass(frozen=True, slots=True)
class IncidentSummary:
    """An incident in its current, or last, episode. Times are unix seconds."""

    id: str
    alertname: str
    service: str | None
    """By its latest event; None of an incident from before it was stored, or without one."""
    status: Status
    episode: int
    title: str | None
    """Cause and effect by its latest event; None of an incident from before they were stored."""
    severity: str | None
    """The worst one by its latest event; None if that has no usual one."""
    receiver: str
    since: float | None
    """When the episode started; None if that is not stored."""
    ended_at: float | None
    """When the event that resolved it was accepted; None while it fires."""
    acknowledged_by: str | None
    acknowledged_at: float | None
    acknowledged_via: str | None
    """`api`, `command line`, `console` or `slack`."""
    escalated_to: Sequence[str]
    escalated_at: float | None
    silenced_by: str | None
    """Who silenced the episode through the relay; None if that is over. Alertmanager may have other silences."""
    silenced_until: float | None
    channels: Sequence[str]
    """The channels of the episode."""
    channel_states: Mapping[str, DeliveryState]
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


class _SummaryRow(NamedTuple):
    """An incident with its latest event."""

    id: str
    episode: int
    is_open: int
    first_event_seq: int | None
    title: str | None
    severity: str | None
    service: str | None
    started_at: float | None
    acknowledged_by: str | None
    acknowledged_at: float | None
    acknowledged_via: str | None
    escalated_to: str | None
    escalated_at: float | None
    alertname: str
    receiver: str
    accepted_at: float


class _ChannelRow(NamedTuple):
    """The newest delivery of an episode on a channel."""

    incident_id: str
    channel: str
    state: str


class _SilenceRow(NamedTuple):
    """A silence of an episode that was created."""

    incident_id: str
    created_by: str | None
    ends_at: float | None


_SUMMARIES: Final = RowQuery(
    _SummaryRow,
    select(
        *(incidents.c[name] for name in _SummaryRow._fields if name not in {"alertname", "receiver", "accepted_at"}),
        events.c.alertname,
        events.c.receiver,
        events.c.accepted_at,
    ).join(events, events.c.seq == incidents.c.latest_event_seq),
)
_SUMMARY: Final = _SUMMARIES.where(incidents.c.id == bindparam("incident"))
_ID_LENGTH: Final = 64
_RESOLVED: Final = 0
"""The last group of the list; those before it are the open incidents of a severity, the worst of which has the highest
number."""
_GROUP: Final = 1 << 48
"""A position in the list: the group times this, and in it the number of the episode's first event."""
_FIND_ID: Final = (
    RowQuery(str, select(incidents.c.id))
    .where(incidents.c.id >= bindparam("first"), incidents.c.id < bindparam("last"))
    .order_by(incidents.c.id)
    .limit(2)
)
_is_current = and_(incidents.c.id == deliveries.c.incident_id, incidents.c.episode == deliveries.c.episode)
_newest = (
    select(func.max(deliveries.c.seq))
    .join(incidents, _is_current)
    .where(incidents.c.id.in_(bindparam("incidents", expanding=True)))
    .group_by(deliveries.c.incident_id, deliveries.c.channel)
)
_READ_CHANNELS: Final = (
    RowQuery(_ChannelRow, select(*select_columns(_ChannelRow, deliveries.c)))
    .where(deliveries.c.seq.in_(_newest))
    .order_by(deliveries.c.channel)
)
_READ_SILENCES: Final = (
    RowQuery(
        _SilenceRow,
        select(*select_columns(_SilenceRow, silences.c)).join(
            incidents, and_(incidents.c.id == silences.c.incident_id, incidents.c.episode == silences.c.episode)
        ),
    )
    .where(
        silences.c.incident_id.in_(bindparam("incidents", expanding=True)),
        incidents.c.is_open == 1,
        silences.c.state == "created",
        silences.c.ends_at > bindparam("now"),
    )
    .order_by(silences.c.ends_at)
)


class UnknownIncidentError(Exception):
    """There is no such incident or episode, or not any more; or the beginning of an id names several."""


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


async def list_incidents(
    store: Store, filter_: IncidentFilter, *, limit: int, before: int | None = None
) -> IncidentPage:
    """A page of the list.

    Args:
        store: the outbox.
        filter_: which of them.
        limit: at most so many.
        before: the `before` of the page that came before this one; None begins with the first page.

    Raises:
        StoreUnavailableError: they cannot be read.
    """
    return await store.read(partial(_read_page, filter_=filter_, limit=limit, before=before, clock=store.clock))


def _build_query(filter_: IncidentFilter, group: int) -> RowQuery[_SummaryRow]:
    """Each filter has an index that is in the order of the pages, and the time has one that says where to stop."""
    of = incidents.c
    query = _SUMMARIES.order_by(of.first_event_seq.desc())
    # In literals, so that a database sees that it may use the indexes of open incidents.
    query = query.where(of.is_open == literal_column("0" if group == _RESOLVED else "1"))
    if group != _RESOLVED:
        severity = WORST_FIRST[-group]
        query = query.where(of.severity == severity if severity else func.coalesce(of.severity, "") == "")
    if filter_.is_acknowledged is not None:
        has_nobody = of.acknowledged_at.is_(None)
        query = query.where(not_(has_nobody) if filter_.is_acknowledged else has_nobody)
    if filter_.alertname is not None:
        query = query.where(of.alertname == filter_.alertname)
    if filter_.service is not None:
        query = query.where(of.service == filter_.service)
    if filter_.since is not None:
        earlier = incidents.alias("earlier").c
        last = select(earlier.first_event_seq).where(earlier.started_at < filter_.since)
        bound = last.order_by(earlier.started_at.desc()).limit(1).scalar_subquery()
        query = query.where(of.started_at >= filter_.since, of.first_event_seq > func.coalesce(bound, 0))
    return query


async def read_incident(store: Store, incident_id: str) -> IncidentSummary | None:
    """One incident; None if there is none. Raises StoreUnavailableError."""

    def read(connection: Connection) -> IncidentSummary | None:
        row = _SUMMARY.fetch_first(connection, {"incident": incident_id})
        return None if row is None else _build_summaries(connection, [row], store.clock)[0]

    return await store.read(read)


def _read_page(
    connection: Connection, filter_: IncidentFilter, limit: int, before: int | None, clock: Callable[[], float]
) -> IncidentPage:
    first_group, before_seq = (len(WORST_FIRST), None) if before is None else divmod(before, _GROUP)
    rows: list[tuple[int, _SummaryRow]] = []
    for group in range(min(first_group, len(WORST_FIRST)), _RESOLVED - 1, -1):
        if filter_.status not in {None, Status.RESOLVED if group == _RESOLVED else Status.FIRING}:
            continue
        query = _build_query(filter_, group)
        if before_seq is not None and group == first_group:
            query = query.where(incidents.c.first_event_seq < before_seq)
        rows += [(group, row) for row in query.limit(limit + 1 - len(rows)).fetch_all(connection)]
        if len(rows) > limit:
            break
    page = rows[:limit]
    next_before = page[-1][0] * _GROUP + (page[-1][1].first_event_seq or 0) if len(rows) > limit else None
    return IncidentPage(_build_summaries(connection, [row for _, row in page], clock), next_before)


def _build_summaries(
    connection: Connection, rows: Sequence[_SummaryRow], clock: Callable[[], float]
) -> list[IncidentSummary]:
    values = {"incidents": [each.id for each in rows], "now": read_clock(connection, clock)}
    channels: dict[str, dict[str, DeliveryState]] = {}
    for row in _READ_CHANNELS.fetch_all(connection, values):
        channels.setdefault(row.incident_id, {})[row.channel] = DeliveryState(row.state)
    silenced = {row.incident_id: row for row in _READ_SILENCES.fetch_all(connection, values)}
    return [_build_summary(row, channels.get(row.id, {}), silenced.get(row.id)) for row in rows]


def _build_summary(
    row: _SummaryRow, channels: Mapping[str, DeliveryState], silence: _SilenceRow | None
) -> IncidentSummary:
    return IncidentSummary(
        id=row.id,
        alertname=row.alertname,
        service=row.service or None,
        status=Status.FIRING if row.is_open else Status.RESOLVED,
        episode=row.episode,
        title=row.title,
        severity=row.severity or None,
        receiver=row.receiver,
        since=row.started_at,
        ended_at=None if row.is_open else row.accepted_at,
        acknowledged_by=row.acknowledged_by,
        acknowledged_at=row.acknowledged_at,
        acknowledged_via=row.acknowledged_via,
        escalated_to=json.loads(row.escalated_to or "[]"),
        escalated_at=row.escalated_at,
        silenced_by=silence.created_by if silence else None,
        silenced_until=silence.ends_at if silence else None,
        channels=list(channels),
        channel_states=channels,
    )


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
