"""What people read of incidents: a list in pages, or one. No query changes the outbox or waits for a writer."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, Final, NamedTuple

from sqlalchemy import Connection, and_, bindparam, select

from services.relay.model import Status
from services.relay.outbox.engine.store import Store
from services.relay.outbox.rows import RowQuery
from services.relay.outbox.tables import deliveries, events, incidents
from shared.http.json_api import format_time


@dataclass(frozen=True, slots=True)
class IncidentSummary:
    """An incident in its current, or last, episode. Times are unix seconds."""

    id: str
    alertname: str
    status: Status
    title: str | None
    """Cause and effect by its latest event; None of an incident from before they were stored."""
    severity: str | None
    """The worst one by its latest event; None if that has no usual one."""
    receiver: str
    since: float | None
    """When the episode started; None if that is not stored."""
    acknowledged_by: str | None
    acknowledged_at: float | None
    acknowledged_via: str | None
    """`api`, `command line` or `slack`."""
    escalated_to: Sequence[str]
    escalated_at: float | None
    channels: Sequence[str]
    """The channels of the episode."""


@dataclass(frozen=True, slots=True)
class IncidentPage:
    """Some incidents, the one whose episode started last first."""

    incidents: list[IncidentSummary]
    before: int | None
    """Where the next page begins; None if there is none. It stays correct while events are added."""


@dataclass(frozen=True, slots=True)
class IncidentFilter:
    """Which incidents; None stands for all."""

    status: Status | None = None
    alertname: str | None = None


class _SummaryRow(NamedTuple):
    """An incident with its latest event."""

    id: str
    episode: int
    is_open: int
    first_event_seq: int | None
    title: str | None
    severity: str | None
    started_at: float | None
    acknowledged_by: str | None
    acknowledged_at: float | None
    acknowledged_via: str | None
    escalated_to: str | None
    escalated_at: float | None
    alertname: str
    receiver: str

    def build_summary(self, channels: Sequence[str]) -> IncidentSummary:
        """As people read it."""
        return IncidentSummary(
            id=self.id,
            alertname=self.alertname,
            status=Status.FIRING if self.is_open else Status.RESOLVED,
            title=self.title or None,
            severity=self.severity or None,
            receiver=self.receiver,
            since=self.started_at,
            acknowledged_by=self.acknowledged_by,
            acknowledged_at=self.acknowledged_at,
            acknowledged_via=self.acknowledged_via,
            escalated_to=json.loads(self.escalated_to or "[]"),
            escalated_at=self.escalated_at,
            channels=channels,
        )


class _ChannelRow(NamedTuple):
    """A channel with a delivery of an episode."""

    incident_id: str
    channel: str


_SUMMARIES: Final = RowQuery(
    _SummaryRow,
    select(
        *(incidents.c[name] for name in _SummaryRow._fields if name not in {"alertname", "receiver"}),
        events.c.alertname,
        events.c.receiver,
    ).join(events, events.c.seq == incidents.c.latest_event_seq),
)
_SUMMARY: Final = _SUMMARIES.where(incidents.c.id == bindparam("incident"))
_READ_CHANNELS: Final = (
    RowQuery(
        _ChannelRow,
        select(deliveries.c.incident_id, deliveries.c.channel)
        .distinct()
        .join(incidents, and_(incidents.c.id == deliveries.c.incident_id, incidents.c.episode == deliveries.c.episode)),
    )
    .where(incidents.c.id.in_(bindparam("incidents", expanding=True)))
    .order_by(deliveries.c.channel)
)


async def list_incidents(
    store: Store, filter_: IncidentFilter, *, limit: int, before: int | None = None
) -> IncidentPage:
    """Incidents, the newest first.

    Args:
        store: the outbox.
        filter_: which of them.
        limit: at most so many.
        before: the `before` of the page that came before this one; None begins with the newest.

    Raises:
        StoreUnavailableError: they cannot be read.
    """
    query = _SUMMARIES.order_by(incidents.c.first_event_seq.desc()).limit(limit + 1)
    if filter_.status is not None:
        query = query.where(incidents.c.is_open == int(filter_.status is Status.FIRING))
    if filter_.alertname is not None:
        query = query.where(events.c.alertname == filter_.alertname)
    if before is not None:
        query = query.where(incidents.c.first_event_seq < before)
    return await store.read(partial(_read_page, query=query, limit=limit))


async def read_incident(store: Store, incident_id: str) -> IncidentSummary | None:
    """One incident; None if there is none. Raises StoreUnavailableError."""

    def read(connection: Connection) -> IncidentSummary | None:
        row = _SUMMARY.fetch_first(connection, {"incident": incident_id})
        return None if row is None else _build_summaries(connection, [row])[0]

    return await store.read(read)


def _read_page(connection: Connection, query: RowQuery[_SummaryRow], limit: int) -> IncidentPage:
    rows = query.fetch_all(connection)
    page = rows[:limit]
    return IncidentPage(_build_summaries(connection, page), page[-1].first_event_seq if len(rows) > limit else None)


def _build_summaries(connection: Connection, rows: Sequence[_SummaryRow]) -> list[IncidentSummary]:
    channels: dict[str, list[str]] = {}
    for row in _READ_CHANNELS.fetch_all(connection, {"incidents": [each.id for each in rows]}):
        channels.setdefault(row.incident_id, []).append(row.channel)
    return [row.build_summary(channels.get(row.id, ())) for row in rows]


def encode_incident(incident: IncidentSummary) -> dict[str, Any]:
    """An incident as API and CLI write it."""
    times = {name: format_time(getattr(incident, name)) for name in ("since", "acknowledged_at", "escalated_at")}
    return {**asdict(incident), **times}


def parse_status(text: str) -> Status:
    """Raises ValueError with what was expected."""
    if text not in list(Status):
        raise ValueError(f"expected one of {', '.join(Status)}")
    return Status(text)
