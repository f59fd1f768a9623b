"""Splits an event into the alerts of watchdogs, which are heartbeats, and the others. Pure.

A watchdog's alert always fires. It is no incident; its absence is one, which `monitors.watchdog` publishes.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace

from services.relay.intake.routing import Matcher
from services.relay.model import Alert, Event, Status


@dataclass(frozen=True, slots=True)
class HeartbeatMatcher:
    """By which matchers the alert of a watchdog is recognised."""

    name: str
    """Of the watchdog."""
    matchers: tuple[Matcher, ...]
    """Its alert matches all of them."""


def split_heartbeats(event: Event, heartbeats: Iterable[HeartbeatMatcher]) -> tuple[Event | None, frozenset[str]]:
    """The event without the alerts of watchdogs, or None if no other is left; and the watchdogs whose alerts fire.

    A resolved alert of a watchdog is removed too, but is no heartbeat: Prometheus has stopped sending it, and
    its absence will be published. As an event it would resolve something whose firing was never delivered.
    """
    heartbeats = tuple(heartbeats)
    watchdogs: set[str] = set()
    others: list[Alert] = []
    for alert in event.alerts:
        names = [heartbeat.name for heartbeat in heartbeats if all(m.matches(alert.labels) for m in heartbeat.matchers)]
        if not names:
            others.append(alert)
        elif alert.status is Status.FIRING:
            watchdogs.update(names)
    if len(others) == len(event.alerts):
        return event, frozenset()
    if not others:
        return None, frozenset(watchdogs)
    firing = any(alert.status is Status.FIRING for alert in others)
    status = Status.FIRING if firing else Status.RESOLVED
    return replace(event, status=status, alerts=tuple(others)), frozenset(watchdogs)
