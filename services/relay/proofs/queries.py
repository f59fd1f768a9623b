"""What people read of the proofs. Times are unix seconds by the database's clock.

How each channel is now; each proof with the seconds to each hop; what has ended, for a matrix; and how much of a time
lies within two intervals after a proof. No query changes the outbox or waits for a writer.
"""

import math
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from operator import neg
from typing import Any, Final, NamedTuple

from sqlalchemy import Connection, Text, and_, bindparam, case, func, literal_column, or_, select

from services.relay.outbox.proofs import (
    CHANNEL_PROOFS,
    FAILING,
    INTERVALS,
    NEVER_PROVEN,
    PATH_PROOFS,
    ChannelProofRow,
    ChannelTimes,
    Hop,
    PathProofRow,
    read_times,
)
from services.relay.outbox.tables import channel_proofs, path_proofs
from shared.http.json_api import format_cursor, format_json_time
from shared.sql.rows import RowQuery, select_columns, select_tuples
from shared.web.time_format import format_rough_duration

OFF: Final = "Nothing is proven: set `proof.every` to the exporter's interval, such as 15m."
STEPS: Final[Mapping[Hop, str]] = {
    Hop.EXPORTER: "See that the exporter runs, that Prometheus scrapes it, and that its `proof.every` is the relay's.",
    Hop.PROMETHEUS: "See that Prometheus runs, has loaded ops/prometheus/rules, and sends to Alertmanager.",
    Hop.ALERTMANAGER: "See Alertmanager's silences, its inhibitions, and its route of KMSPathProof to the relay.",
    Hop.WEBHOOK: "See Alertmanager's log of failed notifications, and that it has the relay's URL and token.",
    Hop.OUTBOX: "See what waits on the channel, and whether its rate allows a proof beside it.",
    Hop.CHANNEL: "Correct what its error says; `keypulse-relay doctor` tries the channel again.",
    Hop.UNKNOWN: "See each hop from the exporter to the relay in turn; without an exporter set `proof.every: 0`.",
}
"""What to do about a hop."""
_DAY: Final = 86400.0
_MAX_SERVICES: Final = 100
"""Of one interval, those that are listed at least."""


@dataclass(frozen=True, slots=True)
class Standing:
    """How far a channel is proven."""

    channel: str
    times: ChannelTimes
    last: ChannelProofRow | None
    """The newest proof that has ended, has failed so far, or has no turn; None where there is none of late."""

    @property
    def level(self) -> str | None:
        """Of its last success; None if it never had one."""
        return max(self.times.by_level, key=lambda level: self.times.by_level[level], default=None)

    @property
    def proven_at(self) -> float | None:
        """Its last success."""
        return max(self.times.by_level.values(), default=None)

    @property
    def hop(self) -> str | None:
        """Where its last proof was lost, or is failing now; None if it is not."""
        if self.last is None or self.last.hop or self.last.level or not self.last.error:
            return self.last and self.last.hop
        return Hop.CHANNEL  # as `record_losses` counts it

    @property
    def error(self) -> str | None:
        """Why its last proof was lost, or got no further."""
        return self.last and self.last.error

    def is_ok(self, now: float, every: float) -> bool | None:
        """Whether it was proven within two intervals; None while its first proof since it is served is not lost yet."""
        proven, since = (
            at is not None and now - at <= INTERVALS * every for at in (self.proven_at, self.times.proven_at)
        )
        if proven:
            return True
        return None if not (self.last and self.last.hop) and (since or self.times.proven_at is None) else False


_proof = channel_proofs.c
_newest = (
    select(_proof.channel, func.max(_proof.interval_at).label("interval_at"))
    .where(
        _proof.interval_at >= bindparam("since"),
        or_(
            _proof.ended_at.is_not(None),
            _proof.error.is_not(None),
            _proof.channel.in_(bindparam("failing", expanding=True)),
        ),
    )
    .group_by(_proof.channel)
    .subquery()
)
_LAST: Final = RowQuery(
    ChannelProofRow,
    select(*select_columns(ChannelProofRow, _proof)).join(
        _newest, and_(_newest.c.channel == _proof.channel, _newest.c.interval_at == _proof.interval_at)
    ),
)


def read_standings(connection: Connection, names: Iterable[str], now: float, every: float) -> list[Standing]:
    """How each of these channels is, in their order; for `Store.read`."""
    since = now - max(_DAY, (INTERVALS + 1) * every)
    times, failing = read_times(connection), dict(FAILING.fetch_all(connection))
    last = {row.channel: row for row in _LAST.fetch_all(connection, {"since": since, "failing": [*failing]})}
    for name in failing.keys() & last.keys():
        if last[name].ended_at is None:
            last[name] = last[name]._replace(error=last[name].error or failing[name] or "its circuit breaker is open")
    return [Standing(name, times.get(name, NEVER_PROVEN), last.get(name)) for name in names]


class ListedProof(NamedTuple):
    """The proof of an interval, of one service."""

    started_at: float
    path: PathProofRow | None
    """None where it was lost before the relay, so that nobody knows of which service."""
    channels: Sequence[ChannelProofRow]

    def list_hops(self) -> dict[str, float | None]:
        """The seconds from its start to each hop, where they are known."""
        path = self.path
        times = (
            (None,) * 4 if path is None else (path.raised_at, path.alertmanager_at, path.received_at, path.accepted_at)
        )
        names = ("prometheus", "alertmanager", "webhook", "outbox")
        return {name: None if at is None else at - self.started_at for name, at in zip(names, times, strict=True)}


class ProofPage(NamedTuple):
    """Proofs, the newest first; those of an interval are on one page."""

    proofs: Sequence[ListedProof]
    before: int | None
    """The next page has those before it, in milliseconds; None if this is the last one."""


_INTERVALS: Final = (
    RowQuery(float, select(_proof.interval_at).distinct())
    .where(_proof.interval_at < bindparam("before"))
    .order_by(_proof.interval_at.desc())
    .limit(bindparam("most"))
)
_CHANNELS_OF: Final = CHANNEL_PROOFS.where(
    _proof.interval_at.between(bindparam("oldest"), bindparam("newest"))
).order_by(_proof.interval_at, _proof.channel)
_path = path_proofs.c
_PATHS_OF: Final = (
    PATH_PROOFS.where(_path.started_at >= bindparam("oldest"), _path.started_at < bindparam("before"))
    .order_by(_path.started_at.desc(), _path.env, _path.service)
    .limit(bindparam("most"))
)


def read_proofs(connection: Connection, limit: int, before: int | None = None) -> ProofPage:
    """At most so many proofs before a time, where one interval does not have more; for `Store.read`."""
    end = 1e12 if before is None else before / 1000
    intervals = _INTERVALS.fetch_all(connection, {"before": end, "most": limit + 1})
    if not intervals:
        return ProofPage([], None)
    bounds = {"oldest": intervals[-1], "newest": intervals[0]}
    channels: dict[float, list[ChannelProofRow]] = {}
    for row in _CHANNELS_OF.fetch_all(connection, bounds):
        channels.setdefault(row.interval_at, []).append(row)
    paths: dict[float, list[PathProofRow]] = {}
    values = {"oldest": intervals[-1], "before": end, "most": max(limit, _MAX_SERVICES) + 1}
    for path in _PATHS_OF.fetch_all(connection, values):
        paths.setdefault(intervals[bisect_left(intervals, -path.started_at, key=neg)], []).append(path)
    listed: list[ListedProof] = []
    for number, interval in enumerate(intervals):
        rows = channels[interval]
        found = [ListedProof(path.started_at, path, rows) for path in paths.get(interval, ())]
        found = found or [ListedProof(interval, None, rows)]
        if listed and len(listed) + len(found) > limit:
            return ProofPage(listed, round(intervals[number - 1] * 1000))
        listed += found
    return ProofPage(listed, None)


_NEWEST_PATH: Final = PATH_PROOFS.order_by(_path.started_at.desc()).limit(1)


def read_last_proofs(connection: Connection) -> Sequence[ListedProof]:
    """Those of the last interval of which any came; for `Store.read`."""
    path = _NEWEST_PATH.fetch_first(connection)
    return () if path is None else read_proofs(connection, 1, round(path.started_at * 1000) + 1).proofs


def encode_proofs(standings: Iterable[Standing], page: ProofPage, now: float, every: float) -> dict[str, Any]:
    """As JSON."""
    return {
        "channels": [
            {
                "channel": each.channel,
                "level": each.level,
                "proven_at": format_json_time(each.proven_at),
                "age_seconds": None if each.proven_at is None else round(now - each.proven_at, 3),
                "ok": each.is_ok(now, every),
                "hop": each.hop,
                "error": each.error,
            }
            for each in standings
        ],
        "proofs": [_encode_proof(proof) for proof in page.proofs],
        "next_cursor": format_cursor(page.before),
    }


def _encode_proof(proof: ListedProof) -> dict[str, Any]:
    return {
        "started": format_json_time(proof.started_at),
        "service": proof.path and proof.path.service,
        "env": proof.path and proof.path.env,
        "hops": {name: None if at is None else round(at, 3) for name, at in proof.list_hops().items()},
        "channels": [
            {
                "channel": each.channel,
                "level": each.level,
                "seconds": round(each.ended_at - proof.started_at, 3) if each.level and each.ended_at else None,
                "error": each.error,
            }
            for each in proof.channels
        ],
    }


PROVEN: Final = "proven"
PARTLY: Final = "partly"
"""Proven, while something failed at the next level."""
Ended = tuple[float, str, float]
"""Of a channel: when its interval began; `PROVEN`, `PARTLY` or the hop at which it was lost; and when it ended."""
_outcome = case(
    (_proof.hop.is_not(None), _proof.hop),
    (_proof.error.is_not(None), literal_column(f"'{PARTLY}'", Text)),
    else_=literal_column(f"'{PROVEN}'", Text),
).label("outcome")
# In the order of the table: to sort a month's takes longer than to read them.
_ENDED: Final = (
    select_tuples(
        tuple[str, float, str, float],
        select(_proof.channel, _proof.interval_at, _outcome, func.coalesce(_proof.ended_at, _proof.interval_at)),
    )
    .where(_proof.interval_at >= bindparam("since"), _proof.ended_at.is_not(None))
    .order_by(_proof.interval_at, _proof.channel)
)
_BEGUN: Final = select_tuples(
    tuple[str, float], select(_proof.channel, func.min(_proof.interval_at)).group_by(_proof.channel)
)


class History(NamedTuple):
    """The proofs of a channel that ended."""

    channel: str
    proofs: Sequence[Ended]
    """In the order of their intervals."""
    begun_at: float
    """The interval of its first proof, of all that are kept, be it a lost one; infinite without any."""


def read_histories(connection: Connection, names: Iterable[str], since: float, every: float) -> list[History]:
    """Of these channels, from two intervals before a time on; for `Store.read`."""
    proofs: dict[str, list[Ended]] = {}
    for channel, interval_at, outcome, ended_at in _ENDED.fetch_all(connection, {"since": since - INTERVALS * every}):
        proofs.setdefault(channel, []).append((interval_at, outcome, ended_at))
    begun = dict(_BEGUN.fetch_all(connection))
    return [History(name, proofs.get(name, ()), begun.get(name, math.inf)) for name in names]


class Gap(NamedTuple):
    """A time in which a channel was not proven."""

    since: float
    until: float
    hop: str | None
    """Where most of its proofs were lost; None where no relay judged any."""

    @property
    def seconds(self) -> float:
        return self.until - self.since


class Coverage(NamedTuple):
    """How much of a time a channel was proven."""

    channel: str
    share: float | None
    """From 0 to 1; None where no proof had ended yet."""
    gap: Gap | None
    """The longest."""


def measure_coverage(history: History, since: float, until: float, every: float) -> Coverage:
    """Which share of a time lies within two intervals after a proof, and the longest gap.

    The time begins when a channel was first proven, or when its first proof was lost.
    """
    reach = INTERVALS * every
    proven = sorted(ended for _, outcome, ended in history.proofs if outcome in {PROVEN, PARTLY})
    covered = start = max(since, min([history.begun_at + reach, *proven[:1]]))
    if start >= until:
        return Coverage(history.channel, None, None)
    gaps: list[Gap] = []
    for at in [*proven, until]:
        if covered < min(at, until):
            gaps.append(Gap(covered, min(at, until), None))
        covered = max(covered, at + reach)
    share, gap = 1 - sum(each.seconds for each in gaps) / (until - start), None
    if gaps:
        gap = max(gaps, key=lambda each: each.seconds)
        hops = Counter(hop for at, hop, _ in history.proofs if gap.since - reach <= at < gap.until)
        del hops[PROVEN], hops[PARTLY]
        gap = gap._replace(hop=next((hop for hop, _ in hops.most_common(1)), None))
    return Coverage(history.channel, share, gap)


def format_coverage(coverage: Sequence[Coverage]) -> str:
    """`every path proven 99.7 % of the time; longest gap 31 min, at alertmanager`; never more than is true."""
    shares = [each.share for each in coverage if each.share is not None]
    if not shares:
        return "no proof has ended in this time"
    path = "every path" if len(coverage) > 1 else "path"
    text = f"{path} proven {math.floor(min(shares) * 1000 + 1e-6) / 10:g} % of the time"
    gaps = [(each.gap, each.channel) for each in coverage if each.gap is not None]
    if gaps:
        gap, channel = max(gaps, key=lambda each: each[0].seconds)
        where = f", {format_hop(gap.hop)}" if gap.hop else ""
        if len(coverage) > 1 and gap.hop in {None, Hop.OUTBOX, Hop.CHANNEL}:  # not before all of them
            where += f", on {channel}"
        text += f"; longest gap {format_rough_duration(gap.seconds)}{where}"
    return text


def format_hop(hop: str) -> str:
    """Where a proof was lost: `at alertmanager`."""
    return "before the relay" if hop == Hop.UNKNOWN else f"at {hop}"
