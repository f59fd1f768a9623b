"""Which receivers, routes and channels an alert takes, and why: by Alertmanager's tree where it is known, then by ours.

The decisions are those of `intake`, and of Alertmanager's rules. Explained is one alert. A webhook may have several,
and takes the first route that matches any of them. Its labels may be pasted in three forms: Alertmanager's matchers,
with or without braces (`{alertname="X", severity="critical"}`), a JSON object, or one `name=value` a line.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final, NamedTuple

import msgspec

from services.relay.config import RelaySettings
from services.relay.doctor import check_receiver, check_unserved, list_receivers
from services.relay.intake.routing import (
    Matcher,
    RouteSettings,
    WatchdogSettings,
    find_route,
    parse_matcher,
    split_heartbeats,
)
from services.relay.model import Alert, EscalationStep, Event, Status
from services.relay.routes.alertmanager import (
    AlertmanagerTree,
    AlertmanagerTrees,
    TreeError,
    TreeVerdict,
    list_chosen,
    route_alert,
)
from shared.check import CheckError
from shared.http.json_api import RefusedError
from shared.http.untrusted_json import UntrustedJsonError, decode_json

MAX_TEXT: Final = 20_000
"""Characters."""
MAX_LABELS: Final = 200
_LABELS: Final = msgspec.json.Decoder(dict[str, str])
_LISTED: Final = re.compile(r'(?:"(?:[^"\\]|\\.)*(?:"|\\?\Z)|[^",])+', re.DOTALL)
"""One matcher among several; a comma in quotes separates nothing. A quote that is not closed takes the rest: to look
for its end again at each further quote would take seconds."""
_LINE: Final = re.compile(r"\s*([a-zA-Z_:][a-zA-Z0-9_:]*)\s*=(?![=~])(.*)")
_NEXT: Final = re.compile(r",\s*[a-zA-Z_:][a-zA-Z0-9_:]*\s*(=|!)")
"""Another matcher on the line, so that it is no value."""
_EXPECTED: Final = 'expected alertname="X", severity="critical", a JSON object, or one name=value a line'


def parse_labels(text: str) -> dict[str, str]:
    """The labels of an alert. Raises RefusedError with what was expected."""
    text = text.strip()
    if len(text) > MAX_TEXT:
        raise RefusedError(f"expected at most {MAX_TEXT} characters")
    labels = _parse_json(text) if text.startswith("{") and re.match(r'\{\s*("(\\.|[^"\\])*"\s*:|\})', text) else None
    if labels is None:
        labels = {}
        for line in text.removeprefix("{").removesuffix("}").splitlines():
            labels |= _parse_line(line)
    if not labels:
        raise RefusedError(_EXPECTED)
    if len(labels) > MAX_LABELS:
        raise RefusedError(f"expected at most {MAX_LABELS} labels")
    return labels


def _parse_json(text: str) -> dict[str, str]:
    try:
        return decode_json(_LABELS, text.encode(errors="replace"))
    except UntrustedJsonError as error:
        raise RefusedError(f"{error}; expected an object of texts") from None


def _parse_line(line: str) -> dict[str, str]:
    """A line of matchers; or one label, whose value may be any text that is in no quotes."""
    texts = [text.strip() for text in _LISTED.findall(line) if text.strip()]
    try:
        matchers = [parse_matcher(text) for text in texts]
    except ValueError:
        plain = _LINE.fullmatch(line)
        value = "" if plain is None else plain[2].strip()
        if plain is None or value.startswith('"') or _NEXT.search(value):
            raise RefusedError(_EXPECTED) from None
        return {plain[1]: value}
    for matcher, text in zip(matchers, texts, strict=True):
        if matcher.operator != "=":
            raise RefusedError(f"{text}: expected the value of a label, with =")
    return {matcher.label: matcher.value for matcher in matchers}


_MAX_VALUE: Final = 100
"""Characters of a label's value in a sentence."""


class ConditionVerdict(NamedTuple):
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
    """Whether the alert takes it: the first route that matches."""

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
    """A sentence for each route, up to the chosen one."""


def explain_route(
    receiver: str,
    labels: Mapping[str, str],
    routes: Sequence[RouteSettings],
    default_channels: Sequence[str],
    heartbeats: Sequence[WatchdogSettings],
) -> RouteExplanation:
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


class ReceiverExplanation(NamedTuple):
    """What becomes of an alert by one receiver."""

    receiver: str
    kinds: tuple[str, ...] | None
    """What Alertmanager's receiver sends to; None if it is not known."""
    explanation: RouteExplanation | None
    """What the relay does with it; None if the receiver has no webhook, so that the relay gets nothing."""


class TreeExplanation(NamedTuple):
    """What becomes of an alert in one Alertmanager."""

    alertmanager: AlertmanagerTree
    verdict: TreeVerdict | None
    """None where its tree, or where the alert goes in it, cannot be shown."""
    error: str | None


class AlertExplanation(NamedTuple):
    receivers: tuple[ReceiverExplanation, ...]
    trees: tuple[TreeExplanation, ...]
    why: tuple[str, ...]

    @property
    def channels(self) -> tuple[str, ...]:
        found = (each.explanation.channels for each in self.receivers if each.explanation)
        return tuple(dict.fromkeys(channel for channels in found for channel in channels))


class RouteExplainer:
    def __init__(self, settings: RelaySettings, trees: AlertmanagerTrees) -> None:
        self.trees = trees
        self._settings = settings
        self._routes = settings.routes
        self._heartbeats = settings.watchdogs

    async def explain(self, labels: Mapping[str, str], receiver: str | None) -> AlertExplanation:
        """Where an alert with these labels goes.

        Args:
            labels: of the alert.
            receiver: by which it comes; None takes the receivers of Alertmanager's tree.

        Raises:
            RefusedError: no receiver is given, and no tree gives one; with what was expected.
        """
        trees = tuple(_explain_tree(each, labels) for each in await self.trees.read())
        if receiver is None:
            if all(each.verdict is None for each in trees):
                raise RefusedError(_describe_missing_receiver(trees))
            names = [route.receiver for tree in trees if tree.verdict for route in list_chosen(tree.verdict)]
        else:
            names = [receiver]
        receivers = tuple(self._explain_receiver(name, labels, trees) for name in dict.fromkeys(names))
        return AlertExplanation(receivers, trees, tuple(_list_reasons(receivers, trees, receiver)))

    def _explain_receiver(
        self, name: str, labels: Mapping[str, str], trees: Sequence[TreeExplanation]
    ) -> ReceiverExplanation:
        listed = [tree.alertmanager.tree.receivers for tree in trees if tree.alertmanager.tree]
        kinds_by_tree = [receivers[name] for receivers in listed if name in receivers]
        kinds = tuple(dict.fromkeys(kind for kinds in kinds_by_tree for kind in kinds)) if kinds_by_tree else None
        if kinds is not None and "webhook" not in kinds:
            return ReceiverExplanation(name, kinds, None)
        channels = self._settings.default_channels
        explained = explain_route(name, labels, self._routes, channels, self._heartbeats)
        return ReceiverExplanation(name, kinds, explained)

    async def find_problems(self) -> list[str]:
        """What does not fit together: receivers that are missing here or there, channels that nothing leads to."""
        return [*self._find_receiver_problems(await self.trees.read()), *self._find_unused_channels()]

    def _find_receiver_problems(self, trees: Sequence[AlertmanagerTree]) -> Iterator[str]:
        for each in trees:
            if each.tree is None:
                continue
            receivers = list_receivers(each.tree)
            for number, route in enumerate(self._routes):
                if route.receiver is not None:
                    try:
                        check_receiver(route.receiver, receivers)
                    except CheckError as error:
                        yield f"routes.{number}: {error}"
            try:
                check_unserved(receivers, [None])
            except CheckError as error:
                yield str(error)

    async def list_unserved(self) -> list[str]:
        """The receivers with a webhook that no route of the relay names."""
        served = {route.receiver for route in self._routes if route.receiver is not None or not route.matchers}
        listed = [list_receivers(each.tree) for each in await self.trees.read() if each.tree]
        receivers = {name for each in listed for name in each.webhooks if name in each.routed}
        return [] if None in served else sorted(receivers - served)

    def _find_unused_channels(self) -> Iterator[str]:
        used = {*self._settings.default_channels}
        for route in self._routes:
            used.update(route.channels, *(step.channels for step in route.escalation))
        for watchdog in self._settings.watchdogs:
            used.update(watchdog.channels)
        unused = [name for name in self._settings.channels if name not in used]
        if unused:
            yield f"nothing leads to the channel {', '.join(unused)}; add it to a route, or remove it"


def encode_explanation(explanation: AlertExplanation) -> dict[str, Any]:
    """As the API writes it: `route` is that of the first receiver by which the relay gets the alert."""
    explained = [each.explanation for each in explanation.receivers if each.explanation]
    return {
        "route": explained[0].route if explained else None,
        "channels": list(explanation.channels),
        "why": list(explanation.why),
        "receivers": [
            {
                "receiver": each.receiver,
                "reaches_relay": each.explanation is not None,
                "route": each.explanation.route if each.explanation else None,
                "channels": list(each.explanation.channels) if each.explanation else [],
                "escalate": [
                    {"after_seconds": step.after, "channels": list(step.channels)}
                    for step in (each.explanation.escalation if each.explanation else ())
                ],
                "watchdogs": list(each.explanation.watchdogs) if each.explanation else [],
            }
            for each in explanation.receivers
        ],
    }


def _explain_tree(alertmanager: AlertmanagerTree, labels: Mapping[str, str]) -> TreeExplanation:
    if alertmanager.tree is None:
        return TreeExplanation(alertmanager, None, alertmanager.error)
    try:
        return TreeExplanation(alertmanager, route_alert(alertmanager.tree, labels), None)
    except TreeError as error:
        return TreeExplanation(alertmanager, None, str(error))


def _describe_missing_receiver(trees: Sequence[TreeExplanation]) -> str:
    if not trees:
        return "receiver: missing; expected its name, or `alertmanager.urls`, whose routes give it"
    reasons = "; ".join(f"{each.alertmanager.urls[0]}: {each.error}" for each in trees)
    return f"receiver: missing, and no Alertmanager's tree can be used ({reasons}); expected its name"


def _list_reasons(
    receivers: Sequence[ReceiverExplanation], trees: Sequence[TreeExplanation], given: str | None
) -> Iterator[str]:
    """A sentence for each decision, in their order."""
    for tree in trees:
        where = ", ".join(tree.alertmanager.urls)
        if tree.verdict is None:
            yield f"Alertmanager {where}: {tree.error}"
            continue
        chosen = list_chosen(tree.verdict)
        for route in chosen:
            yield f"Alertmanager {where}: {route.path} gives it to the receiver {route.receiver}"
        if given is not None and given not in [route.receiver for route in chosen]:
            yield f"Alertmanager {where} would not give it to the receiver {given}"
    for each in receivers:
        if each.explanation is None:
            sent = ", ".join(each.kinds or ()) or "nothing"
            yield f"the receiver {each.receiver} has no webhook, so the relay does not get it; it sends to {sent}"
        else:
            yield from each.explanation.why
