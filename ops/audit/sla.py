"""A month of Cloud KMS by the arithmetic of Google's Service Level Agreement, from what the exporter measured.

Prometheus's counters come in, minute by minute; the Monthly Uptime Percentage of a project goes out, with what each
minute counts as. Google's own monitoring decides, on its side of the network: this is the evidence for a claim.

Objectives, Downtime, Downtime Period and Error Rate are those of https://cloud.google.com/kms/sla as it read in 2024.
What is a Valid Request, and that the percentage is of all minutes of the month, is our reading of it.
"""

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from itertools import groupby
from typing import Annotated, Any, Final
from zoneinfo import ZoneInfo

from pydantic import BaseModel, Field, ValidationError

from shared.check import CheckError
from shared.kms.reason import Reason
from shared.smoke.http_client import HttpClient
from shared.smoke.monitoring import query_api

SLA: Final = "https://cloud.google.com/kms/sla"
DOWNTIME_ERROR_RATE: Final = 0.1
"""Downtime is a higher rate of errors among the Valid Requests of a minute."""
PERIOD_MINUTES: Final = 5
PERIOD_REQUESTS: Final = 10
"""A Downtime Period has so many consecutive minutes of Downtime, and so many Valid Requests, or more."""
OBJECTIVES: Final = {99.99: "operations that a service account requests", 99.95: "operations of applications and users"}
"""The least Monthly Uptime Percentages that Google promises, and for what."""
CLAIM_DAYS: Final = 30
"""After the month: https://support.google.com/cloud/contact/cloud_platform_sla."""
TIME_ZONE: Final = "America/Los_Angeles"
"""The agreement says "calendar month". A credit is a part of the bill, and its months begin in Pacific Time:
`CalendarPeriod` in the reference of its Budget API."""

_MAX_POINTS: Final = 360
"""Of one query, six hours: a thousand keys have 36,000 series of failures, and a query may load 50 million samples."""
_ERRORS: Final = frozenset({Reason.UNAVAILABLE, Reason.TIMEOUT})
"""What the agreement counts: HTTP 5xx, and no valid response within 10 s. What never reached KMS has these reasons too,
and so has a fault of an external key manager; both have a cause."""


class Counted(StrEnum):
    """What a minute counts as."""

    UP = "up"
    DOWNTIME = "downtime"
    OWN_FAULT = "own fault"
    """Calls that fail for a reason that is not KMS's: they are no Valid Requests."""
    GAP = "gap"
    """Nobody measured, or made no call. It is not counted as Downtime."""


@dataclass(slots=True)
class Minute:
    """What the exporters of a project counted; fractions, since Prometheus extrapolates to the whole minute."""

    begins: int
    """Unix seconds."""
    requests: float | None = None
    failures: dict[str, float] = field(default_factory=dict)
    """By reason."""
    causes: set[str] = field(default_factory=set)
    """Of `unavailable` and `timeout`; empty where KMS itself answered, or did not."""

    def count(self, errors: frozenset[Reason] = _ERRORS) -> tuple[float, float]:
        """Return the Valid Requests, and how many of them failed."""
        is_google = not self.causes or "" in self.causes
        failed = sum(self.failures.get(reason, 0.0) for reason in errors) if is_google else 0.0
        others = sum(self.failures.values()) - failed
        return max(0.0, (self.requests or 0.0) - others), failed

    def classify(self, errors: frozenset[Reason] = _ERRORS) -> Counted:
        if not self.requests and not self.failures:
            return Counted.GAP
        valid, failed = self.count(errors)
        if failed > DOWNTIME_ERROR_RATE * valid:
            return Counted.DOWNTIME
        return Counted.OWN_FAULT if sum(self.failures.values()) > failed else Counted.UP


@dataclass(frozen=True, slots=True)
class Month:
    name: str
    """Such as 2026-03."""
    begins: int
    ends: int
    """Unix seconds."""

    @staticmethod
    def parse(name: str, zone: ZoneInfo) -> "Month":
        """Return the calendar month of a time zone. Raises ValueError if it is none."""
        first = datetime.strptime(name, "%Y-%m").replace(tzinfo=zone)
        following = (first + timedelta(days=32)).replace(day=1)
        return Month(f"{first:%Y-%m}", int(first.timestamp()), int(following.timestamp()))


def build_queries(project: str) -> dict[str, str]:
    """Return the queries whose values of each minute are the evidence."""
    keys = f"projects/{re.sub('[.]', '[.]', project)}/.*"
    of = f'and on (env, service, target) last_over_time(kms_target_info{{provider="gcp", key=~"{keys}"}}[1d])'
    return {
        "requests": f'sum(increase(kms_operations_total{{operation=~"encrypt|decrypt|canary_decrypt"}}[1m]) {of})',
        "failures": f"sum by (reason) (increase(kms_probe_failures_total[1m]) {of}) > 0",
        "causes": "group by (cause) (max_over_time("
        f'kms_probe_failure_info{{reason=~"{"|".join(sorted(_ERRORS))}"}}[1m]) {of})',
    }


class _Series(BaseModel):
    metric: dict[str, Annotated[str, Field(pattern=r"^[a-z0-9_]{0,100}$")]]
    values: list[tuple[int, Annotated[float, Field(ge=0, allow_inf_nan=False)]]]


class _Matrix(BaseModel):
    """An answer about a range: words for labels, which stand in the evidence, and numbers."""

    result: list[_Series]


async def read_minutes(prometheus: HttpClient, project: str, month: Month) -> list[Minute]:
    """Return every minute of the month. Raises CheckError if Prometheus does not answer so, or knows nothing of it."""
    minutes = {begins: Minute(begins) for begins in range(month.begins, month.ends, 60)}
    for name, query in build_queries(project).items():
        for start in range(month.begins + 60, month.ends + 1, 60 * _MAX_POINTS):  # a value is of the minute before it
            end = min(start + 60 * (_MAX_POINTS - 1), month.ends)
            times = {"start": str(start), "end": str(end), "step": "60"}
            # Thanos otherwise leaves out what one of its stores does not answer.
            parameters = {"query": query, **times, "partial_response": "false"}
            try:
                found = _Matrix.model_validate(await query_api(prometheus, "query_range", parameters, is_whole=True))
                for series, (at, value) in ((one, sample) for one in found.result for sample in one.values):
                    minute = minutes[at - 60]
                    if name == "requests":
                        minute.requests = value
                    elif name == "failures":
                        minute.failures[series.metric["reason"]] = value
                    else:
                        minute.causes.add(series.metric.get("cause", ""))
            except (ValidationError, KeyError):
                raise CheckError(
                    f"the answer to the query of {name} has something else than a number for each minute",
                    "give the address of a Prometheus, and check what stands before it",
                ) from None
        if all(minute.requests is None for minute in minutes.values()):
            raise CheckError(
                f"Prometheus knows no call to a key of {project} in {month.name}",
                "check --project, its retention, and that it scrapes the exporter every 30s or more often",
            )
    return list(minutes.values())


def assess(
    minutes: Sequence[Minute], project: str, month: Month, objectives: Sequence[float], source: str
) -> dict[str, Any]:
    """Return the evidence as a JSON document.

    Args:
        minutes: every minute of the month, in order.
        project: that the keys are in.
        month: of the claim.
        objectives: Monthly Uptime Percentages.
        source: the address of Prometheus, without credentials.
    """
    runs = [(counted, list(run)) for counted, run in groupby(minutes, Minute.classify)]
    uptime = _compute_uptime(minutes, _ERRORS)
    return {
        "project": project,
        "month": month.name,
        "begins": _format_time(month.begins),
        "ends": _format_time(month.ends),
        "minutes": len(minutes),
        "monthly_uptime_percentage": uptime,
        "without_timeouts": _compute_uptime(minutes, _ERRORS - {Reason.TIMEOUT}),
        "objectives": [
            {"percentage": each, "of": OBJECTIVES.get(each, ""), "is_met": uptime >= each} for each in objectives
        ],
        "claim_until": _format_time(month.ends + CLAIM_DAYS * 86400),
        "sla": {
            "source": SLA,
            "error_rate_over": DOWNTIME_ERROR_RATE,
            "minutes_at_least": PERIOD_MINUTES,
            "requests_at_least": PERIOD_REQUESTS,
        },
        "prometheus": source,
        "queries": build_queries(project),
        "periods": [_describe_run(counted, run) for counted, run in runs if counted is not Counted.UP],
    }


def _is_downtime_period(run: Sequence[Minute], errors: frozenset[Reason]) -> bool:
    return len(run) >= PERIOD_MINUTES and sum(minute.count(errors)[0] for minute in run) >= PERIOD_REQUESTS


def _compute_uptime(minutes: Sequence[Minute], errors: frozenset[Reason]) -> float:
    """Return the percentage of the minutes that are in no Downtime Period."""
    runs = (list(run) for counted, run in groupby(minutes, lambda m: m.classify(errors)) if counted is Counted.DOWNTIME)
    down = sum(len(run) for run in runs if _is_downtime_period(run, errors))
    return 100 * (len(minutes) - down) / len(minutes)


def _describe_run(counted: Counted, run: Sequence[Minute]) -> dict[str, Any]:
    """Return consecutive minutes that count as the same; of downtime with each of them."""
    described = {
        "begins": _format_time(run[0].begins),
        "ends": _format_time(run[-1].begins + 60),
        "minutes": len(run),
        "as": str(counted),
        "is_counted": counted is Counted.DOWNTIME and _is_downtime_period(run, _ERRORS),
    }
    if counted is not Counted.GAP:
        described |= _describe_requests(run)
    if counted is Counted.DOWNTIME:
        described["each"] = [{"begins": _format_time(minute.begins), **_describe_requests([minute])} for minute in run]
    return described


def _describe_requests(run: Sequence[Minute]) -> dict[str, Any]:
    counts = [minute.count() for minute in run]
    reasons = sorted({reason for minute in run for reason in minute.failures})
    return {
        "valid_requests": round(sum(valid for valid, _ in counts), 1),
        "failed_requests": round(sum(failed for _, failed in counts), 1),
        "failures": {reason: round(sum(minute.failures.get(reason, 0.0) for minute in run), 1) for reason in reasons},
        "causes": sorted(set().union(*(minute.causes for minute in run))),
    }


def _format_time(seconds: int) -> str:
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%MZ}"


def format_json(documents: Sequence[dict[str, Any]]) -> str:
    return json.dumps({"projects": documents}, indent=1) + "\n"


def format_markdown(documents: Sequence[dict[str, Any]]) -> str:
    """Return what a person reads, and what a claim quotes: the sums, each period, and how they were counted."""
    return "\n".join(line for document in documents for line in _list_lines(document)) + "\n"


def _list_lines(document: dict[str, Any]) -> Iterator[str]:
    gaps = sum(period["minutes"] for period in document["periods"] if period["as"] == Counted.GAP)
    yield f"# Cloud KMS in {document['month']}, project {document['project']}\n"
    yield (
        f"Monthly Uptime Percentage: {document['monthly_uptime_percentage']:.4f} % of {document['minutes']} minutes, "
        f"{document['begins']} to {document['ends']}. Without timeouts: {document['without_timeouts']:.4f} %. "
        f"Not measured: {gaps} minutes, not counted as downtime.\n"
    )
    for objective in document["objectives"]:
        mark, of = ("✓" if objective["is_met"] else "✗"), objective["of"] and f", promised for {objective['of']}"
        yield f"- {mark} {objective['percentage']:g} %{of}"
    yield f"- a claim has to reach Google by {document['claim_until']}\n"
    yield "| from | to | minutes | as | valid requests | failed | failures | causes |"
    yield "|---|---|---|---|---|---|---|---|"
    for period in document["periods"]:
        short = period["as"] == Counted.DOWNTIME and not period["is_counted"]
        failures = ", ".join(f"{reason} {number:g}" for reason, number in period.get("failures", {}).items())
        cells = (
            *(period["begins"], period["ends"], period["minutes"], period["as"] + (", too short" if short else "")),
            *(f"{period[name]:g}" if name in period else "" for name in ("valid_requests", "failed_requests")),
            failures,
            ", ".join(filter(None, period.get("causes", ()))),
        )
        yield f"| {' | '.join(map(str, cells))} |"
    sla = document["sla"]
    yield (
        f"\nBy {sla['source']}: downtime is {sla['minutes_at_least']} or more consecutive minutes, with "
        f"{sla['requests_at_least']} or more valid requests, in each of which over {sla['error_rate_over']:.0%} of them"
        " fail with `unavailable` or `timeout`, and no cause outside of KMS is known. The numbers are those of these "
        f"queries to {document['prometheus']}, each minute:\n"
    )
    yield "```promql\n" + "\n\n".join(document["queries"].values()) + "\n```\n"
