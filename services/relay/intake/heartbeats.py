"""An event comes in; what is left of it without the alerts of watchdogs goes on, and who was seen goes beside it. Pure.

A watchdog's alert always fires. It is a sign of life, not news: what is news is that it stays away, and the watch
tells of that.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace

from services.relay.intake.routing import Matcher
from services.relay.model import Alert, Event, Status


@dataclass(frozen=True, slots=True)
class HeartbeatMatcher:
    """What a watchdog's alert looks like."""

    name: str
    """Of the watchdog."""
    matchers: tuple[Matcher, ...]
    """All of them hold for its alert."""


def split_heartbeats(event: Event, heartbeats: Iterable[HeartbeatMatcher]) -> tuple[Event | None, frozenset[str]]:
    """The event without the alerts of watchdogs, or None where nothing is left; and the watchdogs that were seen.

    A resolved alert of a watchdog is taken out too, but is no sign of life: Prometheus has stopped sending it, which
    its absence will tell. As an event it would be the all-clear of something that nobody was told of.
    """
    heartbeats = tuple(heartbeats)
    seen: set[str] = set()
    left: list[Alert] = []
    for alert in event.alerts:
        names = [heartbeat.name for heartbeat in heartbeats if all(m.matches(alert.labels) for m in heartbeat.matchers)]
        if not names:
            left.append(alert)
        elif alert.status is Status.FIRING:
            seen.update(names)
    if len(left) == len(event.alerts):
        return event, frozenset()
    if not left:
        return None, frozenset(seen)
    firing = any(alert.status is Status.FIRING for alert in left)
    status = Status.FIRING if firing else Status.RESOLVED
    return replace(event, status=status, alerts=tuple(left)), frozenset(seen)
