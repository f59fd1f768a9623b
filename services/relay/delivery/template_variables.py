"""What a team's templates see of a message: plain, clean texts, each limited. Pure.

docs/configuration.md explains each; a test compares both.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Final

from services.relay.model import Alert, Links, Message, Status
from services.relay.text import (
    clean_line,
    clean_text,
    compute_status,
    find_worst_severity,
    format_counts,
    format_description,
    format_headline,
    format_period,
    format_remark,
    format_state,
    format_summary,
    format_time,
    format_title,
    rank_severity,
    sanitize_url,
)

MAX_VALUE: Final = 2_000
"""Characters of any text that a template sees."""
MAX_ALERTS: Final = 100
"""Alerts that a template sees, and whose texts it changes; no channel shows as many."""
_MAX_LABELS: Final = 64


@dataclass(frozen=True, slots=True)
class AlertVariables:
    """An alert in a template. Every text has at most 2,000 characters, and is empty where there is none."""

    status: str
    """`firing` or `resolved`."""
    labels: Mapping[str, str]
    annotations: Mapping[str, str]
    summary: str
    """On one line; without the annotation, the alert's name."""
    description: str
    period: str
    """Since when it fires, or from when to when it fired."""
    starts_at: str
    """In `messages.timezone`."""
    ends_at: str
    runbook: str
    """Its links, made from `links`."""
    dashboard: str
    board: str


@dataclass(frozen=True, slots=True)
class Variables:
    """What a template sees of a message."""

    title: str
    """What keypulse would write."""
    headline: str
    """The alert's class and where: `KMSCryptoNotReady · production / backend`."""
    status: str
    """`firing` or `resolved`."""
    state: str
    """`Firing`, `Resolved` or `Fired and resolved`."""
    severity: str
    """The worst of those that fire: `critical`, `error`, `warning`, `info`."""
    counts: str
    """Such as `2 firing, 1 resolved`."""
    alert: AlertVariables
    """The one that the text is about; in `title.j2` the worst one."""
    alerts: list[AlertVariables]
    """Those that fire first; 100 at most."""
    group_labels: Mapping[str, str]
    common_labels: Mapping[str, str]
    common_annotations: Mapping[str, str]
    receiver: str
    channel: str
    """The name of the channel that the message is for."""
    remark: str
    """What the relay itself adds."""


VARIABLE_NAMES: Final = frozenset(field.name for field in fields(Variables))


def build_variables(message: Message) -> Variables:
    """What templates see of a message."""
    event = message.event
    listed = order_alerts(message)
    alerts = [_build_alert_variables(event.alerts[n], message.links[n], message) for n in listed]
    worst = min(range(len(listed)), key=lambda n: _rank(event.alerts[listed[n]]), default=None)
    return Variables(
        title=_limit(format_title(message)),
        headline=_limit(format_headline(event)),
        status=str(compute_status(event)),
        state=format_state(message),
        severity=str(find_worst_severity(event) or ""),
        counts=format_counts(event),
        alert=alerts[worst] if worst is not None else _NO_ALERT,
        alerts=alerts,
        group_labels=_limit_labels(event.group_labels),
        common_labels=_limit_labels(event.common_labels),
        common_annotations=_limit_labels(event.common_annotations),
        receiver=_limit(clean_line(event.receiver)),
        channel=message.task.channel,
        remark=format_remark(message),
    )


def order_alerts(message: Message) -> list[int]:
    """The indexes of the alerts that templates see: those that fire first."""
    alerts = message.event.alerts
    return sorted(range(len(alerts)), key=lambda n: alerts[n].status is Status.RESOLVED)[:MAX_ALERTS]


def _rank(alert: Alert) -> tuple[bool, int]:
    return alert.status is Status.RESOLVED, rank_severity(alert)


_NO_ALERT: Final = AlertVariables("", {}, {}, "", "", "", "", "", "", "", "")


def _build_alert_variables(alert: Alert, links: Links, message: Message) -> AlertVariables:
    return AlertVariables(
        status=str(alert.status),
        labels=_limit_labels(alert.labels),
        annotations=_limit_labels(alert.annotations),
        summary=_limit(format_summary(alert)),
        description=_limit(format_description(alert)),
        period=format_period(alert, message.zone),
        starts_at=format_time(alert.starts_at, message.zone),
        ends_at=format_time(alert.ends_at, message.zone) if alert.ends_at else "",
        runbook=sanitize_url(links.runbook) or "",
        dashboard=sanitize_url(links.dashboard) or "",
        board=sanitize_url(links.board) or "",
    )


def _limit(text: str) -> str:
    return text[:MAX_VALUE]


def _limit_labels(labels: Mapping[str, str]) -> dict[str, str]:
    return {_limit(clean_line(key)): _limit(clean_text(value)) for key, value in sorted(labels.items())[:_MAX_LABELS]}
