"""A report as people and programs read it: why deliveries were late, JSON, CSV, and which period an address names.

A report of 100,000 deliveries keeps one of the outbox's readers busy for a quarter of a second, and the senders need
these, too: so reports are read one at a time, and one serves all who ask for the same period within seconds.
"""

import asyncio
import csv
import io
import math
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import asdict
from datetime import date, datetime, timedelta, tzinfo
from enum import StrEnum
from functools import partial
from typing import Any, Final, NamedTuple

from services.relay.channels.port import SendReason
from services.relay.deliveries.queries import parse_since, parse_time
from services.relay.outbox.store import Store, StoreUnavailableError
from services.relay.proofs.queries import format_coverage
from services.relay.report.queries import (
    MAX_COUNTED,
    MIN_WAIT,
    ChannelFigures,
    DeadGroup,
    IncidentFigures,
    IncidentGroup,
    PathFigures,
    Period,
    Quantiles,
    RefusedGroup,
    Report,
    SlowDelivery,
    read_report,
)
from services.relay.text import format_seconds
from shared.http.json_api import format_json_time, parse_parameter

_SHARE: Final = 0.2
"""A part of the whole time below which nothing is said of it."""


class DelayCause(StrEnum):
    """What took most of the time."""

    PROVIDER = "provider"
    """Its attempts failed, or its provider answered slowly."""
    RATE_LIMIT = "rate_limit"
    """Of the channel, or of its provider."""
    CIRCUIT_BREAKER = "circuit_breaker"
    """Other messages had failed on the channel, so it was not tried."""
    RESTORED_BACKUP = "restored_backup"
    """It waited for the comparison with Alertmanager."""
    UNKNOWN = "unknown"
    """Nothing was delivered on the channel meanwhile, and no attempt failed: no relay may have run."""


class Delay(NamedTuple):
    cause: DelayCause
    why: str
    """One sentence, without a full stop; the provider's words are not in it."""


_Explain = Callable[[SlowDelivery, str], Delay]
"""Of a delivery, and how long a part of its delay was."""


def explain_delay(delivery: SlowDelivery) -> Delay:
    """What took the time of a delivery, the larger part first."""
    attempting = delivery.seconds - delivery.waited
    parts: list[tuple[float, _Explain]] = [(attempting, _explain_attempts)]
    if delivery.is_restored:
        parts.append((delivery.waited, _explain_restore))
    elif delivery.waited >= MIN_WAIT:
        parts += [(delivery.blocked, _explain_block), (delivery.waited - delivery.blocked, _explain_queue)]
    parts.sort(key=lambda part: -part[0])
    delays = [
        explain(delivery, format_seconds(seconds))
        for number, (seconds, explain) in enumerate(parts)
        if number == 0 or seconds >= _SHARE * delivery.seconds
    ]
    return Delay(delays[0].cause, "; ".join(delay.why for delay in delays))


def _explain_restore(_delivery: SlowDelivery, waited: str) -> Delay:
    return Delay(DelayCause.RESTORED_BACKUP, f"waited {waited} after a backup was restored")


def _explain_block(delivery: SlowDelivery, waited: str) -> Delay:
    failures = delivery.other_failures
    if not failures:
        return Delay(DelayCause.UNKNOWN, f"waited {waited}; nothing was delivered on the channel, no reason is stored")
    limited = failures.get(SendReason.RATE_LIMITED, 0) * 2 > sum(failures.values())
    cause = DelayCause.RATE_LIMIT if limited else DelayCause.CIRCUIT_BREAKER
    return Delay(cause, f"waited {waited} while other messages failed on the channel: {_format_counts(failures)}")


def _explain_queue(delivery: SlowDelivery, waited: str) -> Delay:
    count = delivery.others_delivered
    ahead = f"{count} or more other messages" if count >= MAX_COUNTED else f"{count} other message{'s'[: count != 1]}"
    digest = "; a digest delivered it" if delivery.is_digest else ""
    return Delay(DelayCause.RATE_LIMIT, f"waited {waited} for the rate limit, behind {ahead}{digest}")


def _explain_attempts(delivery: SlowDelivery, attempting: str) -> Delay:
    failures = Counter(each.reason for each in delivery.attempts if each.reason != SendReason.OK)
    if not failures:
        return Delay(DelayCause.PROVIDER, f"the provider took {attempting} to answer")
    summary = (
        f"{failures.total()} of {len(delivery.attempts)} attempts failed in {attempting}: {_format_counts(failures)}"
    )
    limited = failures[SendReason.RATE_LIMITED] * 2 > failures.total()
    return Delay(DelayCause.RATE_LIMIT if limited else DelayCause.PROVIDER, summary)


def _format_counts(failures: Mapping[str, int]) -> str:
    """`timeout (3), server_error`, the most frequent first."""
    listed = sorted(failures.items(), key=lambda each: (-each[1], each[0]))
    return ", ".join(reason if count == 1 else f"{reason} ({count})" for reason, count in listed)


CSV_COLUMNS: Final = (
    *("from", "to", "complete_since", "section", "channel", "name", "count", "acknowledged", "dead", "waiting"),
    *("p50_seconds", "p95_seconds", "worst_seconds", "reason", "detail"),
)
_FORMULA_STARTS: Final = ("=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠")  # noqa: RUF001  # full-width, too
"""With these a spreadsheet takes text for a formula."""
_IS_MINIMUM: Final = "there were more than are stored"
"""Of a count."""


def encode_report(report: Report) -> dict[str, Any]:
    """The report as a JSON object."""
    return {
        "from": format_json_time(report.period.since),
        "to": format_json_time(report.period.until),
        "complete_since": format_json_time(report.complete_since),
        "incidents": _encode_incidents(report.incidents),
        "channels": [_encode_channel(each) for each in report.channels],
        "late": [_encode_late(each) for each in report.slowest],
        "never_delivered": [_encode_last(each) for each in report.dead],
        "refused_webhooks": {
            "count": sum(each.count for each in report.refused),
            "is_minimum": report.is_refused_minimum,
            "reasons": [_encode_last(each) for each in report.refused],
        },
        "paths": report.paths and _encode_paths(report.paths),
    }


def _encode_channel(figures: ChannelFigures) -> dict[str, Any]:
    encoded = figures._asdict()
    return encoded | _encode_quantiles(encoded.pop("time_to_deliver"))


def _encode_last(group: DeadGroup | RefusedGroup) -> dict[str, Any]:
    return {**asdict(group), "last_at": format_json_time(group.last_at)}


def _encode_paths(figures: PathFigures) -> dict[str, Any]:
    return {
        "summary": format_coverage(figures.channels),
        "complete_since": format_json_time(figures.complete_since),
        "channels": [
            {
                "channel": each.channel,
                "proven_share": None if each.share is None else math.floor(each.share * 1e5) / 1e5,
                "longest_gap_seconds": each.gap and round(each.gap.seconds, 3),
                "longest_gap_at": each.gap and format_json_time(each.gap.since),
                "hop": each.gap and each.gap.hop,
            }
            for each in figures.channels
        ],
    }


def _encode_incidents(figures: IncidentFigures) -> dict[str, Any]:
    share = round(figures.acknowledged_count / figures.incident_count, 3) if figures.incident_count else None
    return {
        "count": figures.incident_count,
        "is_minimum": figures.is_minimum,
        "acknowledged": figures.acknowledged_count,
        "acknowledged_share": share,
        "time_to_acknowledge": _encode_quantiles(figures.time_to_acknowledge),
        "escalations": figures.escalation_count,
        "alerts": [_encode_group("alertname", each) for each in figures.alerts],
        "services": [_encode_group("service", each) for each in figures.services],
    }


def _encode_group(key: str, group: IncidentGroup) -> dict[str, Any]:
    return {key: group.name, "count": group.incident_count, "acknowledged": group.acknowledged_count}


def _encode_quantiles(times: Quantiles) -> dict[str, float | None]:
    return {f"{name}_seconds": None if value is None else round(value, 3) for name, value in times._asdict().items()}


def _encode_late(delivery: SlowDelivery) -> dict[str, Any]:
    delay = explain_delay(delivery)
    return {
        "id": delivery.id,
        "incident_id": delivery.incident_id,
        "channel": delivery.channel,
        "alertname": delivery.alertname,
        "status": delivery.status,
        "accepted_at": format_json_time(delivery.accepted_at),
        "delivered_at": format_json_time(delivery.delivered_at),
        "seconds": round(delivery.seconds, 3),
        "cause": delay.cause.value,
        "why": delay.why,
    }


def format_csv(report: Report) -> str:
    """The report as CSV, with a head; no cell is a formula for a spreadsheet."""
    encoded = encode_report(report)
    period = {name: encoded[name] for name in ("from", "to", "complete_since")}
    target = io.StringIO()
    writer = csv.DictWriter(target, CSV_COLUMNS, restval="")
    writer.writeheader()
    for row in _iterate_rows(encoded):
        writer.writerow({name: _escape_formula(value) for name, value in (period | row).items()})
    return target.getvalue()


def _iterate_rows(encoded: dict[str, Any]) -> Iterator[dict[str, Any]]:
    incidents = encoded["incidents"]
    figures = {name: incidents[name] for name in ("count", "acknowledged")}
    is_minimum = {"detail": _IS_MINIMUM} if incidents["is_minimum"] else {}
    yield {"section": "incidents", **figures, **incidents["time_to_acknowledge"], **is_minimum}
    yield {"section": "escalations", "count": incidents["escalations"]}
    for section, key in (("alert", "alertname"), ("service", "service")):
        for group in incidents[f"{section}s"]:
            yield {"section": section, "name": group.pop(key), **group}
    for channel in encoded["channels"]:
        yield {"section": "channel", "count": channel.pop("delivered"), **channel}
    for late in encoded["late"]:
        row = {"channel": late["channel"], "name": late["id"], "worst_seconds": late["seconds"]}
        yield {"section": "late", **row, "reason": late["cause"], "detail": f"{late['alertname']}: {late['why']}"}
    for dead in encoded["never_delivered"]:
        row = {name: dead[name] for name in ("channel", "count", "reason")}
        yield {"section": "never_delivered", **row, "name": dead["last_id"], "detail": dead["last_answer"]}
    if paths := encoded["paths"]:
        for path in paths["channels"]:
            row = {"channel": path["channel"], "worst_seconds": path["longest_gap_seconds"], "reason": path["hop"]}
            yield {"section": "path", **row, "complete_since": paths["complete_since"], "detail": path["proven_share"]}
    for refused in encoded["refused_webhooks"]["reasons"]:
        yield {"section": "refused", "name": refused["code"], "count": refused["count"], "detail": refused["reason"]}
    if encoded["refused_webhooks"]["is_minimum"]:
        yield {"section": "refused", "detail": _IS_MINIMUM}


def _escape_formula(value: object) -> object:
    """Text that a spreadsheet would take for a formula, with an apostrophe before it."""
    if isinstance(value, str) and value.lstrip(" ").startswith(_FORMULA_STARTS):
        return f"'{value}"
    return value


DEFAULT_SINCE: Final = "30d"
PARAMETERS: Final = ("since", "from", "to")
_DATE: Final = re.compile(r"\d{4}-\d{2}-\d{2}")
_EXPECTED_TIME: Final = "expected a date such as 2026-11-30, or a time with its zone, such as 2026-11-30T22:00:00Z"


def parse_period(parameters: Mapping[str, str], now: float, zone: tzinfo) -> Period:
    """The period that `since`, or `from` and `to`, name. Raises ValueError with what was expected.

    Args:
        parameters: `since` is a duration until now, or a time; `from` and `to` are times, or dates, each of which is
            in the period. Without `to` it ends now, and without any of them it is the last 30 days; an empty one is
            none.
        now: unix seconds.
        zone: the readers'; a date begins at its midnight.
    """
    given = {name: value for name, value in parameters.items() if name in PARAMETERS and value}
    if "since" in given and len(given) > 1:
        raise ValueError("since: expected alone, or `from` and `to` without it")
    if "from" not in given:
        if "to" in given:
            raise ValueError("from: missing; expected beside `to`")
        begin = parse_parameter("since", partial(parse_since, now=now), {"since": DEFAULT_SINCE, **given}) or 0.0
        if begin >= now:
            raise ValueError("since: expected a time before now")
        return Period(begin, now)
    since = parse_parameter("from", lambda text: _parse_moment(text, zone, 0), given) or 0.0
    until = parse_parameter("to", lambda text: _parse_moment(text, zone, 1), given)
    period = Period(since, now if until is None else until)
    if period.since >= period.until:
        raise ValueError("from: expected before `to`, and before now")
    return period


def _parse_moment(text: str, zone: tzinfo, days: int) -> float:
    """A time, or the midnight so many days after a date."""
    try:
        if not _DATE.fullmatch(text):
            return parse_time(text)
        day = date.fromisoformat(text) + timedelta(days=days)
        return datetime(day.year, day.month, day.day, tzinfo=zone).timestamp()
    except (ValueError, OverflowError):
        raise ValueError(_EXPECTED_TIME) from None


_FRESH_SECONDS: Final = 10.0
_MAX_RECENT: Final = 8
_MAX_WAIT: Final = 8.0
"""Seconds for which one waits behind other reports, as long as a read itself may take."""


class ReportReader:
    """Reads reports of the configured channels, in the readers' time zone; proofs come every `proof_every` seconds."""

    def __init__(self, store: Store, channels: Collection[str], zone: tzinfo, proof_every: float) -> None:
        self._store = store
        self._channels = channels
        self._zone = zone
        self._proof_every = proof_every
        self._lock = asyncio.Lock()
        self._recent: dict[tuple[str | None, ...], tuple[float, Report]] = {}

    async def read(self, parameters: Mapping[str, str]) -> Report:
        """The report of the period that the parameters of a query name, at most some seconds old.

        Raises:
            ValueError: they name none; with what was expected.
            StoreUnavailableError: it cannot be read.
        """
        now = self._store.clock()
        period = parse_period(parameters, now, self._zone)
        key = tuple(parameters.get(name) for name in PARAMETERS)
        clock = asyncio.get_running_loop().time
        try:
            await asyncio.wait_for(self._lock.acquire(), _MAX_WAIT)
        except TimeoutError:
            raise StoreUnavailableError("other reports are being read") from None
        try:
            recent = self._recent.get(key)
            if recent is not None and clock() - recent[0] < _FRESH_SECONDS:
                return recent[1]
            read = partial(read_report, period=period, channels=self._channels, now=now, proof_every=self._proof_every)
            report = await self._store.read(read)
            self._recent.pop(key, None)
            self._recent[key] = clock(), report
            if len(self._recent) > _MAX_RECENT:
                del self._recent[next(iter(self._recent))]
            return report
        finally:
            self._lock.release()
