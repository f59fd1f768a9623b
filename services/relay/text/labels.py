"""Labels of alerts: their order, what differs among the alerts of a group, and severities."""

from collections.abc import Iterator, Mapping
from enum import StrEnum
from itertools import islice
from typing import Final

from services.relay.model import Alert, Event, Status
from services.relay.text.strings import clean_line, truncate

IMPORTANT_LABELS = ("alertname", "env", "service", "severity")


class Severity(StrEnum):
    """PagerDuty's severities, the worst first."""

    CRITICAL = "critical"
    ERROR = "error"
    WARNING = "warning"
    INFO = "info"


_SEVERITIES = {
    **dict.fromkeys(("critical", "crit", "page", "emergency", "fatal", "p1"), Severity.CRITICAL),
    **dict.fromkeys(("error", "high", "major", "p2"), Severity.ERROR),
    **dict.fromkeys(("warning", "warn", "medium", "minor", "ticket", "p3"), Severity.WARNING),
    **dict.fromkeys(("info", "informational", "notice", "low", "none", "p4", "p5"), Severity.INFO),
}
WORST_FIRST: Final = (Severity.CRITICAL, Severity.ERROR, "", Severity.WARNING, Severity.INFO)
"""The severities; the empty one is of an incident that has no usual one."""


def parse_severity(alert: Alert) -> Severity | None:
    """None where its label has no usual value."""
    return _SEVERITIES.get(alert.labels.get("severity", "").lower())


def find_worst_severity(event: Event) -> Severity | None:
    """The worst severity of the alerts that still fire, else of all; None if none of them is a usual value."""
    firing = [alert for alert in event.alerts if alert.status is Status.FIRING]
    found = {parse_severity(alert) for alert in firing or event.alerts} - {None}
    return min(found, key=WORST_FIRST.index, default=None)


def rank_severity(alert: Alert) -> int:
    """0 for the worst; an unusual value ranks as an error, as with PagerDuty."""
    return WORST_FIRST.index(parse_severity(alert) or Severity.ERROR)


def sort_labels(labels: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """The important labels first, the others by name."""
    important = [key for key in IMPORTANT_LABELS if key in labels]
    for key in important + sorted(labels.keys() - set(important)):
        yield clean_line(key), clean_line(labels[key])


def limit_labels(labels: Mapping[str, str], count: int, length: int) -> list[tuple[str, str]]:
    """The first `count` labels as `sort_labels` orders them, names and values of at most `length` characters."""
    return [(truncate(key, length), truncate(value, length)) for key, value in islice(sort_labels(labels), count)]


def select_own_labels(alert: Alert, event: Event) -> Mapping[str, str]:
    """The labels by which this alert differs from the others of its group."""
    return {key: value for key, value in alert.labels.items() if event.common_labels.get(key) != value}
