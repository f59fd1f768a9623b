"""Figures of the incidents of a period: how many, of which alert and service, and how soon they were acknowledged.

Each episode that starts in the period counts. The time to acknowledge goes from its start to the first acknowledgement
in it, be that withdrawn later, as the audit has it. No query changes the outbox or waits for a writer.
"""

from typing import Any, Final, NamedTuple

from sqlalchemy import CTE, Connection, Double, Text, bindparam, cast, func, literal, literal_column, select, union_all
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.functions import GenericFunction

from services.relay.model import MAX_EPISODES
from services.relay.outbox.queries.delivery_figures import Period, Quantiles, is_within, select_quantiles
from services.relay.outbox.rows import RowQuery
from services.relay.outbox.tables import audit, incidents

MAX_GROUPS: Final = 50
"""Alerts, and services, that are listed: those with the most incidents."""


class IncidentGroup(NamedTuple):
    """The incidents of one alert or service."""

    name: str
    """Empty for those without a service."""
    incident_count: int
    acknowledged_count: int


class IncidentFigures(NamedTuple):
    """The incidents that started in a period."""

    incident_count: int
    is_minimum: bool
    """Whether one of them started so often that its earliest starts are not stored."""
    acknowledged_count: int
    time_to_acknowledge: Quantiles
    escalation_count: int
    """How many times one was escalated in the period."""
    alerts: list[IncidentGroup]
    services: list[IncidentGroup]


class _GroupRow(NamedTuple):
    kind: str
    name: str
    incident_count: int
    acknowledged_count: int


class _TimeRow(NamedTuple):
    """None of no times."""

    time_count: int
    p50: float | None
    p95: float | None
    worst: float | None


class _ListItems(GenericFunction[Any]):
    """The items of a JSON list, each in a row, in the column `value`."""

    name = "list_items"
    inherit_cache = True


@compiles(_ListItems, "sqlite")
def _compile_for_sqlite(element: _ListItems, compiler: Any, **options: Any) -> str:
    return f"json_each({compiler.process(element.clauses, **options)})"


@compiles(_ListItems, "postgresql")
def _compile_for_postgresql(element: _ListItems, compiler: Any, **options: Any) -> str:
    return f"json_array_elements_text(CAST({compiler.process(element.clauses, **options)} AS JSON))"


def _select_episodes() -> CTE:
    """The episodes that start in the period or after it, each with its number in the order of their starts."""
    of = incidents.c
    common = (of.id, of.alertname, of.service)
    once = select(*common, of.started_at).where(of.episode == 1, of.started_at >= bindparam("since"))
    starts = _ListItems(of.episode_starts).table_valued("value")
    start = cast(starts.c.value, Double)
    several = (
        select(*common, start)
        .select_from(incidents.join(starts, literal(value=True)))
        # Its last episode is the one that starts last.
        .where(of.episode > 1, of.started_at >= bindparam("since"), start >= bindparam("since"))
    )
    return union_all(once, several).cte("episodes")


_episodes = _select_episodes()
_acknowledgements = (
    select(audit.c.seq, audit.c.at, _episodes.c.id, func.max(_episodes.c.started_at).label("started_at"))
    .join(_episodes, (_episodes.c.id == audit.c.incident_id) & (_episodes.c.started_at <= audit.c.at))
    .where(audit.c.action == "acknowledge", audit.c.at >= bindparam("since"))
    .group_by(audit.c.seq, audit.c.at, _episodes.c.id)
    .cte("acknowledgements")
)
_acknowledged = (
    select(
        _acknowledgements.c.id,
        _acknowledgements.c.started_at,
        (func.min(_acknowledgements.c.at) - _acknowledgements.c.started_at).label("seconds"),
    )
    .where(is_within(_acknowledgements.c.started_at))
    .group_by(_acknowledgements.c.id, _acknowledgements.c.started_at)
    .cte("acknowledged")
)


def _select_groups(kind: str, name: Any, most: int) -> Any:
    """The groups with the most incidents."""
    of = _episodes.c
    groups = (
        select(
            literal_column(f"'{kind}'", Text).label("kind"),
            name.label("name"),
            func.count().label("incident_count"),
            func.count(_acknowledged.c.id).label("acknowledged_count"),
        )
        .select_from(
            _episodes.outerjoin(
                _acknowledged, (_acknowledged.c.id == of.id) & (_acknowledged.c.started_at == of.started_at)
            )
        )
        .where(is_within(of.started_at))
        .group_by(literal_column("2"))
        .order_by(literal_column("3 DESC"), literal_column("2"))
        .limit(most)
        .subquery()
    )
    return select(groups)


_GROUPS: Final = RowQuery(
    _GroupRow,
    select(
        union_all(
            _select_groups("all", literal_column("''", Text), 1),
            _select_groups("alert", func.coalesce(_episodes.c.alertname, ""), MAX_GROUPS),
            _select_groups("service", func.coalesce(_episodes.c.service, ""), MAX_GROUPS),
        ).subquery()
    ),
)
_TIMES: Final = RowQuery(_TimeRow, select_quantiles(select(_acknowledged.c.seconds)))
_ESCALATIONS: Final = RowQuery(
    int, select(func.count(audit.c.seq)).where(audit.c.action == "escalate", is_within(audit.c.at))
)
_flapping = (
    select(_episodes.c.id).group_by(_episodes.c.id).having(func.count() >= literal_column(f"{MAX_EPISODES}")).subquery()
)
_COUNT_FLAPPING: Final = RowQuery(int, select(func.count()).select_from(_flapping))
"""The incidents that may have started more often in the period than is stored."""


def read_incidents(connection: Connection, period: Period) -> IncidentFigures:
    """The figures of the incidents of the period."""
    values = period._asdict()
    rows = _GROUPS.fetch_all(connection, values)
    groups: dict[str, list[IncidentGroup]] = {"all": [], "alert": [], "service": []}
    for row in rows:
        groups[row.kind].append(IncidentGroup(*row[1:]))
    total = groups["all"][0] if groups["all"] else IncidentGroup("", 0, 0)
    times = _TIMES.fetch_one(connection, values)
    return IncidentFigures(
        total.incident_count,
        _COUNT_FLAPPING.fetch_one(connection, values) > 0,
        total.acknowledged_count,
        Quantiles(*times[1:]),
        _ESCALATIONS.fetch_one(connection, values),
        *(sorted(groups[kind], key=lambda each: (-each.incident_count, each.name)) for kind in ("alert", "service")),
    )
