"""The open incidents, the worst first: what each is, who takes care of it, and whether somebody silenced it."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

from sqlalchemy import Connection, and_, bindparam, func, literal_column, select

from services.relay.outbox.operators.silences import SilenceState
from services.relay.outbox.rows import RowQuery
from services.relay.outbox.tables import events, incidents, silences
from services.relay.text import WORST_FIRST


@dataclass(frozen=True, slots=True)
class OpenIncident:
    """An open incident. Times are unix seconds."""

    id: str
    alertname: str
    title: str
    """Cause and effect; empty if it is not stored."""
    severity: str
    """Of `WORST_FIRST`."""
    since: float | None
    acknowledged_by: str | None
    acknowledged_at: float | None
    escalated_to: Sequence[str]
    escalated_at: float | None
    silenced_by: str | None
    """Who silenced it through keypulse. What was silenced in Alertmanager itself is not known."""
    silenced_until: float | None


@dataclass(frozen=True, slots=True)
class OpenIncidents:
    """The worst ones, and how many there are in all."""

    incidents: Sequence[OpenIncident]
    """The worst first; of one severity, the newest first."""
    counts: Mapping[str, int]
    """How many there are of each severity that has any."""
    unacknowledged_counts: Mapping[str, int]
    """How many of them nobody has acknowledged."""

    @property
    def total(self) -> int:
        """How many are open."""
        return sum(self.counts.values())

    @property
    def unacknowledged(self) -> int:
        """How many of all nobody has acknowledged."""
        return sum(self.unacknowledged_counts.values())


class _OpenRow(NamedTuple):
    """An open incident with its latest event."""

    id: str
    episode: int
    alertname: str
    title: str | None
    severity: str | None
    started_at: float | None
    acknowledged_by: str | None
    acknowledged_at: float | None
    escalated_to: str | None
    escalated_at: float | None


class _CountRow(NamedTuple):
    """How many incidents of a severity are open."""

    severity: str | None
    open_count: int
    acknowledged_count: int


class _SilenceRow(NamedTuple):
    """A silence that is in force."""

    incident_id: str
    episode: int
    who: str
    ends_at: float | None


_of = incidents.c
_IS_OPEN: Final = _of.is_open == literal_column("1")
"""As the index `incidents_open_by_severity` has it."""
_COUNTS: Final = RowQuery(
    _CountRow,
    select(
        _of.severity,
        func.count().label("open_count"),
        func.count(_of.acknowledged_by).label("acknowledged_count"),
    ).group_by(_of.severity),
).where(_IS_OPEN)
_OPEN: Final = (
    RowQuery(
        _OpenRow,
        select(*(events.c.alertname if name == "alertname" else _of[name] for name in _OpenRow._fields)).join(
            events, events.c.seq == _of.latest_event_seq
        ),
    )
    .where(_IS_OPEN)
    .order_by(_of.first_event_seq.desc())
    .limit(bindparam("most"))
)
_OPEN_OF_SEVERITY: Final = _OPEN.where(_of.severity == bindparam("level"))
_OPEN_WITHOUT_SEVERITY: Final = _OPEN.where(_of.severity.is_(None))
"""Those that an older version wrote."""
_SILENCES: Final = RowQuery(
    _SilenceRow, select(silences.c.incident_id, silences.c.episode, silences.c.who, silences.c.ends_at)
).where(
    silences.c.incident_id.in_(bindparam("incidents", expanding=True)),
    and_(silences.c.state == SilenceState.CREATED, silences.c.ends_at > bindparam("now")),
)


def read_open_incidents(connection: Connection, now: float, most: int) -> OpenIncidents:
    """At most so many open incidents, and the counts of all; for `Store.read`.

    Args:
        connection: of a read.
        now: unix seconds by the database's clock.
        most: of `OpenIncidents.incidents`.
    """
    counts, unacknowledged = Counter[str](), Counter[str]()
    for row in _COUNTS.fetch_all(connection):
        counts[row.severity or ""] += row.open_count
        unacknowledged[row.severity or ""] += row.open_count - row.acknowledged_count
    rows: list[_OpenRow] = []
    for severity in WORST_FIRST:
        if counts.get(severity) and len(rows) < most:
            rows += _OPEN_OF_SEVERITY.fetch_all(connection, {"level": severity, "most": most - len(rows)})
            if not severity and len(rows) < most:
                rows += _OPEN_WITHOUT_SEVERITY.fetch_all(connection, {"most": most - len(rows)})
    silenced = {}
    if rows:
        values = {"incidents": [row.id for row in rows], "now": now}
        silenced = {(row.incident_id, row.episode): row for row in _SILENCES.fetch_all(connection, values)}
    return OpenIncidents([_build(row, silenced.get((row.id, row.episode))) for row in rows], counts, unacknowledged)


def _build(row: _OpenRow, silence: _SilenceRow | None) -> OpenIncident:
    return OpenIncident(
        id=row.id,
        alertname=row.alertname,
        title=row.title or "",
        severity=row.severity or "",
        since=row.started_at,
        acknowledged_by=row.acknowledged_by,
        acknowledged_at=row.acknowledged_at,
        escalated_to=json.loads(row.escalated_to or "[]"),
        escalated_at=row.escalated_at,
        silenced_by=silence and silence.who,
        silenced_until=silence and silence.ends_at,
    )
