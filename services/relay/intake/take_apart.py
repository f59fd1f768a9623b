"""A webhook's body → what is to be committed of it, and for whom. Pure.

A large one is read in parts, of which only what is bounded remains: whatever it holds, it takes a few times its size.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

from services.relay import identity
from services.relay.bounds import MAX_TEXT, limit_size
from services.relay.intake import webhook
from services.relay.intake.heartbeat import HeartbeatMatcher, split_heartbeats
from services.relay.intake.routing import Route, find_route
from services.relay.model import Event, Status
from services.relay.outbox.accept import IncomingEvent


class ParsedWebhook(NamedTuple):
    """What is left to do for a webhook."""

    heartbeats: frozenset[str]
    """Watchdogs."""
    incoming: IncomingEvent | None
    """None where there is no news."""
    route: Route | None
    """The first route that matches any alert."""


def parse_webhook(body: bytes, source: str, heartbeats: Sequence[HeartbeatMatcher], routes: Sequence[Route]) -> ParsedWebhook:
    """See above. Raises MalformedError or TooManyError of `webhook`.

    Args:
        body: JSON in UTF-8.
        source: which of several independent Alertmanagers sent it.
        heartbeats: the alerts that are signs of life, and no news.
        routes: in their order.
    """
    event: Event | None = None
    seen: frozenset[str] = frozenset()
    said, rule, before, changed = 0, None, routes, False
    for part in webhook.iterate_parts(body, source):
        news, beats = split_heartbeats(part, heartbeats)
        seen |= beats
        changed |= news is not part
        if news is None:
            continue
        said += identity.hash_alerts(news)
        place = find_route(news, before)
        if place is not None:
            rule, before = before[place], before[:place]
        event = limit_size(news if event is None else replace(event, alerts=event.alerts + news.alerts))
    if event is None:
        return ParsedWebhook(seen, None, None)
    if changed:
        firing = event.unlisted_firing or any(alert.status is Status.FIRING for alert in event.alerts)
        event = replace(event, status=Status.FIRING if firing else Status.RESOLVED)
    incoming = IncomingEvent(
        event=event,
        incident_id=identity.build_incident_id(event),
        fingerprint=f"{said % 2**256:064x}",
        alertname=identity.find_alertname(event)[:MAX_TEXT],
        body=body,
    )
    return ParsedWebhook(seen, incoming, rule)
