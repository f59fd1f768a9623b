r"""Splits an event into the alerts of watchdogs, which are heartbeats, and the others. Pure.

A watchdog's alert always fires. It is no incident; its absence is one, which `monitors.watchdog` publishes.

Which channels an event goes to: those of the first route that matches any of its alerts. Pure.

The matchers are Alertmanager's: `name="value"` with `=`, `!=`, `=~` or `!~`; the value may stand in double quotes,
where `\"`, `\\` and `\n` are escapes; a missing label equals the empty value; a regular expression matches the whole
value, and is RE2's, so that the time it takes grows with the length of a label and no faster.
https://prometheus.io/docs/alerting/latest/configuration/#matcher, https://github.com/google/re2/wiki/Syntax
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import re2

from services.relay.model import Alert, EscalationStep, Event, Status

_MATCHER: Final = re.compile(r'\s*([a-zA-Z_:][a-zA-Z0-9_:]*|"(?:[^"\\]|\\.)+")\s*(=~|!~|!=|=)(.*)', re.DOTALL)
_QUOTED: Final = re.compile(r'"((?:[^"\\]|\\["\\n])*)"', re.DOTALL)
_BARE: Final = re.compile(r'[^"{}\s,]*')
_ESCAPES: Final = {r"\"": '"', r"\\": "\\", r"\n": "\n"}
_RE2: Final = re2.Options()
_RE2.log_errors = False  # it would write to standard error past our log


@dataclass(frozen=True, slots=True)
class Matcher:
    """One condition on one label."""

    label: str
    operator: str
    value: str
    pattern: Any
    """The compiled value of `=~` and `!~`, from RE2, which ships no types; else None."""

    def matches(self, labels: Mapping[str, str]) -> bool:
        """Whether labels fulfil it."""
        actual = labels.get(self.label, "")
        found = actual == self.value if self.pattern is None else self.pattern.fullmatch(actual) is not None
        return found is not self.operator.startswith("!")


@dataclass(frozen=True, slots=True)
class Route:
    """A route. It matches if its receiver does, and if all its matchers match one and the same alert."""

    receiver: str | None
    """None matches every receiver."""
    matchers: tuple[Matcher, ...]
    channels: tuple[str, ...]
    escalation: tuple[EscalationStep, ...] = ()


def parse_matcher(text: str) -> Matcher:
    """`severity=~"warning|critical"` → Matcher. Raises ValueError with what was expected."""
    parts = _MATCHER.fullmatch(text)
    if parts is None:
        raise ValueError('expected a matcher such as severity="warning", with =, !=, =~ or !~')
    label, operator, quoted_value = parts.groups()
    value = _unquote(quoted_value.strip())
    pattern = None
    if operator.endswith("~"):
        try:
            pattern = re2.compile(value, _RE2)
        except re2.error as error:
            raise ValueError(f"is not a regular expression of RE2: {_describe_re2_error(error)}") from None
        except UnicodeEncodeError:
            raise ValueError("is not a regular expression of RE2: half a surrogate pair") from None
    return Matcher(_unquote(label), operator, value, pattern)


def find_route(event: Event, routes: Sequence[Route]) -> int | None:
    """The index of the first route that matches; None if none does."""
    for index, route in enumerate(routes):
        if route.receiver is not None and route.receiver != event.receiver:
            continue
        if any(all(matcher.matches(alert.labels) for matcher in route.matchers) for alert in event.alerts):
            return index
    return None


def _describe_re2_error(error: Exception) -> str:
    """RE2's message, which comes as bytes and may quote a part of a character."""
    (message,) = error.args
    return " ".join(message.decode(errors="replace").split()) if isinstance(message, bytes) else str(message)


def _unquote(text: str) -> str:
    quoted = _QUOTED.fullmatch(text)
    if quoted:
        return re.sub(r'\\["\\n]', lambda escape: _ESCAPES[escape.group()], quoted.group(1))
    if not _BARE.fullmatch(text):
        raise ValueError('expected one matcher, its value in double quotes, such as severity="warning"')
    return text


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
