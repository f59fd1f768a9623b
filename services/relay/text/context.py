"""What is known beside the alerts: what changed, what else fires, how often, who acknowledged. For every channel."""

from collections.abc import Iterable
from typing import Final, NamedTuple

from services.relay.model import MAX_EPISODES, Alert, Event, Message, Status
from services.relay.text.labels import select_own_labels
from services.relay.text.strings import clean_line, truncate
from services.relay.text.times import format_duration, format_short_time

ACKNOWLEDGED: Final = "Acknowledged"
ESCALATED: Final = "Escalated"
LAST_MESSAGE: Final = "Last message"
ALSO_FIRING: Final = "Also firing"
HOW_OFTEN: Final = "How often"
MAX_RELATED: Final = 5
_MAX_NAMES: Final = 3
"""Alerts that a change names."""
_MAX_NAME: Final = 80
_MAX_RELATED_TITLE: Final = 200


class ContextLine(NamedTuple):
    """One fact, such as `Also firing`, with its items; shown on one line, or as a short list."""

    name: str
    items: tuple[str, ...]


def list_context(message: Message) -> list[ContextLine]:
    """What is known of the incident, the most urgent first; clean text without mark-up."""
    lines = (
        ContextLine(ACKNOWLEDGED, _format_acknowledgement(message)),
        ContextLine(ESCALATED, _format_escalation(message)),
        ContextLine(LAST_MESSAGE, _format_changes(message)),
        ContextLine(ALSO_FIRING, _format_related(message)),
        ContextLine(HOW_OFTEN, _format_frequency(message)),
    )
    return [line for line in lines if line.items]


def _format_acknowledgement(message: Message) -> tuple[str, ...]:
    context = message.task.context
    if not context.acknowledged_by:
        return ()
    at = f" at {format_short_time(context.acknowledged_at, message.zone)}" if context.acknowledged_at else ""
    return (f"by {truncate(clean_line(context.acknowledged_by), _MAX_NAME)}{at}",)


def _format_escalation(message: Message) -> tuple[str, ...]:
    context = message.task.context
    if not context.escalated_to:
        return ()
    at = f" at {format_short_time(context.escalated_at, message.zone)}" if context.escalated_at else ""
    return (f"to {', '.join(map(clean_line, context.escalated_to))}{at}, since nobody had acknowledged",)


def _format_changes(message: Message) -> tuple[str, ...]:
    """What is new, and what is over; that nothing is, else."""
    context, event = message.task.context, message.event
    if context.previous_at is None:
        return ()
    span = format_duration(message.task.accepted_at - context.previous_at)
    before = context.previous_alerts
    if not before:  # it was too large to be compared
        return (f"{span} ago",)
    new = [a for a in event.alerts if a.status is Status.FIRING and before.get(a.fingerprint) is not Status.FIRING]
    over = [a for a in event.alerts if a.status is Status.RESOLVED and before.get(a.fingerprint) is not Status.RESOLVED]
    changes = ", ".join(filter(None, (_format_change(new, "new", event), _format_change(over, "resolved", event))))
    return (f"{span} ago; {f'since then {changes}' if changes else 'nothing has changed'}",)


def _format_change(alerts: list[Alert], change: str, event: Event) -> str:
    """Such as `2 new (backend-1:8000; backend-2:8000)`."""
    if not alerts:
        return ""
    names = [" ".join(map(clean_line, select_own_labels(alert, event).values())) for alert in alerts[:_MAX_NAMES]]
    named = [truncate(name, _MAX_NAME) for name in names if name]
    named += ["…"] if named and len(alerts) > len(named) else []
    return f"{len(alerts)} {change}" + (f" ({'; '.join(named)})" if named else "")


def _format_related(message: Message) -> tuple[str, ...]:
    context = message.task.context
    listed = context.related[:MAX_RELATED]
    more = max(context.related_count, len(context.related)) - len(listed)
    items = [
        f"{truncate(clean_line(incident.title), _MAX_RELATED_TITLE)}, "
        f"since {format_short_time(incident.since, message.zone)}"
        for incident in listed
    ]
    return (*items, *([f"… and {more} more"] if more else []))


def _format_frequency(message: Message) -> tuple[str, ...]:
    number = message.task.context.episodes_in_7_days
    if not number:
        return ()
    often = f"{number} times or more" if number >= MAX_EPISODES else f"{_format_ordinal(number)} time"
    return (f"{often} in 7 days",)


def _format_ordinal(number: int) -> str:
    ending = "th" if 10 <= number % 100 <= 20 else {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th")
    return f"{number}{ending}"


def join_items(items: Iterable[str]) -> str:
    """A fact's items on one line."""
    return "; ".join(items)
