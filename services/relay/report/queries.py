"""The figures of a period: its incidents and deliveries, and what took the slowest deliveries so long.

A delivery belongs to the period in which it was delivered or given up. Its time goes from the acceptance of the oldest
event in it to its receipt; of one that a retry, a fallback, an escalation or a person added later, from then on. An
episode belongs to the period in which it starts; its time to acknowledge goes to the first acknowledgement in it, even
if that was withdrawn later. A quantile is the smallest time that so many percent do not exceed: exact, and computed by
the database. No query changes the outbox or waits for a writer.
"""

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from sqlalchemy import (
    CTE,
    ColumnElement,
    Connection,
    Double,
    Select,
    Text,
    and_,
    bindparam,
    case,
    cast,
    func,
    literal,
    literal_column,
    select,
    union_all,
)
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.functions import GenericFunction

from services.relay.channels.port import SendReason
from services.relay.model import MAX_EPISODES
from services.relay.outbox.audit import PrunedKind, read_pruned
from services.relay.outbox.proofs import KEPT_SECONDS
from services.relay.outbox.tables import (
    IS_UNSETTLED,
    UNFINISHED,
    attempts,
    audit,
    deliveries,
    events,
    incidents,
    quarantine,
)
from services.relay.proofs.queries import Coverage, measure_coverage, read_histories
from shared.sql.rows import RowQuery, select_columns, select_values


class Period(NamedTuple):
    """From `since` until before `until`, unix seconds."""

    since: float
    until: float


class Quantiles(NamedTuple):
    """Of times, in seconds; None of no times."""

    p50: float | None = None
    p95: float | None = None
    worst: float | None = None


class ChannelFigures(NamedTuple):
    channel: str
    delivered: int
    dead: int
    waiting: int
    """Accepted in the period, and still to be sent now."""
    time_to_deliver: Quantiles


@dataclass(frozen=True, slots=True)
class DeadGroup:
    """What was given up in a period on a channel for a reason, and was not sent again."""

    channel: str
    reason: str | None
    """How the last attempt ended; None without an attempt."""
    count: int
    last_id: str
    """The delivery that was given up last."""
    last_at: float
    last_answer: str | None
    """The provider's, to its last attempt."""


@dataclass(frozen=True, slots=True)
class RefusedGroup:
    """Webhooks of a period that were not accepted, for one reason."""

    code: int
    reason: str
    count: int
    last_at: float


class _DeliveredRow(NamedTuple):
    channel: str
    time_count: int
    p50: float
    p95: float
    worst: float


class _CountRow(NamedTuple):
    name: str
    number: int


_of = deliveries.c
# In literals, as the indexes `deliveries_delivered` and `deliveries_dead` have it.
IS_DELIVERED: Final = _of.state == literal_column("'delivered'")
IS_DEAD: Final = and_(_of.state == literal_column("'dead'"), _of.finished_at.is_not(None))
TIME_TO_DELIVER: Final = _of.finished_at - _of.oldest_accepted_at


def is_within(moment: ColumnElement[Any]) -> ColumnElement[bool]:
    """Whether a time is in the period of the bound parameters `since` and `until`."""
    return and_(moment >= bindparam("since"), moment < bindparam("until"))


def select_quantiles(times: Select[Any], *groups: str) -> Select[*tuple[Any, ...]]:
    """For each group of times, of the column `seconds`: the group's columns, how many there are, their quantiles."""
    of = times.subquery().c
    share = func.cume_dist().over(partition_by=[of[name] for name in groups] or None, order_by=of.seconds)
    ranked = select(*(of[name] for name in groups), of.seconds, share.label("share")).subquery().c
    return select(
        *(ranked[name] for name in groups),
        func.count().label("time_count"),
        func.min(case((ranked.share >= literal_column("0.5"), ranked.seconds))).label("p50"),
        func.min(case((ranked.share >= literal_column("0.95"), ranked.seconds))).label("p95"),
        func.max(ranked.seconds).label("worst"),
    ).group_by(*(ranked[name] for name in groups))


_DELIVERED: Final = RowQuery(
    _DeliveredRow,
    select_quantiles(
        select(_of.channel, TIME_TO_DELIVER.label("seconds")).where(IS_DELIVERED, is_within(_of.finished_at)),
        "channel",
    ),
)
_dead = (
    select(
        _of.channel,
        _of.reason,
        func.count().label("dead_count"),
        func.max(_of.seq).label("last_seq"),
        func.max(_of.finished_at).label("last_at"),
    )
    .where(IS_DEAD, is_within(_of.finished_at))
    .group_by(_of.channel, _of.reason)
    .subquery()
    .c
)
_any_attempt = attempts.alias("any_attempt").c
_last_attempt = (
    select(func.max(_any_attempt.number)).where(_any_attempt.delivery_seq == _of.seq).correlate(deliveries)
).scalar_subquery()
_DEAD: Final = RowQuery(
    DeadGroup,
    select(
        *select_columns(
            DeadGroup,
            _dead,
            count=_dead.dead_count,
            last_id=_of.id,
            last_answer=func.nullif(attempts.c.detail, "", type_=Text),
        )
    )
    .join(deliveries, _of.seq == _dead.last_seq)
    .outerjoin(attempts, and_(attempts.c.delivery_seq == _of.seq, attempts.c.number == _last_attempt)),
)
_WAITING: Final = RowQuery(
    _CountRow,
    select(_of.channel.label("name"), func.count().label("number"))
    .where(IS_UNSETTLED, _of.state.in_([*map(str, UNFINISHED)]), is_within(_of.oldest_accepted_at))
    .group_by(_of.channel),
)
_REFUSED: Final = RowQuery(
    RefusedGroup,
    select(*select_columns(RefusedGroup, quarantine.c, count=func.count(), last_at=func.max(quarantine.c.received_at)))
    .where(is_within(quarantine.c.received_at))
    .group_by(quarantine.c.code, quarantine.c.reason),
).order_by(func.count().desc(), quarantine.c.code, quarantine.c.reason)


def read_dead(connection: Connection, period: Period) -> list[DeadGroup]:
    """What was given up and not sent again, the most frequent first."""
    groups = _DEAD.fetch_all(connection, period._asdict())
    return sorted(groups, key=lambda group: (-group.count, group.channel, group.reason or ""))


def read_channels(
    connection: Connection, period: Period, configured: Iterable[str], dead: Iterable[DeadGroup]
) -> list[ChannelFigures]:
    """Each configured channel, and each other one with deliveries in the period, by name."""
    delivered = {row.channel: row for row in _DELIVERED.fetch_all(connection, period._asdict())}
    waiting: Mapping[str, int] = dict(_WAITING.fetch_all(connection, period._asdict()))
    given_up = Counter[str]()
    for group in dead:
        given_up[group.channel] += group.count
    return [
        ChannelFigures(
            name,
            delivered[name].time_count if name in delivered else 0,
            given_up[name],
            waiting.get(name, 0),
            Quantiles(*delivered[name][2:]) if name in delivered else Quantiles(),
        )
        for name in sorted({*configured, *delivered, *waiting, *given_up})
    ]


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
        # Its last episode starts last.
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
            _select_groups("alert", _episodes.c.alertname, MAX_GROUPS),
            _select_groups("service", _episodes.c.service, MAX_GROUPS),
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
    groups: dict[str, list[IncidentGroup]] = {"all": [], "alert": [], "service": []}
    for row in _GROUPS.fetch_all(connection, values):
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


MAX_SLOW: Final = 20
_MAX_MERGED: Final = 50
"""Merged deliveries of the same incident whose attempts are read."""
_MAX_ATTEMPTS: Final = 1000
_MAX_OTHERS: Final = 200
"""Other deliveries on the channel whose attempts are read."""
MIN_WAIT: Final = 1.0
"""Seconds before the first attempt of which a cause is looked for."""
_NOT_OF_THE_CHANNEL: Final = [SendReason.OK.value, SendReason.REJECTED.value, SendReason.INTERNAL.value]
"""How attempts end that pause no channel."""
MAX_COUNTED: Final = 1000
"""Other deliveries that are counted."""


class SlowAttempt(NamedTuple):
    """One try of a delivery, or of one that was merged into it."""

    started_at: float
    seconds: float
    reason: str
    detail: str


class SlowDelivery(NamedTuple):
    """A delivery that took long, and what is known of the reason. Times are unix seconds."""

    id: str
    incident_id: str
    channel: str
    alertname: str
    status: str
    accepted_at: float
    """When its oldest event was accepted."""
    delivered_at: float
    is_digest: bool
    """Whether a digest delivered or named it."""
    is_restored: bool
    """Whether it waited in an outbox that was restored from a backup."""
    attempts: Sequence[SlowAttempt]
    """The oldest first; some are of deliveries that were merged into it."""
    blocked: float = 0.0
    """Seconds of `waited`, from the beginning, in which nothing else was delivered on its channel."""
    other_failures: Mapping[str, int] = {}
    """Of attempts of other deliveries on its channel in these seconds, by reason."""
    others_delivered: int = 0
    """On its channel, in the rest of `waited`; at most `MAX_COUNTED`."""

    @property
    def seconds(self) -> float:
        """From acceptance to receipt."""
        return self.delivered_at - self.accepted_at

    @property
    def waited(self) -> float:
        """Seconds before its first attempt."""
        if not self.attempts:
            return self.seconds
        return min(max(self.attempts[0].started_at - self.accepted_at, 0.0), self.seconds)


class _SlowRow(NamedTuple):
    seq: int
    id: str
    incident_id: str
    episode: int
    channel: str
    alertname: str
    status: str
    oldest_accepted_at: float
    finished_at: float | None
    digest: str | None
    maybe_delivered_up_to: int | None


_attempt = attempts.c
_slowest = (
    select(_of.seq)
    .where(IS_DELIVERED, is_within(_of.finished_at))
    .order_by(TIME_TO_DELIVER.desc(), _of.seq)
    .limit(MAX_SLOW)
    .subquery()
)
_SLOWEST: Final = RowQuery(
    _SlowRow,
    select(*select_columns(_SlowRow, _of, events.c, digest=func.coalesce(_of.digest_id, _of.named_in)))
    .join(_slowest, _slowest.c.seq == _of.seq)
    .join(events, events.c.seq == _of.event_seq),
).order_by(TIME_TO_DELIVER.desc(), _of.seq)
_merged = (
    select(_of.seq)
    .where(
        _of.incident_id == bindparam("incident_id"),
        _of.episode == bindparam("episode"),
        _of.channel == bindparam("channel"),
        _of.seq <= bindparam("seq"),
    )
    .order_by(_of.seq.desc())
    .limit(_MAX_MERGED)
    .subquery()
)
_ATTEMPTS: Final = (
    RowQuery(
        SlowAttempt,
        select(*select_columns(SlowAttempt, _attempt)).join(_merged, _merged.c.seq == _attempt.delivery_seq),
    )
    .where(_attempt.started_at.between(bindparam("oldest_accepted_at"), bindparam("finished_at")))
    .order_by(_attempt.started_at)
    .limit(_MAX_ATTEMPTS)
)


_on_channel = _of.channel == bindparam("channel")
_is_other = _of.seq != bindparam("seq")
_FIRST_OTHER: Final = select_values(float, func.min(_of.finished_at)).where(
    IS_DELIVERED, _on_channel, _is_other, is_within(_of.finished_at)
)
_COUNT_OTHERS: Final = RowQuery(
    int,
    select(func.count()).select_from(
        select(_of.seq)
        .where(IS_DELIVERED, _on_channel, _is_other, is_within(_of.finished_at))
        .limit(MAX_COUNTED)
        .subquery()
    ),
)


def _select_ended(state: ColumnElement[bool]) -> Any:
    """The first deliveries of the channel that ended from `since` on, so they were tried in the seconds after it."""
    ended = select(_of.seq).where(state, _on_channel, _is_other, _of.finished_at >= bindparam("since"))
    return select(ended.order_by(_of.finished_at).limit(_MAX_OTHERS).subquery().c.seq)


_others = union_all(_select_ended(IS_DELIVERED), _select_ended(IS_DEAD)).subquery()
_OTHER_FAILURES: Final = RowQuery(
    _CountRow,
    select(_attempt.reason.label("name"), func.count().label("number"))
    .join(_others, _others.c.seq == _attempt.delivery_seq)
    .group_by(_attempt.reason),
).where(_attempt.reason.not_in(_NOT_OF_THE_CHANNEL), is_within(_attempt.started_at))


def read_slowest(connection: Connection, period: Period) -> list[SlowDelivery]:
    """The slowest deliveries of the period, the slowest first."""
    return [_read_delay(connection, row) for row in _SLOWEST.fetch_all(connection, period._asdict())]


def _read_delay(connection: Connection, row: _SlowRow) -> SlowDelivery:
    start, end = row.oldest_accepted_at, row.finished_at or row.oldest_accepted_at
    delivery = SlowDelivery(
        row.id,
        row.incident_id,
        row.channel,
        row.alertname,
        row.status,
        start,
        end,
        row.digest is not None,
        row.maybe_delivered_up_to is not None,
        _ATTEMPTS.fetch_all(connection, row._asdict()),
    )
    if delivery.waited < MIN_WAIT:
        return delivery
    values = {"channel": row.channel, "seq": row.seq, "since": start, "until": start + delivery.waited}
    first = _FIRST_OTHER.fetch_first(connection, values)
    blocked = delivery.waited if first is None else first - start
    return delivery._replace(
        blocked=blocked,
        other_failures=dict(_OTHER_FAILURES.fetch_all(connection, {**values, "until": start + blocked})),
        others_delivered=0 if first is None else _COUNT_OTHERS.fetch_one(connection, values),
    )


class PathFigures(NamedTuple):
    """How much of the period each channel was proven."""

    channels: list[Coverage]
    complete_since: float | None
    """Older proofs are not kept; None where all of the period are."""


def read_paths(
    connection: Connection, period: Period, channels: Iterable[str], now: float, every: float
) -> PathFigures | None:
    """Up to now at most, of these channels; None where nothing is proven."""
    if not every:
        return None
    kept_since = now - KEPT_SECONDS
    since, until = max(period.since, kept_since), min(period.until, now)
    histories = read_histories(connection, sorted(channels), since, every)
    coverage = [measure_coverage(history, since, until, every) for history in histories]
    return PathFigures(coverage, kept_since if period.since < kept_since else None)


class Report(NamedTuple):
    """What happened in a period, as far as it is stored. Times are unix seconds."""

    period: Period
    complete_since: float | None
    """Retention has deleted what is older; None where it has deleted nothing of the period."""
    incidents: IncidentFigures
    channels: list[ChannelFigures]
    slowest: list[SlowDelivery]
    dead: list[DeadGroup]
    refused: list[RefusedGroup]
    is_refused_minimum: bool
    """Whether more webhooks were refused in the period than the quarantine still has."""
    paths: PathFigures | None


def read_report(
    connection: Connection, period: Period, channels: Collection[str], *, now: float, proof_every: float
) -> Report:
    """The report of a period, for `Store.read`; each of these channels is listed, be it without a delivery."""
    dead = read_dead(connection, period)
    marks = read_pruned(connection)
    deleted_up_to = max((at for kind, at in marks.items() if kind is not PrunedKind.QUARANTINE), default=0.0)
    return Report(
        period,
        deleted_up_to if deleted_up_to >= period.since else None,
        read_incidents(connection, period),
        read_channels(connection, period, channels, dead),
        read_slowest(connection, period),
        dead,
        _REFUSED.fetch_all(connection, period._asdict()),
        is_refused_minimum=marks.get(PrunedKind.QUARANTINE, 0.0) >= period.since,
        paths=read_paths(connection, period, channels, now, proof_every),
    )
