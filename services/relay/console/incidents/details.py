"""What is known of an incident beside its timeline: alerts with labels, annotations and links, and what to do. Pure.

Input is the last event of an episode. Texts are clean and not escaped; links are http(s).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from services.relay.console.incidents.timeline import get_end
from services.relay.delivery.links import LinkRules, build_links, remove_foreign_links
from services.relay.model import DeliveryTask, Event, Message, Status
from services.relay.outbox.queries.timeline_records import EpisodeHistory
from services.relay.text import (
    Fix,
    Link,
    clean_line,
    clean_text,
    format_alert_title,
    format_counts,
    format_event_title,
    format_omission,
    format_summary,
    list_alerts,
    list_fixes,
    list_group_links,
    select_own_labels,
    sort_labels,
    truncate,
)

MAX_ALERTS = 20
"""Alerts that are shown."""
MAX_LABELS = 50
"""Labels, or annotations, of one alert."""
_MAX_VALUE = 2_000
"""Characters of a value."""


@dataclass(frozen=True, slots=True)
class AlertDetails:
    """One alert."""

    title: str
    status: Status
    starts_at: float
    """Unix seconds."""
    ends_at: float | None
    labels: Sequence[tuple[str, str]]
    """Those that not every alert of the group has."""
    annotations: Sequence[tuple[str, str]]
    links: Sequence[Link]
    """Those that no alert before it has."""


@dataclass(frozen=True, slots=True)
class IncidentDetails:
    """What the last event of an episode says."""

    title: str
    counts: str
    labels: Sequence[tuple[str, str]]
    """Of every alert of the group."""
    alerts: Sequence[AlertDetails]
    """Those that fire first."""
    more: str
    """What is not shown; empty for nothing."""
    links: Sequence[Link]
    """To Alertmanager."""
    fixes: Sequence[Fix]
    """Commands, while it fires."""


def build_details(incident_id: str, history: EpisodeHistory, event: Event, rules: LinkRules) -> IncidentDetails:
    """The details.

    Args:
        incident_id: which incident.
        history: of its episode.
        event: the last one of the episode.
        rules: for the links.
    """
    accepted_at = datetime.fromtimestamp(history.last_event.accepted_at, UTC)
    event = remove_foreign_links(event, rules)
    task = DeliveryTask("", incident_id, history.episode, "", accepted_at)
    links = tuple(build_links(alert, accepted_at, rules) for alert in event.alerts)
    message = Message(task, event, links)
    alerts = [
        AlertDetails(
            title=format_alert_title(alert) or format_summary(alert),
            status=alert.status,
            starts_at=alert.starts_at.timestamp(),
            ends_at=get_end(alert),
            labels=_limit(select_own_labels(alert, event)),
            annotations=_list_annotations(alert.annotations),
            links=own_links,
        )
        for alert, own_links in list_alerts(message)[:MAX_ALERTS]
    ]
    left_out = len(event.alerts) - len(alerts)
    return IncidentDetails(
        title=format_event_title(event),
        counts=format_counts(event),
        labels=_limit({**event.group_labels, **event.common_labels}),
        alerts=alerts,
        more=" ".join(filter(None, [f"{left_out} more alerts." if left_out else "", format_omission(event)])),
        links=list_group_links(event),
        fixes=list_fixes(message),
    )


def _limit(labels: Mapping[str, str]) -> list[tuple[str, str]]:
    return [(truncate(key, 200), truncate(value, _MAX_VALUE)) for key, value in sort_labels(labels)][:MAX_LABELS]


def _list_annotations(annotations: Mapping[str, str]) -> list[tuple[str, str]]:
    """What an alert says, the title excepted, the important ones first."""
    first = [name for name in ("summary", "description") if annotations.get(name)]
    names = [*first, *sorted(annotations.keys() - {*first, "title"})]
    return [
        (truncate(clean_line(name), 200), truncate(clean_text(annotations[name]), _MAX_VALUE))
        for name in names[:MAX_LABELS]
    ]
