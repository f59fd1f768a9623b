"""`POST /api/routes/explain`: which route and channels an alert takes, and why. It changes nothing.

`/routes`: the relay's routes and Alertmanager's above them as trees, and where an alert with pasted labels goes.
"""

import asyncio
from collections.abc import Sequence
from enum import StrEnum
from functools import partial
from typing import Any, Final, NamedTuple

import msgspec
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from services.relay.config import RelaySettings
from services.relay.console.frame import PageRenderer
from services.relay.intake.routing import Route
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
from shared.config.server_settings import Role
from shared.http.access import ProtectedRoute, RouteRequirements
from shared.http.json_api import build_error_response
from shared.http.limits import BodyTooLargeError, read_body
from shared.http.untrusted_json import UntrustedJsonError, decode_json

_MAX_BODY: Final = 64 * 1024
_BODY_SECONDS: Final = 10.0


class _Question(msgspec.Struct):
    labels: dict[str, str]
    receiver: str | None = None


_QUESTION: Final = msgspec.json.Decoder(_Question)


class RoutesEndpoint:
    """Explains routes.

    Args:
        explainer: knows the routes.
    """

    def __init__(self, explainer: RouteExplainer) -> None:
        self._explainer = explainer

    def build_routes(self) -> list[ProtectedRoute]:
        """The route of the endpoint."""
        return [ProtectedRoute("/api/routes/explain", self.explain, RouteRequirements(Role.VIEWER), ["POST"])]

    async def explain(self, request: Request) -> Response:
        """Where the alert of the body goes."""
        try:
            async with asyncio.timeout(_BODY_SECONDS):
                question = decode_json(_QUESTION, await read_body(request.stream(), _MAX_BODY))
        except BodyTooLargeError:
            return build_error_response(413, f"expected at most {_MAX_BODY} bytes")
        except TimeoutError:
            return build_error_response(408, f"the body did not arrive within {_BODY_SECONDS:g} s")
        except UntrustedJsonError as error:
            return build_error_response(400, str(error))
        if len(question.labels) > MAX_LABELS:
            return build_error_response(400, f"labels: expected at most {MAX_LABELS}")
        try:
            explanation = await self._explainer.explain(question.labels, question.receiver or None)
        except ValueError as error:
            return build_error_response(400, str(error))
        return JSONResponse(encode_explanation(explanation))


_FRAGMENT: Final = "trees"
_MAX_RECEIVER: Final = 1000
"""Characters."""


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
    """A route of the relay."""

    number: int
    route: Route
    conditions: tuple[_Condition, ...]
    state: _State | None
    """None where no alert is explained."""
    receiver_failed: bool = False


class _TreeView(NamedTuple):
    """A route of Alertmanager's tree."""

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
    """The page of routes.

    Args:
        explainer: knows where alerts go.
        settings: the configuration.
        renderer: renders the template.
    """

    def __init__(self, explainer: RouteExplainer, settings: RelaySettings, renderer: PageRenderer) -> None:
        self._explainer = explainer
        self._renderer = renderer
        self._values: dict[str, Any] = {
            "default_channels": settings.default_channels,
            "watchdogs": settings.watchdogs,
            "has_alertmanager": explainer.trees.is_configured,
            "receivers": sorted({route.receiver for route in settings.routes if route.receiver is not None}),
            "max_text": MAX_TEXT,
            "format_matcher": format_matcher,
            "view_routes": partial(_view_routes, settings.intake_routes),
            "view_tree": _view_tree,
        }

    def build_routes(self) -> list[ProtectedRoute]:
        """The route of the page."""
        return [self._renderer.build_page_route("/routes", self._show)]

    async def _show(self, request: Request) -> Response:
        labels, receiver = (request.query_params.get(name, "").strip() for name in ("labels", "receiver"))
        answer = await read_part(request, _FRAGMENT, self._read(labels, receiver[:_MAX_RECEIVER]))
        values = {**self._values, "labels": labels, "receiver": receiver, "answer": answer}
        return await self._renderer.render(request, "routes.html.j2", values)

    async def _read(self, labels: str, receiver: str) -> _Answer:
        trees, problems = await self._explainer.trees.read(), await self._explainer.find_problems()
        unserved = await self._explainer.list_unserved()
        explanation, error = None, None
        if labels:
            try:
                explanation = await self._explainer.explain(parse_labels(labels), receiver or None)
            except ValueError as problem:
                error = str(problem)
        return _Answer(trees, [each.replace("`", "") for each in problems], unserved, explanation, error)


def _view_routes(routes: Sequence[Route], explanation: RouteExplanation | None) -> list[_RouteView]:
    """The relay's routes, and what becomes of an alert at each."""
    return [_RouteView(number, route, *_judge_route(route, explanation, number)) for number, route in enumerate(routes)]


def _judge_route(
    route: Route, explanation: RouteExplanation | None, number: int
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
