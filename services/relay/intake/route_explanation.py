"""Which route and channels an alert takes, and why, by the intake's own decisions. Pure.

Explained is one alert. A webhook may have several, and takes the first route that matches any of them.
"""

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Final, NamedTuple

from services.relay.intake.heartbeats import HeartbeatMatcher, split_heartbeats
from services.relay.intake.routing import Matcher, Route, find_route
from services.relay.model import Alert, EscalationStep, Event, Status

_MAX_VALUE: Final = 100
"""Characters of a label's value in a sentence."""


class ConditionVerdict(NamedTuple):
    """Whether an alert fulfils a matcher."""

    condition: str
    """Such as `severity="critical"`."""
    matches: bool
    label: str
    value: str
    """Of the alert's label; empty where it has none."""


class RouteVerdict(NamedTuple):
    """How a route looks at an alert."""

    number: int
    receiver: str | None
    """None matches each."""
    receiver_matches: bool
    conditions: tuple[ConditionVerdict, ...]
    is_chosen: bool
    """Whether the alert takes it: of those that match, the first one."""

    @property
    def matches(self) -> bool:
        """Whether its receiver and all its conditions match."""
        return self.receiver_matches and all(each.matches for each in self.conditions)


class RouteExplanation(NamedTuple):
    """Where an alert goes that comes with a receiver."""

    receiver: str
    watchdogs: tuple[str, ...]
    """Those of which it is a heartbeat; then no channel gets it."""
    route: int | None
    """The number of its route; None: `default_channels`, or none."""
    channels: tuple[str, ...]
    escalation: tuple[EscalationStep, ...]
    verdicts: tuple[RouteVerdict, ...]
    """Of every route, in their order."""
    why: tuple[str, ...]
    """A sentence for each route up to the one that it takes."""


def explain_route(
    receiver: str,
    labels: Mapping[str, str],
    routes: Sequence[Route],
    default_channels: Sequence[str],
    heartbeats: Sequence[HeartbeatMatcher],
) -> RouteExplanation:
    """Where an alert goes.

    Args:
        receiver: of Alertmanager, by whose webhook it comes.
        labels: of the alert.
        routes: in their order.
        default_channels: where it goes if no route matches.
        heartbeats: which alerts are heartbeats.
    """
    event = _build_event(receiver, labels)
    others, watchdogs = split_heartbeats(event, heartbeats)
    chosen = None if others is None else find_route(others, routes)
    verdicts = tuple(
        RouteVerdict(
            number,
            route.receiver,
            route.receiver is None or route.receiver == receiver,
            tuple(_judge(matcher, labels) for matcher in route.matchers),
            number == chosen,
        )
        for number, route in enumerate(routes)
    )
    if others is None:
        names = tuple(sorted(watchdogs))
        heartbeat = f"it is a heartbeat of the watchdog {', '.join(names)}; no channel gets it"
        return RouteExplanation(receiver, names, None, (), (), verdicts, (heartbeat,))
    why = [describe_verdict(each) for each in (verdicts if chosen is None else verdicts[: chosen + 1])]
    if chosen is None:
        why.append("no route matches, so it goes to default_channels")
    channels = default_channels if chosen is None else routes[chosen].channels
    escalation = () if chosen is None else routes[chosen].escalation
    return RouteExplanation(receiver, (), chosen, tuple(dict.fromkeys(channels)), escalation, verdicts, tuple(why))


def describe_verdict(verdict: RouteVerdict) -> str:
    """`routes.0 does not match: severity="critical" fails, severity is "warning"`."""
    name = f"routes.{verdict.number}"
    if not verdict.receiver_matches:
        return f"{name} does not match: its receiver is {verdict.receiver}"
    failed = [each for each in verdict.conditions if not each.matches]
    if failed:
        reasons = ", ".join(f"{each.condition} fails, {describe_value(each)}" for each in failed)
        return f"{name} does not match: {reasons}"
    matched = [f"receiver {verdict.receiver}"] if verdict.receiver is not None else []
    matched += [each.condition for each in verdict.conditions]
    return f"{name} matches: {', '.join(matched) or 'it has no condition'}"


def describe_value(verdict: ConditionVerdict) -> str:
    """`severity is "warning"`, or that there is no such label."""
    if not verdict.value:
        return f"there is no label {verdict.label}"
    excerpt = verdict.value if len(verdict.value) <= _MAX_VALUE else verdict.value[: _MAX_VALUE - 1] + "…"
    return f"{verdict.label} is {json.dumps(excerpt, ensure_ascii=False)}"


def format_matcher(matcher: Matcher) -> str:
    """As Alertmanager writes it: `severity="critical"`."""
    value = matcher.value.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
    return f'{matcher.label}{matcher.operator}"{value}"'


def _judge(matcher: Matcher, labels: Mapping[str, str]) -> ConditionVerdict:
    value = labels.get(matcher.label, "")
    return ConditionVerdict(format_matcher(matcher), matcher.matches(labels), matcher.label, value)


def _build_event(receiver: str, labels: Mapping[str, str]) -> Event:
    alert = Alert(
        status=Status.FIRING,
        labels=labels,
        annotations={},
        starts_at=datetime.fromtimestamp(0, UTC),
        ends_at=None,
        generator_url="",
        fingerprint="",
    )
    return Event(
        source="",
        receiver=receiver,
        group_key="",
        status=Status.FIRING,
        alerts=(alert,),
        group_labels={},
        common_labels=labels,
        common_annotations={},
        external_url="",
        truncated_alerts=0,
    )
