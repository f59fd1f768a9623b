"""The routing trees of the configured Alertmanagers, and which of its receivers an alert reaches.

An alert goes down the tree: into the first child that matches, and into the next ones as long as those say `continue`.
A route without a child that matches takes it. https://prometheus.io/docs/alerting/latest/configuration/#route,
https://github.com/prometheus/alertmanager/blob/main/dispatch/route.go, Route.Match. A tree is read from the API once a
minute at most; only routes and the kinds of receivers are kept, and Alertmanager masks secrets and URLs.
"""

import asyncio
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final, NamedTuple

import yaml
from pydantic import ValidationError

from services.relay.apis import AlertmanagerClient, ApiError
from services.relay.config import AlertmanagerSettings
from services.relay.console.frame import SharedRead
from services.relay.intake.routing import Matcher, RouteSettings, parse_matcher
from services.relay.routes.merge import AlertmanagerRoute, iterate_conditions
from shared.check import CheckError
from shared.config.yaml_file import parse_plain_yaml
from shared.process.concurrency import run_large

MAX_BYTES: Final = 1024 * 1024
"""Of a configuration that is read."""
MAX_ROUTES: Final = 2000
_MAX_DEPTH: Final = 50
_CREDENTIALS: Final = {"authorization", "bearer_token", "bearer_token_file", "oauth2", "http_headers"}


@dataclass(frozen=True, slots=True)
class Condition:
    text: str
    matcher: Matcher | None
    """None if it cannot be parsed here: it may match, or not."""


@dataclass(frozen=True, slots=True)
class TreeRoute:
    path: str
    """`route`, `route.routes[0]`, and so on."""
    receiver: str
    """Its own, or that of the route above it."""
    conditions: tuple[Condition, ...]
    passes_on: bool
    """Whether an alert that matches goes to the routes after this one, too."""
    intervals: tuple[str, ...]
    """Time intervals that mute it, or in which alone it is active."""
    routes: tuple["TreeRoute", ...]

    def walk(self) -> Iterator["TreeRoute"]:
        """This route and those below it."""
        yield self
        for child in self.routes:
            yield from child.walk()


class Inhibition(NamedTuple):
    """A rule by which an alert is not sent while another one fires."""

    sources: tuple[Condition, ...]
    """Of the other alert."""
    targets: tuple[Condition, ...]
    equal: tuple[str, ...]
    """The labels whose values both have."""


@dataclass(frozen=True, slots=True)
class RoutingTree:
    root: TreeRoute
    receivers: Mapping[str, Sequence[str]]
    """What each receiver sends to: `webhook`, `slack`, …; empty for one that sends nothing."""
    token_senders: Sequence[str]
    """Receivers with a webhook that has credentials: the relay refuses every other, so those lead elsewhere."""
    inhibitions: tuple[Inhibition, ...] = ()

    @property
    def routed(self) -> set[str]:
        """The receivers that a route leads to."""
        return {route.receiver for route in self.root.walk()}

    @property
    def leading_here(self) -> list[str]:
        """The receivers that a route leads to, and that may send to the relay."""
        routed = self.routed
        return [name for name in self.token_senders if name in routed]


class RouteState(StrEnum):
    """What becomes of an alert at a route."""

    CHOSEN = "takes it"
    """Its receiver gets the alert."""
    MATCHED = "matches"
    FAILED = "does not match"
    SKIPPED = "not reached"
    """A route before it has kept the alert."""


class TreeVerdict(NamedTuple):
    """What becomes of an alert at a route of Alertmanager; None where there is no alert."""

    route: TreeRoute
    state: RouteState | None
    failed: tuple[str, ...]
    """The conditions that failed."""
    children: tuple["TreeVerdict", ...]

    @property
    def matches(self) -> bool:
        return self.state in {RouteState.CHOSEN, RouteState.MATCHED}


class TreeError(Exception):
    """A configuration, or where an alert goes by it, that cannot be shown; a sentence without its content."""


def parse_tree(configuration: str) -> RoutingTree:
    """The tree of a configuration in YAML. Raises TreeError."""
    if len(configuration) > MAX_BYTES:
        raise TreeError(f"its configuration has over {MAX_BYTES} characters")
    try:
        document = parse_plain_yaml(configuration)
        receivers = {str(each["name"]): _list_kinds(each) for each in document["receivers"]}
        token_senders = [str(each["name"]) for each in document["receivers"] if _sends_token(each)]
        count = iter(range(MAX_ROUTES))
        root = _build_route(document["route"], "route", "", count, 0)
        inhibitions = tuple(map(_build_inhibition, document.get("inhibit_rules") or ()))
    except (yaml.YAMLError, ValidationError, TypeError, KeyError, AttributeError, ValueError, RecursionError):
        raise TreeError("its configuration cannot be read as that of an Alertmanager") from None
    return RoutingTree(root, receivers, token_senders, inhibitions)


def _list_kinds(receiver: Mapping[str, Any]) -> Sequence[str]:
    return [key.removesuffix("_configs") for key, value in receiver.items() if key.endswith("_configs") and value]


def _sends_token(receiver: Mapping[str, Any]) -> bool:
    """Whether a webhook of it has credentials. Alertmanager shows its global ones there, too."""
    webhooks = receiver.get("webhook_configs") or ()
    return any(_CREDENTIALS & (each.get("http_config") or {}).keys() for each in webhooks)


def _build_route(document: Mapping[str, Any], path: str, receiver: str, count: Iterator[int], depth: int) -> TreeRoute:
    """A route and those below it; `count` ends a tree with too many routes."""
    if next(count, None) is None or depth > _MAX_DEPTH:
        raise TreeError(f"it has over {MAX_ROUTES} routes, or more than {_MAX_DEPTH} below each other")
    own = AlertmanagerRoute.model_validate({key: value for key, value in document.items() if key != "routes"})
    name = own.receiver or receiver
    intervals = [*(document.get("mute_time_intervals") or ()), *(document.get("active_time_intervals") or ())]
    return TreeRoute(
        path,
        name,
        tuple(_build_condition(text) for text in iterate_conditions(own)),
        own.passes_on,
        tuple(map(str, intervals)),
        tuple(
            _build_route(child, f"{path}.routes[{index}]", name, count, depth + 1)
            for index, child in enumerate(document.get("routes") or ())
        ),
    )


def _build_inhibition(document: Mapping[str, Any]) -> Inhibition:
    sides = []
    for side in ("source", "target"):
        keys = {"matchers": f"{side}_matchers", "match": f"{side}_match", "match_re": f"{side}_match_re"}
        route = AlertmanagerRoute.model_validate({key: document.get(name) or {} for key, name in keys.items()})
        sides.append(tuple(map(_build_condition, iterate_conditions(route))))
    sources, targets = sides
    return Inhibition(sources, targets, tuple(map(str, document.get("equal") or ())))


def _build_condition(text: str) -> Condition:
    try:
        return Condition(text.strip(), parse_matcher(text))
    except ValueError:
        return Condition(text.strip(), None)


def route_alert(tree: RoutingTree, labels: Mapping[str, str]) -> TreeVerdict:
    """What becomes of an alert at each route. Raises TreeError if a condition decides that cannot be parsed."""
    return _judge(tree.root, labels, is_reached=True)


def find_inhibiting(
    tree: RoutingTree, labels: Mapping[str, str], others: Iterable[Mapping[str, str]]
) -> Mapping[str, str] | None:
    """The labels of the alert because of which another one is not sent; None if there is none that is known.

    https://prometheus.io/docs/alerting/latest/configuration/#inhibit_rule
    """

    def matches(conditions: Iterable[Condition], alert: Mapping[str, str]) -> bool:
        return all(each.matcher is not None and each.matcher.matches(alert) for each in conditions)

    rules = [rule for rule in tree.inhibitions if matches(rule.targets, labels)]
    for other in others:
        for rule in rules:
            same = all(other.get(name, "") == labels.get(name, "") for name in rule.equal)
            # What matches both sides is not inhibited by what does, too, itself included.
            both = matches(rule.sources, labels) and matches(rule.targets, other)
            if same and not both and matches(rule.sources, other):
                return other
    return None


def show_tree(route: TreeRoute) -> TreeVerdict:
    """A route and those below it, without an alert."""
    return TreeVerdict(route, None, (), tuple(map(show_tree, route.routes)))


def list_chosen(verdict: TreeVerdict) -> list[TreeRoute]:
    """The routes whose receivers get the alert, in order; a receiver of several routes gets it several times."""
    below = [route for child in verdict.children for route in list_chosen(child)]
    return [verdict.route, *below] if verdict.state is RouteState.CHOSEN else below


def _judge(route: TreeRoute, labels: Mapping[str, str], *, is_reached: bool) -> TreeVerdict:
    judged = route.conditions if is_reached else ()
    failed = [each.text for each in judged if each.matcher is not None and not each.matcher.matches(labels)]
    if not failed and any(each.matcher is None for each in judged):
        raise TreeError(f"{route.path} has a condition that cannot be read here")
    goes_on = is_reached and not failed
    children: list[TreeVerdict] = []
    for child in route.routes:
        children.append(_judge(child, labels, is_reached=goes_on))
        goes_on = goes_on and (child.passes_on or not children[-1].matches)
    if not is_reached:
        state = RouteState.SKIPPED
    elif failed:
        state = RouteState.FAILED
    else:
        state = RouteState.MATCHED if any(child.matches for child in children) else RouteState.CHOSEN
    return TreeVerdict(route, state, tuple(failed), tuple(children))


def check_receiver(name: str, tree: RoutingTree) -> str:
    """Check that Alertmanager sends here what a route of the relay expects. Raises CheckError."""
    if name not in tree.receivers:
        raise CheckError(
            f"Alertmanager has no receiver {name}; it has "
            f"{', '.join(tree.token_senders) or 'none with a webhook that sends a token'}",
            "correct the name, here or there, or add it",
        )
    if name not in tree.token_senders:
        raise CheckError(
            f"Alertmanager's receiver {name} has no webhook that sends a token",
            "add `webhook_configs` with the relay's URL and token",
        )
    if name not in tree.routed:
        raise CheckError(
            f"no route of Alertmanager leads to its receiver {name}", "add a route there, or remove this one"
        )
    return f"Alertmanager's receiver {name} has a route and a webhook"


def find_unserved(routes: Iterable[RouteSettings], tree: RoutingTree) -> list[str]:
    """The receivers of Alertmanager that lead here, and that no route of the relay names."""
    # A route of no receiver serves each of them, unless its matchers leave alerts to `default_channels`.
    served = {route.receiver for route in routes if route.receiver is not None or not route.matchers}
    return [] if None in served else [name for name in tree.leading_here if name not in served]


def check_leading_here(tree: RoutingTree) -> list[str]:
    """The receivers of Alertmanager that lead here. Raises CheckError if none does."""
    if not tree.leading_here:
        raise CheckError(
            "no route leads to a receiver with a webhook that sends a token, so the relay gets nothing",
            "add a receiver with `webhook_configs`, the relay's URL and token, and a route to it",
        )
    return tree.leading_here


_MAX_AGE: Final = 60.0


class AlertmanagerTree(NamedTuple):
    """The tree of one Alertmanager, or of several with the same."""

    urls: tuple[str, ...]
    tree: RoutingTree | None
    error: str | None
    """Why it cannot be shown; None where it can."""


class AlertmanagerTrees:
    def __init__(self, settings: AlertmanagerSettings) -> None:
        self._settings = settings
        self._shared = SharedRead(self._read_all, _MAX_AGE)

    @property
    def is_configured(self) -> bool:
        return bool(self._settings.urls)

    async def read(self) -> tuple[AlertmanagerTree, ...]:
        """Every different tree, and each Alertmanager whose tree cannot be shown."""
        return await self._shared.get()

    async def _read_all(self) -> tuple[AlertmanagerTree, ...]:
        read = await asyncio.gather(*map(self._read_one, self._settings.urls))
        merged: list[AlertmanagerTree] = []
        for each in read:
            same = next((n for n, other in enumerate(merged) if each.tree and other.tree == each.tree), None)
            if same is None:
                merged.append(each)
            else:
                merged[same] = merged[same]._replace(urls=merged[same].urls + each.urls)
        return tuple(merged)

    async def _read_one(self, url: str) -> AlertmanagerTree:
        settings = self._settings
        client = AlertmanagerClient(url, settings.token_file, settings)
        try:
            configuration = await client.read_configuration()
            return AlertmanagerTree((url,), await run_large(lambda: parse_tree(configuration)), None)
        except (ApiError, TreeError) as error:
            return AlertmanagerTree((url,), None, str(error))
        finally:
            await client.close()
