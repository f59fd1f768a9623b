"""What a later message of an incident has to do beside saying what changed: be shown in the channel, mention people.

People ignore a channel that mentions them at every repeat: so only what gets worse does. Once somebody acknowledged the
incident, nothing is shown outside of the thread, and nobody is mentioned.
"""

from dataclasses import dataclass

from services.relay.model import Alert, Message, Status
from services.relay.text import Severity, find_worst_severity, is_resolved
from services.relay.text.labels import rank_severity


@dataclass(frozen=True, slots=True)
class Change:
    """A message compared with the one before it."""

    is_comparable: bool
    """Whether it is known what that one said."""
    new_alerts: tuple[Alert, ...]
    """Alerts that fire, and did not then."""
    resolved_alerts: tuple[Alert, ...]
    """Alerts that are resolved, and were not then."""
    is_worse: bool
    """Whether alerts that are new are worse than all others, or the incident is critical and has new ones."""
    is_broadcast: bool
    """Whether the channel sees it, too: new alerts, and repeats of what is critical."""


def compare_with_previous(message: Message) -> Change:
    """What changed since the previous message of the episode on the channel; of the first one, everything is new."""
    context, event = message.task.context, message.event
    is_comparable = context.previous_at is not None and bool(context.previous_alerts)
    before = context.previous_alerts
    firing = [alert for alert in event.alerts if alert.status is Status.FIRING]
    is_first = message.task.first_receipt is None
    new = tuple(
        alert for alert in firing if (is_comparable or is_first) and before.get(alert.fingerprint) is not Status.FIRING
    )
    resolved = tuple(
        alert
        for alert in event.alerts
        if alert.status is Status.RESOLVED and is_comparable and before.get(alert.fingerprint) is not Status.RESOLVED
    )
    is_loud = not is_resolved(event) and not context.acknowledged_by
    is_critical = find_worst_severity(event) is Severity.CRITICAL
    is_repeat = not new and not resolved
    return Change(
        is_comparable=is_comparable,
        new_alerts=new,
        resolved_alerts=resolved,
        is_worse=is_loud and bool(new) and (is_critical or is_first or _is_more_severe(message, new)),
        is_broadcast=is_loud and (bool(new) or (is_critical and is_repeat)),
    )


def _is_more_severe(message: Message, new: tuple[Alert, ...]) -> bool:
    """Whether a new alert is worse than each that fired before; the severity of an alert never changes."""
    before = message.task.context.previous_alerts
    others = [alert for alert in message.event.alerts if before.get(alert.fingerprint) is Status.FIRING]
    return bool(others) and min(map(rank_severity, new)) < min(map(rank_severity, others))
