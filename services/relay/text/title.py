"""Labels, severities, and the first lines of a message: what broke and why, where, and whether it is over.

A title is the cause and its effect, from the annotation `title`: `permission_denied: backend (production) cannot
encrypt with ledger-kek`. The class and the labels of the alert come after it. An alert without one keeps its headline:
`KMSProbeFailing · production / backend`.
"""

from collections.abc import Iterator, Mapping
from enum import StrEnum
from itertools import islice
from typing import Final

from services.relay.model import HASH_BYTES, Alert, Event, Message, Status
from services.relay.text.strings import clean_line, clean_text, format_duration, truncate

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


MAX_TITLE: Final = 300
MAX_REMARK: Final = 500
_MAX_PART: Final = 1_000
"""Characters of a part of a headline, before it is made readable."""


def is_resolved(event: Event) -> bool:
    """Whether the whole group is resolved. Where Alertmanager cut alerts off, it counts as firing."""
    return event.status is Status.RESOLVED and event.truncated_alerts == 0


def compute_status(event: Event) -> Status:
    return Status.RESOLVED if is_resolved(event) else Status.FIRING


def format_title(message: Message) -> str:
    """What broke and why, on one line; the same text while it fires and when it is over. See `format_subject`."""
    return truncate(clean_line(message.title), MAX_TITLE) or format_event_title(message.event)


def format_event_title(event: Event) -> str:
    """The `title` of the worst alert that fires, of any where all are resolved; the headline where none has one."""
    titled = [alert for alert in event.alerts if alert.annotations.get("title")]
    titled.sort(key=lambda alert: (alert.status is Status.RESOLVED, rank_severity(alert)))
    return next(filter(None, map(format_alert_title, titled)), "") or format_headline(event)


def format_alert_title(alert: Alert) -> str:
    """The annotation `title` on one line; empty where there is none."""
    return truncate(clean_line(alert.annotations.get("title", "")), MAX_TITLE)


def format_subject(message: Message) -> str:
    """The title with its state: what a subject, a header or a summary begins with.

    A cause speaks for itself while it fires: `permission_denied: backend cannot encrypt with ledger-kek`. Once it is
    over: `Resolved after 12 min: permission_denied: backend cannot encrypt with ledger-kek`. Without a cause the
    state comes first: `Firing: KMSProbeFailing · production / backend`.
    """
    title = format_title(message)
    if is_resolved(message.event):
        return f"{format_end(message)}: {title}"
    return title if has_cause(message) else f"Firing: {title}"


def has_cause(message: Message) -> bool:
    """Whether a template or an alert says more than its headline."""
    return bool(clean_line(message.title)) or any(map(format_alert_title, message.event.alerts))


def format_class(message: Message) -> str:
    """The headline as a line after the title; empty where it is the title."""
    return format_headline(message.event) if has_cause(message) else ""


def format_end(message: Message) -> str:
    """That it is over, and how long it lasted: `Resolved after 12 min`, or `Fired and resolved within 8 s`."""
    event, task = message.event, message.task
    starts = [alert.starts_at for alert in event.alerts] + (
        [task.context.started_at] if task.context.started_at else []
    )
    ends = [alert.ends_at for alert in event.alerts if alert.ends_at is not None]
    duration = format_duration(max(ends, default=task.accepted_at) - min(starts, default=task.accepted_at))
    return f"{'Fired and resolved within' if task.firing_undelivered else 'Resolved after'} {duration}"


def format_state(message: Message) -> str:
    """`Firing` or `Resolved`; `Fired and resolved` where the channel got no message of the firing."""
    if not is_resolved(message.event):
        return "Firing"
    return "Fired and resolved" if message.task.firing_undelivered else "Resolved"


def format_remark(message: Message) -> str:
    """The relay's own remarks on one line; empty if there are none."""
    return truncate(" ".join(filter(None, map(clean_line, (message.task.remark, message.event.remark)))), MAX_REMARK)


def format_headline(event: Event) -> str:
    """What it is and where, such as `KMSCryptoNotReady · production / backend`.

    It uses only the labels of the group, so it is the same for every event of an incident.
    """
    labels = event.group_labels
    name = labels.get("alertname") or event.receiver
    location = " / ".join(labels[key] for key in ("env", "service") if labels.get(key))
    others = [f"{key}={value}" for key, value in sort_labels(labels) if key not in IMPORTANT_LABELS]
    parts = (clean_line(truncate(part, _MAX_PART)) for part in (name, location, *others) if part)
    return truncate(" · ".join(parts), MAX_TITLE)


def format_counts(event: Event) -> str:
    """How many alerts, such as `2 firing, 1 resolved, 7 not listed`."""
    firing = sum(alert.status is Status.FIRING for alert in event.alerts)
    resolved = len(event.alerts) - firing + len(event.unlisted_resolved) // HASH_BYTES
    firing += len(event.unlisted_firing) // HASH_BYTES
    numbers = (firing, "firing"), (resolved, "resolved"), (event.truncated_alerts, "not listed")
    return ", ".join(f"{number} {label}" for number, label in numbers if number) or "no alerts"


def format_omission(event: Event) -> str:
    """That the message does not have all alerts of its group, and where they are; empty if it has."""
    if not event.unlisted_count:
        return ""
    cut, left_out = event.truncated_alerts, event.unlisted_count - event.truncated_alerts
    reasons = [f"{cut} cut off by Alertmanager" if cut else "", f"{left_out} too many to list" if left_out else ""]
    return f"Some alerts of this group are missing here: {', '.join(filter(None, reasons))}. Alertmanager shows them."


def select_contacts(message: Message) -> dict[str, str]:
    """The contacts by role while a critical alert fires; otherwise none."""
    if is_resolved(message.event) or find_worst_severity(message.event) is not Severity.CRITICAL:
        return {}
    return {clean_line(role): clean_line(address) for role, address in message.contacts.items()}


def format_summary(alert: Alert) -> str:
    """What is wrong, on one line."""
    return clean_line(alert.annotations.get("summary", "")) or clean_line(alert.labels.get("alertname", "")) or "Alert"


def format_description(alert: Alert) -> str:
    """The longer text, perhaps of several lines, perhaps empty."""
    return clean_text(alert.annotations.get("description", ""))
