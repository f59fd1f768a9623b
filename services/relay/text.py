"""Readable text of a message for channels, console and command line: clean strings, formatted parts, safe links.

Labels and annotations are written by others. What this module returns contains no control character and none that
changes the direction of text, and a link is http(s) or absent. Escaping is up to each channel.
"""

import re
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from functools import lru_cache
from itertools import islice
from typing import NamedTuple
from urllib.parse import quote, urlsplit

from services.relay.model import DIGEST_BYTES, Alert, Event, Links, Message, Status
from shared.kms.alert_fixes import list_fixes as list_alert_fixes
from shared.kms.fixes import Fix

_LINE_ENDS = re.compile("\r\n|[\r\x0b\x0c\x1c-\x1e\x85\u2028\u2029]")
_INVISIBLE = re.compile(
    "[\x00-\x08\x0e-\x1f\x7f-\x9f"  # control characters, tab and newline excepted
    "\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069"  # they change the direction: https://trojansource.codes
    "\ud800-\udfff\ufeff]"  # half a character, which no encoding takes
)
# Slack takes 3,000 for a button, PagerDuty and browsers at least 2,000; three long and three short ones must fit into
# one message.
MAX_URL = 1_900
MAX_SHORT_URL = 650
"""For links that keypulse builds itself, from a few labels."""
MAX_REMARK = 500
MAX_FIXES = 6
"""Commands of one message."""
_LABEL_NAME = re.compile("[a-zA-Z_][a-zA-Z0-9_]*")
_IMPORTANT_LABELS = ("alertname", "env", "service", "severity")


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

_WORST_FIRST = tuple(Severity)


class Link(NamedTuple):
    """A link with its text."""

    text: str
    url: str


def clean_text(text: str) -> str:
    """The text without invisible characters; every kind of line end becomes a newline."""
    if text.isprintable():  # as almost always: nothing in it is invisible, or ends a line
        return text.strip()
    return _INVISIBLE.sub("", _LINE_ENDS.sub("\n", text)).strip()


def clean_line(text: str) -> str:
    """The text on one line, with single spaces."""
    text = clean_text(text)
    return " ".join(text.split()) if "  " in text or not text.isprintable() else text


def truncate(text: str, limit: int) -> str:
    """At most `limit` characters, the last of them an ellipsis where something is missing."""
    return text if len(text) <= limit else text[: limit - 1].rstrip() + "…"


def is_resolved(event: Event) -> bool:
    """Whether the whole group is resolved. Where Alertmanager cut alerts off, it counts as firing."""
    return event.status is Status.RESOLVED and event.truncated_alerts == 0


def compute_status(event: Event) -> Status:
    """The status of the whole group."""
    return Status.RESOLVED if is_resolved(event) else Status.FIRING


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
    others = [f"{key}={value}" for key, value in sort_labels(labels) if key not in _IMPORTANT_LABELS]
    return " · ".join(clean_line(part) for part in (name, location, *others) if part)


def format_counts(event: Event) -> str:
    """How many alerts, such as `2 firing, 1 resolved, 7 not listed`."""
    firing = sum(alert.status is Status.FIRING for alert in event.alerts)
    resolved = len(event.alerts) - firing + len(event.unlisted_resolved) // DIGEST_BYTES
    firing += len(event.unlisted_firing) // DIGEST_BYTES
    numbers = (firing, "firing"), (resolved, "resolved"), (event.truncated_alerts, "not listed")
    return ", ".join(f"{number} {label}" for number, label in numbers if number) or "no alerts"


def find_worst_severity(event: Event) -> Severity | None:
    """The worst severity of the alerts that still fire, else of all; None if none of them is a usual value."""
    firing = [alert for alert in event.alerts if alert.status is Status.FIRING]
    found = {_SEVERITIES.get(alert.labels.get("severity", "").lower()) for alert in firing or event.alerts}
    return next((level for level in _WORST_FIRST if level in found), None)


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


def format_period(alert: Alert) -> str:
    """Since when it fires, or from when to when it fired, in UTC."""
    start = _format_time(alert.starts_at)
    if alert.status is Status.FIRING:
        return f"firing since {start}"
    if alert.ends_at is None:
        return f"resolved; fired from {start}"
    end, duration = _format_time(alert.ends_at), _format_duration(alert.ends_at - alert.starts_at)
    return f"resolved; fired from {start} to {end} ({duration})"


def sort_labels(labels: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """The important labels first, the others by name."""
    important = [key for key in _IMPORTANT_LABELS if key in labels]
    for key in important + sorted(labels.keys() - set(important)):
        yield clean_line(key), clean_line(labels[key])


def limit_labels(labels: Mapping[str, str], count: int, length: int) -> list[tuple[str, str]]:
    """The first `count` labels as `sort_labels` orders them, names and values of at most `length` characters."""
    return [(truncate(key, length), truncate(value, length)) for key, value in islice(sort_labels(labels), count)]


def select_own_labels(alert: Alert, event: Event) -> Mapping[str, str]:
    """The labels by which this alert differs from the others of its group."""
    return {key: value for key, value in alert.labels.items() if event.common_labels.get(key) != value}


def list_alerts(message: Message) -> list[tuple[Alert, list[Link]]]:
    """The alerts, those that still fire first, each with the links that no alert before it has."""
    pairs = list(zip(message.event.alerts, message.links, strict=True))
    listed: set[Link] = set()
    result = []
    for alert, links in sorted(pairs, key=lambda pair: pair[0].status is Status.RESOLVED):
        new = [link for link in _list_links(alert, links) if link not in listed]
        listed.update(new)
        result.append((alert, new))
    return result


def list_fixes(message: Message) -> list[Fix]:
    """The commands that fix the alerts that fire, each once; at most `MAX_FIXES`, none once the group is resolved."""
    if is_resolved(message.event):
        return []
    firing = (alert for alert in message.event.alerts if alert.status is Status.FIRING)
    commands = dict.fromkeys(fix for alert in firing for fix in list_alert_fixes(alert.annotations))
    return list(islice(commands, MAX_FIXES))


def list_group_links(event: Event) -> list[Link]:
    """The Alertmanager that sent it, at the alerts of the group, and its silence form with the group's labels.

    If the group has no labels, or one that cannot be written as a matcher, the first link shows all alerts of the
    receiver, and there is no second one: it would silence more than the group.
    """
    alerts = f"{event.external_url.rstrip('/')}/#/alerts?receiver={_quote(clean_text(event.receiver))}"
    if matchers := _format_matchers(event.group_labels):
        filled = _quote("{" + matchers + "}")
        at_group = _sanitize_short_url(f"{alerts}&filter={filled}")
        silence = _sanitize_short_url(f"{event.external_url.rstrip('/')}/#/silences/new?filter={filled}")
        if at_group and silence:
            return [Link("Alertmanager", at_group), Link("Silence", silence)]
    url = sanitize_url(alerts)
    return [Link("Alertmanager", url)] if url else []


def _format_matchers(labels: Mapping[str, str]) -> str:
    """The labels as Alertmanager's page reads them from its address; empty if it would not read the same."""
    if any(
        not _LABEL_NAME.fullmatch(key) or not value.isprintable() or set('"\\') & set(value)
        for key, value in labels.items()
    ):
        return ""
    return ",".join(f'{key}="{value}"' for key, value in sort_labels(labels))


def _quote(text: str) -> str:
    return quote(text, safe="", errors="replace")


def _sanitize_short_url(url: str) -> str | None:
    sanitized = sanitize_url(url)
    return sanitized if sanitized and len(sanitized) <= MAX_SHORT_URL else None


@lru_cache(maxsize=256)
def sanitize_url(url: str | None) -> str | None:
    """An http(s) URL in which nothing ends a link in any medium.

    None if it is none, holds a user or a password (which may be a secret, or make a host look like another), or is
    longer than media take.
    """
    if not url or len(url) > MAX_URL or re.search(r"[\s\\]", url) or url != clean_text(url):
        return None
    try:
        parts = urlsplit(url)
    except ValueError:
        return None
    if parts.scheme not in {"http", "https"} or not parts.hostname or "@" in parts.netloc:
        return None
    return quote_url(url)


def quote_url(url: str) -> str | None:
    """The URL with everything percent-encoded that has no meaning in one (RFC 3986); None if it is then too long.

    Raises ValueError for half a surrogate pair.
    """
    quoted = quote(url, safe="%/:?#[]@!$&'()*+,;=~-._")
    return quoted if len(quoted) <= MAX_URL else None


def _list_links(alert: Alert, links: Links) -> list[Link]:
    found = (
        ("Runbook", links.runbook),
        ("Dashboard", links.dashboard),
        ("Board", links.board),
        ("Prometheus", alert.generator_url),
    )
    return [Link(text, url) for text, candidate in found if (url := sanitize_url(candidate))]


def _format_time(moment: datetime) -> str:
    return f"{moment.astimezone(UTC).replace(tzinfo=None).isoformat(' ', 'seconds')} UTC"


def _format_duration(span: timedelta) -> str:
    minutes, seconds = divmod(max(0, round(span.total_seconds())), 60)
    hours, minutes = divmod(minutes, 60)
    return " ".join(f"{n} {unit}" for n, unit in ((hours, "h"), (minutes, "min"), (seconds, "s")) if n) or "0 s"
