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
from services.relay.intake.routing import Matcher, find_route, parse_matcher, split_heartbeats, split_proofs
from services.relay.model import Alert, EscalationStep, Event, Status
from services.relay.routes.alertmanager import (
    AlertmanagerTree,
    AlertmanagerTrees,
    RouteState,
    RoutingTree,
    TreeError,
    TreeVerdict,
    check_leading_here,
    check_receiver,
    find_unserved,
    list_chosen,
    route_alert,
)
from services.relay.routes.merge import LISTED
from services.relay.text import truncate
from shared.check import CheckError
from shared.http.json_api import RefusedError
from shared.http.untrusted_json import UntrustedJsonError, decode_json

MAX_TEXT: Final = 20_000
"""Characters."""
MAX_LABELS: Final = 200
_LABELS: Final = msgspec.json.Decoder(dict[str, str])
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
    texts = [text.strip() for text in LISTED.findall(line) if text.strip()]
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


class RouteVerdict(NamedTuple):
    """What becomes of an alert at a route of the relay; `failed` is empty where it is not reached."""

    state: RouteState
    receiver_failed: bool
    failed: tuple[str, ...]
    """The conditions that failed, such as `severity="critical"`."""


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


def explain_route(receiver: str, labels: Mapping[str, str], settings: RelaySettings) -> RouteExplanation:
    routes, (others, watchdogs) = settings.routes, split_heartbeats(_build_event(receiver, labels), settings.watchdogs)
    why_not = f"it is a heartbeat of the watchdog {', '.join(sorted(watchdogs))}; no channel gets it"
    if others is not None:
        others, _ = split_proofs(others, settings.proven_channels)
        why_not = "it is about the proof of the path; each channel proves itself, and tells nobody"
    if others is None:
        skipped = (RouteVerdict(RouteState.SKIPPED, receiver_failed=False, failed=()),) * len(routes)
        return RouteExplanation(receiver, tuple(sorted(watchdogs)), None, (), (), skipped, (why_not,))
    chosen = find_route(others, routes)
    verdicts, why = [], []
    for number, route in enumerate(routes):
        if chosen is not None and number > chosen:
            verdicts.append(RouteVerdict(RouteState.SKIPPED, receiver_failed=False, failed=()))
            continue
        failed = [matcher for matcher in route.matchers if not matcher.matches(labels)]
        state = RouteState.CHOSEN if number == chosen else RouteState.FAILED
        receiver_failed = route.receiver not in {None, receiver}
        verdicts.append(RouteVerdict(state, receiver_failed, tuple(map(str, failed))))
        if receiver_failed:
            reasons = f"its receiver is {route.receiver}"
        else:
            reasons = ", ".join(f"{each} fails, {_describe_value(each, labels)}" for each in failed)
        if state is RouteState.CHOSEN:
            conditions = [f"receiver {route.receiver}"] if route.receiver is not None else []
            conditions += map(str, route.matchers)
            why.append(f"routes.{number} matches: {', '.join(conditions) or 'it has no condition'}")
        else:
            why.append(f"routes.{number} does not match: {reasons}")
    if chosen is None:
        why.append("no route matches, so it goes to default_channels")
    channels = settings.default_channels if chosen is None else routes[chosen].channels
    escalation = () if chosen is None else routes[chosen].escalation
    return RouteExplanation(
        receiver, (), chosen, tuple(dict.fromkeys(channels)), escalation, tuple(verdicts), tuple(why)
    )


def _describe_value(matcher: Matcher, labels: Mapping[str, str]) -> str:
    """`severity is "warning"`, or that there is no such label."""
    value = labels.get(matcher.label)
    if not value:
        return f"there is no label {matcher.label}"
    return f"{matcher.label} is {json.dumps(truncate(value, _MAX_VALUE), ensure_ascii=False)}"


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
        listed = [each.alertmanager.tree.receivers for each in trees if each.alertmanager.tree]
        kinds = None
        if any(name in receivers for receivers in listed):
            kinds = tuple(dict.fromkeys(kind for receivers in listed for kind in receivers.get(name, ())))
            if "webhook" not in kinds:
                return ReceiverExplanation(name, kinds, None)
        return ReceiverExplanation(name, kinds, explain_route(name, labels, self._settings))

    async def find_problems(self) -> list[str]:
        """What does not fit together: receivers that are missing here or there, channels that nothing leads to."""
        trees = [each.tree for each in await self.trees.read() if each.tree]
        return [*self._find_receiver_problems(trees), *self._find_unused_channels()]

    def _find_receiver_problems(self, trees: Sequence[RoutingTree]) -> Iterator[str]:
        for tree in trees:
            for number, route in enumerate(self._settings.routes):
                if route.receiver is not None:
                    try:
                        check_receiver(route.receiver, tree)
                    except CheckError as error:
                        yield f"routes.{number}: {error}"
            try:
                check_leading_here(tree)
            except CheckError as error:
                yield str(error)

    async def list_unserved(self) -> list[str]:
        """The receivers that lead here, and that no route of the relay names."""
        trees = [each.tree for each in await self.trees.read() if each.tree]
        return sorted({name for tree in trees for name in find_unserved(self._settings.routes, tree)})

    def _find_unused_channels(self) -> Iterator[str]:
        settings = self._settings
        used = {*settings.default_channels}
        for route in settings.routes:
            used.update(route.channels, *(step.channels for step in route.escalate))
        for watchdog in settings.watchdogs:
            used.update(watchdog.channels)
        if unused := [name for name in settings.channels if name not in used]:
            yield f"nothing leads to the channel {', '.join(unused)}; add it to a route, or remove it"


def encode_explanation(explanation: AlertExplanation) -> dict[str, Any]:
    """As the API writes it: `route` is that of the first receiver by which the relay gets the alert."""
    receivers = list(map(_encode_receiver, explanation.receivers))
    return {
        "route": next((each["route"] for each in receivers if each["reaches_relay"]), None),
        "channels": list(explanation.channels),
        "why": list(explanation.why),
        "receivers": receivers,
    }


def _encode_receiver(receiver: ReceiverExplanation) -> dict[str, Any]:
    found = receiver.explanation or RouteExplanation(receiver.receiver, (), None, (), (), (), ())
    return {
        "receiver": receiver.receiver,
        "reaches_relay": receiver.explanation is not None,
        "route": found.route,
        "channels": list(found.channels),
        "escalate": [{"after_seconds": step.after, "channels": list(step.channels)} for step in found.escalation],
        "watchdogs": list(found.watchdogs),
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
