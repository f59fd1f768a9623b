r"""Where an event goes: its watchdogs' alerts are heartbeats, and the others take the first route that matches any.

The matchers are Alertmanager's: `name="value"` with `=`, `!=`, `=~` or `!~`; the value may stand in double quotes,
where `\"`, `\\` and `\n` are escapes; a missing label equals the empty value; a regular expression matches the whole
value, and is RE2's, so that the time it takes grows with the length of a label and no faster.
https://prometheus.io/docs/alerting/latest/configuration/#matcher, https://github.com/google/re2/wiki/Syntax
"""

import re
from collections.abc import Collection, Mapping, Sequence, Sized
from dataclasses import dataclass, replace
from typing import Annotated, Any, Final, TypeVar

import re2
from pydantic import AfterValidator, BeforeValidator

from services.relay.model import Alert, EscalationStep, Event, Status
from services.relay.outbox.proofs import PathProof
from shared.config.settings import Duration, Section, UrlFilePath
from shared.net.egress import EgressSettings

_MATCHER: Final = re.compile(r'\s*([a-zA-Z_:][a-zA-Z0-9_:]*|"(?:[^"\\]|\\.)+")\s*(=~|!~|!=|=)(.*)', re.DOTALL)
_QUOTED: Final = re.compile(r'"((?:[^"\\]|\\["\\n])*)"', re.DOTALL)
_BARE: Final = re.compile(r'[^"{}\s,]*')
_ESCAPES: Final = {r"\"": '"', r"\\": "\\", r"\n": "\n"}
_RE2: Final = re2.Options()
_RE2.log_errors = False  # it would write to standard error past our log


@dataclass(frozen=True, slots=True)
class Matcher:
    label: str
    operator: str
    value: str
    pattern: Any
    """The compiled value of `=~` and `!~`, from RE2, which ships no types; else None."""

    def matches(self, labels: Mapping[str, str]) -> bool:
        actual = labels.get(self.label, "")
        found = actual == self.value if self.pattern is None else self.pattern.fullmatch(actual) is not None
        return found is not self.operator.startswith("!")

    def __str__(self) -> str:
        """As Alertmanager writes it: `severity="critical"`."""
        return f"{self.label}{self.operator}{quote_value(self.value)}"


def quote_value(value: str) -> str:
    """The value of a matcher in double quotes."""
    escaped = value.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
    return f'"{escaped}"'


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


T = TypeVar("T", bound=Sized)


def require_one(values: T) -> T:
    """Raises ValueError for an empty collection."""
    # Not pydantic's min_length, which complains of an empty list where the items have errors of their own.
    if not values:
        raise ValueError("expected at least one")
    return values


ParsedMatcher = Annotated[
    Matcher,
    BeforeValidator(lambda value: parse_matcher(value if isinstance(value, str) else ""), json_schema_input_type=str),
]
ChannelNames = Annotated[tuple[str, ...], AfterValidator(require_one)]


class EscalationSettings(Section):
    """Where an incident goes that was delivered, and that nobody has acknowledged."""

    after: Duration
    """Since its first delivery."""
    channels: ChannelNames


class RouteSettings(Section):
    """Alerts of a receiver that match go to these channels; the first route that matches counts.

    It matches if its receiver does, and if all its matchers match one and the same alert.
    """

    receiver: str | None = None
    matchers: tuple[ParsedMatcher, ...] = ()
    channels: ChannelNames
    escalate: tuple[EscalationSettings, ...] = ()
    """Further channels, one step after the other."""

    @property
    def escalation(self) -> tuple[EscalationStep, ...]:
        """As an incident stores it."""
        return tuple(EscalationStep(step.after, step.channels) for step in self.escalate)


class WatchdogSettings(EgressSettings):
    """An alert that always fires. It counts as a heartbeat, and its absence is an alert."""

    matchers: Annotated[tuple[ParsedMatcher, ...], AfterValidator(require_one)]
    expect_every: Duration
    """The longest time between two heartbeats; longer means that Prometheus or Alertmanager is gone."""
    channels: ChannelNames
    ping_url_file: UrlFilePath | None = None
    """Contains the URL of a dead man's switch, pinged at each heartbeat while the outbox drains."""

    @property
    def name(self) -> str:
        """Its name in metrics and in its incident: alert and other matchers, such as `Watchdog{cluster=eu}`."""
        alert = next((m for m in self.matchers if m.label == "alertname" and m.operator == "="), None)
        others = ",".join(f"{m.label}{m.operator}{m.value}" for m in self.matchers if m is not alert)
        if alert is None:
            return others
        return f"{alert.value}{{{others}}}" if others else alert.value


def find_route(event: Event, routes: Sequence[RouteSettings]) -> int | None:
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


def split_heartbeats(event: Event, watchdogs: Sequence[WatchdogSettings]) -> tuple[Event | None, frozenset[str]]:
    """The event without the alerts of watchdogs, or None if no other is left; and the watchdogs whose alerts fire.

    A resolved alert of a watchdog is no heartbeat, since Prometheus has stopped sending it. As an event it would
    resolve something whose firing was never delivered; `monitors.watchdog` publishes its absence.
    """
    if not watchdogs:
        return event, frozenset()
    heartbeats: set[str] = set()
    others: list[Alert] = []
    for alert in event.alerts:
        names = [each.name for each in watchdogs if all(m.matches(alert.labels) for m in each.matchers)]
        if not names:
            others.append(alert)
        elif alert.status is Status.FIRING:
            heartbeats.update(names)
    return _keep_alerts(event, others), frozenset(heartbeats)


def _keep_alerts(event: Event, alerts: Sequence[Alert]) -> Event | None:
    """The event with some of its alerts alone; None with none of them."""
    if len(alerts) == len(event.alerts):
        return event
    if not alerts:
        return None
    firing = any(alert.status is Status.FIRING for alert in alerts)
    return replace(event, status=Status.FIRING if firing else Status.RESOLVED, alerts=tuple(alerts))


PROOF_ALERT: Final = "KMSPathProof"
UNPROVEN_ALERT: Final = "KMSPathUnproven"


def split_proofs(event: Event, channels: Collection[str]) -> tuple[Event | None, frozenset[PathProof]]:
    """The event without its proofs of the path, or None if no other alert is left; and those that were raised.

    A channel of this relay that is not proven is no event either: the relay itself tells it, and knows where the proof
    was lost. `channels` are those that it proves.
    """
    proofs: set[PathProof] = set()
    others: list[Alert] = []
    for alert in event.alerts:
        name, labels = alert.labels.get("alertname"), alert.labels
        if name == PROOF_ALERT:
            if alert.status is Status.FIRING:
                raised_at = alert.starts_at.timestamp()
                started = _parse_seconds(alert.annotations.get("proof_started", "")) or raised_at
                proofs.add(PathProof(started, labels.get("env", ""), labels.get("service", ""), raised_at))
        elif name != UNPROVEN_ALERT or labels.get("channel") not in channels:
            others.append(alert)
    return _keep_alerts(event, others), frozenset(proofs)


def _parse_seconds(text: str) -> float | None:
    """Unix seconds of this era; None for anything else."""
    return float(text) if re.fullmatch(r"[0-9]{1,11}", text) else None
