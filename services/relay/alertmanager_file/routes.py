"""Where keypulse's routes belong among those of somebody else's Alertmanager file, and which of those collide.

Of an alert only its labels `alertname` and `severity` are certain. A condition on another label may be fulfilled.
https://prometheus.io/docs/alerting/latest/configuration/#route
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Final

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from services.relay.intake.routing import Matcher, parse_matcher

Labels = Mapping[str, str]
_LISTED: Final = re.compile(r'(?:"(?:[^"\\]|\\.)*"|[^",])+', re.DOTALL)
"""One matcher among several, which are separated by commas; a comma in quotes separates nothing."""
_NAME: Final = re.compile(r"\w+")
_SOMETHING_ELSE: Final = "SomethingElse"
"""Stands for every alert that is not keypulse's."""


class AlertmanagerRoute(BaseModel):
    """A route, as far as it decides where an alert goes."""

    model_config = ConfigDict(extra="ignore", frozen=True, coerce_numbers_to_str=True)

    receiver: str = ""
    match: dict[str, str] = {}
    match_re: dict[str, str] = {}
    matchers: Annotated[tuple[str, ...], BeforeValidator(lambda value: value or ())] = ()
    passes_on: bool = Field(default=False, alias="continue")
    """Whether an alert that matches goes to the routes after this one, too."""
    routes: Annotated[tuple["AlertmanagerRoute", ...], BeforeValidator(lambda value: value or ())] = ()


@dataclass(frozen=True, slots=True)
class RoutePlan:
    """What is missing, and where it belongs."""

    missing: Sequence[int]
    """The numbers of keypulse's routes that are not there."""
    index: int
    """Before which route they belong."""
    collisions: Sequence[str]
    """A sentence for each route that keypulse's cannot stand beside."""


def plan_routes(
    theirs: Sequence[AlertmanagerRoute],
    ours: Sequence[AlertmanagerRoute],
    found: Mapping[int, int],
    alerts: Sequence[Labels],
) -> RoutePlan:
    """Where keypulse's routes belong: before the first route of others that keeps one of its alerts.

    Args:
        theirs: all routes of the file, keypulse's included.
        ours: keypulse's.
        found: the number of each of keypulse's routes that is there already → its index.
        alerts: the labels of keypulse's alerts.
    """
    others = {index: route for index, route in enumerate(theirs) if index not in found.values()}
    keeping = (index for index, route in others.items() if find_stopped(route, alerts))
    first = min([next(keeping, len(theirs)), *found.values()])
    collisions: dict[int, str] = {}
    for number, own_index in found.items():
        own = [labels for labels in alerts if may_match(ours[number], labels)]
        for index in (index for index in others if index < own_index):
            if name := find_stopped(others[index], own):
                collisions[index] = (
                    f"route.routes[{index}] keeps {name} from keypulse's route.routes[{own_index}]: "
                    "move it below, or give it `continue: true`"
                )
    stopped = [labels for labels in alerts if any(find_stopped(route, [labels]) for route in ours)]
    for index in (index for index in others if index >= first):
        named = [
            labels for labels in _list_named(others[index]) if any(find_stopped(route, [labels]) for route in ours)
        ]
        if name := find_named(others[index], [*stopped, *named]):
            collisions.setdefault(
                index,
                f"route.routes[{index}] takes {name} by its name, and would get it no longer: "
                "remove it, or move it to the top with `continue: true`",
            )
    missing = [number for number in range(len(ours)) if number not in found]
    return RoutePlan(missing, first, list(collisions.values()))


def may_match(route: AlertmanagerRoute, labels: Labels) -> bool:
    """Whether a route may match an alert that has these labels, and others."""
    return all(matcher.label not in labels or matcher.matches(labels) for matcher in _parse_matchers(route))


def find_stopped(route: AlertmanagerRoute, alerts: Iterable[Labels]) -> str | None:
    """The name of an alert that may not get past a route; None if all do."""
    if route.passes_on:
        return None
    return next((labels["alertname"] for labels in alerts if may_match(route, labels)), None)


def find_named(route: AlertmanagerRoute, alerts: Sequence[Labels], label: str = "alertname") -> str | None:
    """The name of an alert that a route, or one below it, takes by its name or by that label; None for none."""
    for each in _walk(route):
        by_label = [matcher for matcher in _parse_matchers(each) if matcher.label == label]
        if not all(matcher.matches({label: _SOMETHING_ELSE}) for matcher in by_label):
            for labels in alerts:
                if may_match(each, labels):
                    return labels["alertname"]
    return None


def _list_named(route: AlertmanagerRoute) -> list[Labels]:
    """The alerts that a route, or one below it, names; of a pattern what stands in it as text.

    An alert of somebody else whose name begins as keypulse's do is in none of keypulse's rules.
    """
    by_name = (matcher for each in _walk(route) for matcher in _parse_matchers(each) if matcher.label == "alertname")
    return [{"alertname": name} for matcher in by_name for name in _NAME.findall(matcher.value)]


def _walk(route: AlertmanagerRoute) -> Iterator[AlertmanagerRoute]:
    yield route
    for child in route.routes:
        yield from _walk(child)


def _parse_matchers(route: AlertmanagerRoute) -> Iterator[Matcher]:
    """The conditions of a route, without those that cannot be parsed: they may be fulfilled."""
    for text in iterate_conditions(route):
        try:
            yield parse_matcher(text)
        except ValueError:
            continue


def iterate_conditions(route: AlertmanagerRoute) -> Iterator[str]:
    """The conditions of a route in all three spellings, each as a matcher's text."""
    for label, value in route.match.items():
        yield f"{label}={_quote(value)}"
    for label, value in route.match_re.items():
        yield f"{label}=~{_quote(value)}"
    for listed in route.matchers:
        yield from split_matchers(listed)


def split_matchers(text: str) -> list[str]:
    """`{a="b", c="d"}`, with or without its braces → the text of each matcher."""
    return _LISTED.findall(text.strip().removeprefix("{").removesuffix("}"))


def _quote(value: str) -> str:
    escaped = value.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
    return f'"{escaped}"'
