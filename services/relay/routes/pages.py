"""`/routes`: the relay's routes and Alertmanager's above them as trees, and where an alert with pasted labels goes.

`POST /api/routes/explain` gives the same as JSON. Nothing changes.
"""

from typing import Annotated, Any, Final, NamedTuple

import msgspec
from pydantic import StringConstraints
from starlette.requests import Request

from services.relay.config import RelaySettings
from services.relay.console.frame import Console, read_fields
from services.relay.preview.pages import read_part
from services.relay.routes.alertmanager import AlertmanagerTree, show_tree
from services.relay.routes.explanation import (
    MAX_LABELS,
    MAX_TEXT,
    AlertExplanation,
    RouteExplainer,
    encode_explanation,
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
            "routes": settings.routes,
            "show_tree": show_tree,
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
