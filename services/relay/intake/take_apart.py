"""A webhook's body → what is to be committed of it, and for whom. Pure.

A large one is read in parts, of which only what is bounded remains: whatever it holds, it takes a few times its size.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

from services.relay import identity
from services.relay.bounds import TEXT, bounded
from services.relay.intake import webhook
from services.relay.intake.heartbeat import Heartbeat, taken_out
from services.relay.intake.routing import Rule, first_match
from services.relay.model import Event, Status
from services.relay.outbox.accept import Incoming


class TakenApart(NamedTuple):
    """What is left to do for a webhook."""

    seen: frozenset[str]
    """Watchdogs."""
    incoming: Incoming | None
    """None where there is no news."""
    rule: Rule | None
    """The first route that matches any alert."""


def take_apart(body: bytes, source: str, heartbeats: Sequence[Heartbeat], routes: Sequence[Rule]) -> TakenApart:
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
    for part in webhook.parts(body, source):
        news, beats = taken_out(part, heartbeats)
        seen |= beats
        changed |= news is not part
        if news is None:
            continue
        said += identity.said(news)
        place = first_match(news, before)
        if place is not None:
            rule, before = before[place], before[:place]
        event = bounded(news if event is None else replace(event, alerts=event.alerts + news.alerts))
    if event is None:
        return TakenApart(seen, None, None)
    if changed:
        firing = event.unlisted_firing or any(alert.status is Status.FIRING for alert in event.alerts)
        event = replace(event, status=Status.FIRING if firing else Status.RESOLVED)
    incoming = Incoming(
        event=event,
        incident_id=identity.incident_id(event),
        fingerprint=f"{said % 2**256:064x}",
        alertname=identity.alertname(event)[:TEXT],
        body=body,
    )
    return TakenApart(seen, incoming, rule)
