"""`/routes`: the relay's routes and Alertmanager's above them as trees, and where an alert with pasted labels goes.

`POST /api/routes/explain` gives the same as JSON. Nothing changes.
"""

from collections.abc import Sequence
from enum import StrEnum
from functools import partial
from typing import Annotated, Any, Final, NamedTuple

import msgspec
from pydantic import StringConstraints
from starlette.requests import Request

from services.relay.config import RelaySettings
from services.relay.console.frame import Console, read_fields
from services.relay.intake.routing import RouteSettings
from services.relay.preview.pages import read_part
from services.relay.routes.alertmanager import AlertmanagerTree, RoutingTree, TreeRoute, TreeVerdict
from services.relay.routes.explanation import (
    MAX_LABELS,
    MAX_TEXT,
    AlertExplanation,
    RouteExplainer,
    RouteExplanation,
    encode_explanation,
    format_matcher,
    parse_labels,
)
from shared.http.json_api import Query, RefusedError, parse_query


class _Question(msgspec.Struct):
    labels: dict[str, str]
    receiver: str | None = None


_FRAGMENT: Final = "trees"
_MAX_BODY: Final = 64 * 1024


class _Query(Query):
    labels: Annotated[str, StringConstraints(strip_whitespace=True)] = ""
    receiver: Annotated[str, StringConstraints(strip_whitespace=True, max_length=1000)] = ""


class _State(StrEnum):
    """What becomes of the explained alert at a route."""

    CHOSEN = "takes it"
    MATCHED = "matches"
    FAILED = "does not match"
    SKIPPED = "not reached"


class _Condition(NamedTuple):
    text: str
    has_failed: bool


class _RouteView(NamedTuple):
    number: int
    route: RouteSettings
    conditions: tuple[_Condition, ...]
    state: _State | None
    """None where no alert is explained."""
    receiver_failed: bool = False


class _TreeView(NamedTuple):
    route: TreeRoute
    conditions: tuple[_Condition, ...]
    state: _State | None
    children: tuple["_TreeView", ...]


class _Answer(NamedTuple):
    """What the page shows beside the relay's own routes."""

    trees: tuple[AlertmanagerTree, ...]
    problems: list[str]
    unserved: list[str]
    """Receivers that no route of the relay names."""
    explanation: AlertExplanation | None
    error: str | None


class RoutesPages:
    def __init__(self, explainer: RouteExplainer, settings: RelaySettings) -> None:
        self._explainer = explainer
        self._values: dict[str, Any] = {
            "default_channels": settings.default_channels,
            "watchdogs": settings.watchdogs,
            "has_alertmanager": explainer.trees.is_configured,
            "receivers": sorted({route.receiver for route in settings.routes if route.receiver is not None}),
            "max_text": MAX_TEXT,
            "format_matcher": format_matcher,
            "view_routes": partial(_view_routes, settings.routes),
            "view_tree": _view_tree,
        }

    def add_routes(self, console: Console) -> None:
        console.page("/routes", self._show, "routes.html.j2", title="Routes")
        console.api("/routes/explain", self._explain, methods=["POST"])

    async def _explain(self, request: Request) -> dict[str, Any]:
        question = await read_fields(request, _Question, '{"labels": {NAME: VALUE}}', _MAX_BODY)
        if len(question.labels) > MAX_LABELS:
            raise RefusedError(f"labels: expected at most {MAX_LABELS}")
        return encode_explanation(await self._explainer.explain(question.labels, question.receiver or None))

    async def _show(self, request: Request) -> dict[str, Any]:
        query = parse_query(_Query, request.query_params)
        answer = await read_part(request, _FRAGMENT, self._read(query))
        return {**self._values, "labels": query.labels, "receiver": query.receiver, "answer": answer}

    async def _read(self, query: _Query) -> _Answer:
        trees, problems = await self._explainer.trees.read(), await self._explainer.find_problems()
        unserved = await self._explainer.list_unserved()
        explanation, error = None, None
        if query.labels:
            try:
                explanation = await self._explainer.explain(parse_labels(query.labels), query.receiver or None)
            except RefusedError as problem:
                error = str(problem)
        return _Answer(trees, [each.replace("`", "") for each in problems], unserved, explanation, error)


def _view_routes(routes: Sequence[RouteSettings], explanation: RouteExplanation | None) -> list[_RouteView]:
    """The relay's routes, and what becomes of an alert at each."""
    return [_RouteView(number, route, *_judge_route(route, explanation, number)) for number, route in enumerate(routes)]


def _judge_route(
    route: RouteSettings, explanation: RouteExplanation | None, number: int
) -> tuple[tuple[_Condition, ...], _State | None, bool]:
    """Its conditions, what becomes of the alert, and whether the receiver is another one."""
    if explanation is None:
        return tuple(_Condition(format_matcher(matcher), has_failed=False) for matcher in route.matchers), None, False
    verdict = explanation.verdicts[number]
    is_reached = not explanation.watchdogs and (explanation.route is None or number <= explanation.route)
    conditions = tuple(_Condition(each.condition, is_reached and not each.matches) for each in verdict.conditions)
    if verdict.is_chosen:
        return conditions, _State.CHOSEN, False
    state = _State.FAILED if is_reached else _State.SKIPPED
    return conditions, state, is_reached and not verdict.receiver_matches


def _view_tree(tree: RoutingTree, verdict: TreeVerdict | None) -> _TreeView:
    """Alertmanager's tree, and what becomes of an alert at each route."""
    return _view_plain(tree.root) if verdict is None else _view_verdict(verdict)


def _view_plain(route: TreeRoute) -> _TreeView:
    conditions = tuple(_Condition(each.text, has_failed=False) for each in route.conditions)
    return _TreeView(route, conditions, None, tuple(map(_view_plain, route.routes)))


def _view_verdict(verdict: TreeVerdict) -> _TreeView:
    conditions = tuple(_Condition(each.text, each.text in verdict.failed) for each in verdict.route.conditions)
    if verdict.is_chosen:
        state = _State.CHOSEN
    elif verdict.matches:
        state = _State.MATCHED
    else:
        state = _State.FAILED if verdict.is_reached else _State.SKIPPED
    return _TreeView(verdict.route, conditions, state, tuple(map(_view_verdict, verdict.children)))
