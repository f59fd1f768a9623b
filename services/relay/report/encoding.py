"""A report as JSON and as CSV: the same figures for API, console and command line.

Seconds have three decimals, times are RFC 3339 in UTC. In CSV each row is one thing of a section, and a column
that says nothing of it is empty.
"""

import csv
import io
from collections.abc import Iterator
from typing import Any, Final

from services.relay.outbox.queries.delivery_figures import Quantiles
from services.relay.outbox.queries.incident_figures import IncidentFigures, IncidentGroup
from services.relay.outbox.queries.report import Report
from services.relay.outbox.queries.slow_deliveries import SlowDelivery
from services.relay.report.delay import explain_delay
from shared.http.json_api import format_json_time

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
        "channels": [
            {
                "channel": each.channel,
                "delivered": each.delivered,
                "dead": each.dead,
                "waiting": each.waiting,
                **_encode_quantiles(each.time_to_deliver),
            }
            for each in report.channels
        ],
        "late": [_encode_late(each) for each in report.slowest],
        "never_delivered": [
            {
                "channel": each.channel,
                "reason": each.reason,
                "count": each.delivery_count,
                "last_id": each.last_id,
                "last_at": format_json_time(each.last_at),
                "last_answer": each.last_answer,
            }
            for each in report.dead
        ],
        "refused_webhooks": {
            "count": sum(each.webhook_count for each in report.refused),
            "is_minimum": report.is_refused_minimum,
            "reasons": [
                {
                    "code": each.code,
                    "reason": each.reason,
                    "count": each.webhook_count,
                    "last_at": format_json_time(each.last_at),
                }
                for each in report.refused
            ],
        },
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
    for refused in encoded["refused_webhooks"]["reasons"]:
        yield {"section": "refused", "name": refused["code"], "count": refused["count"], "detail": refused["reason"]}
    if encoded["refused_webhooks"]["is_minimum"]:
        yield {"section": "refused", "detail": _IS_MINIMUM}


def _escape_formula(value: object) -> object:
    """Text that a spreadsheet would take for a formula, with an apostrophe before it."""
    if isinstance(value, str) and value.lstrip(" ").startswith(_FORMULA_STARTS):
        return f"'{value}"
    return value
