"""Which receivers, routes and channels an alert takes: through Alertmanager's tree where it is known, then the relay's.

The decisions are those of `intake`, and of Alertmanager's own rules; see `intake.route_explanation` and
`alertmanager_file.routing_tree`.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from services.relay.alertmanager_file.receivers import check_receiver, check_unserved, list_receivers
from services.relay.alertmanager_file.routing_tree import TreeError, TreeVerdict, list_chosen, route_alert
from services.relay.config import RelaySettings
from services.relay.console.alertmanager_trees import AlertmanagerTree, AlertmanagerTrees
from services.relay.intake.route_explanation import RouteExplanation, explain_route
from shared.check import CheckError


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
    """Where an alert goes."""

    receivers: tuple[ReceiverExplanation, ...]
    trees: tuple[TreeExplanation, ...]
    why: tuple[str, ...]

    @property
    def channels(self) -> tuple[str, ...]:
        """All channels that get it."""
        found = (each.explanation.channels for each in self.receivers if each.explanation)
        return tuple(dict.fromkeys(channel for channels in found for channel in channels))


class RouteExplainer:
    """Explains where alerts go.

    Args:
        settings: the configuration.
        trees: of the Alertmanagers.
    """

    def __init__(self, settings: RelaySettings, trees: AlertmanagerTrees) -> None:
        self.trees = trees
        self._settings = settings
        self._routes = settings.intake_routes
        self._heartbeats = settings.heartbeat_matchers

    async def explain(self, labels: Mapping[str, str], receiver: str | None) -> AlertExplanation:
        """Where an alert with these labels goes.

        Args:
            labels: of the alert.
            receiver: by which it comes; None takes those that Alertmanager's tree gives.

        Raises:
            ValueError: no receiver is given, and no tree gives one; with what was expected.
        """
        trees = tuple(_explain_tree(each, labels) for each in await self.trees.read())
        if receiver is None:
            if all(each.verdict is None for each in trees):
                raise ValueError(_describe_missing_receiver(trees))
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
