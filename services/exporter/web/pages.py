"""`GET /api/history`: the failures of keys for other programs, such as the relay's timeline of an incident.

As `/history`, it knows what happened since the exporter started; `since` says when that was.

The pages of the board, the endpoint that its script polls, and its static files. This module renders all HTML.

A board is built on the event loop, where the history lives; its HTML is rendered in a thread.
"""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from functools import cached_property
from heapq import nlargest
from pathlib import Path
from secrets import token_hex
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response

from services.exporter.history import MAX_FAILURE_SPANS, FailureSpan, History, TargetHistory, compute_quantile
from services.exporter.web import board as latency_plot
from services.exporter.web import findings
from services.exporter.web.board import (
    MAX_LISTED_VERSIONS,
    Board,
    BoardCursor,
    BoardQuery,
    Card,
    CardCache,
    MaxAges,
    build_board,
    build_card,
    format_data_keys,
    get_last_rotation_time,
    get_protection_level,
    get_version_label,
    label_versions,
    sort_canaries,
    sort_versions,
)
from services.exporter.web.findings import STATUS_LABELS, HealthStatus
from shared.config.server_settings import Role
from shared.http.access import ProtectedRoute, RouteRequirements
from shared.http.json_api import build_error_response, check_names, format_json_time
from shared.web.pages import SHARED_ASSETS, StaticFiles, add_security_headers, create_templates

if TYPE_CHECKING:
    from jinja2 import Environment

MAX_FAILURES: Final = 200
"""Failures in one answer; the newest."""
_FILTERS: Final = ("target", "service")


def build_route(history: History) -> ProtectedRoute:
    """The endpoint; `history` is what it shows."""

    async def list_failures(request: Request) -> Response:
        chosen = request.query_params
        try:
            check_names(chosen, _FILTERS)
        except ValueError as error:
            return build_error_response(400, str(error))
        target = chosen.get("target")
        if target is not None and target not in history.targets:
            return build_error_response(404, "there is no such target; without the filter all are listed")
        return JSONResponse(_build_answer(history, target, chosen.get("service")))

    return ProtectedRoute("/api/history", list_failures, RouteRequirements(Role.VIEWER))


def _build_answer(history: History, target: str | None, service: str | None) -> dict[str, Any]:
    records = [
        record
        for name, record in history.targets.items()
        if target in (None, name) and service in (None, record.service)
    ]
    failures = [(record, span) for record in records for span in record.failure_spans]
    newest = sorted(failures, key=lambda failure: failure[1].last_at, reverse=True)[:MAX_FAILURES]
    return {
        "since": format_json_time(history.started_at),
        "failures": [_encode_failure(record, span) for record, span in newest],
        "left_out": len(failures) - len(newest),
    }


def _encode_failure(record: TargetHistory, span: FailureSpan) -> dict[str, Any]:
    # The last span of a target goes on while its last round trip failed.
    is_current = bool(record.last_result and record.last_result.failed_call) and span is record.failure_spans[-1]
    return {
        "target": record.target,
        "service": record.service,
        **asdict(span),
        "first_at": format_json_time(span.first_at),
        "last_at": format_json_time(span.last_at),
        "is_current": is_current,
    }


_ASSET_FOLDER: Final = Path(__file__).parent / "assets"


class BoardPages:
    """The routes of the board.

    Args:
        history: what is shown.
        result_max_age: seconds without news after which the last ones are said to be old.
        success_max_age: seconds after which a round trip no longer counts as a success.
        runbook_url: the URL of docs/KMS_OPERATIONS.md inside the organisation; without it, sections are named only.
        clock: Unix seconds.
    """

    def __init__(
        self,
        history: History,
        *,
        result_max_age: float,
        success_max_age: float = math.inf,
        runbook_url: str | None = None,
        page_links: Mapping[str, str] = MappingProxyType({}),
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._history = history
        self._max_ages = MaxAges(result_max_age, success_max_age)
        self._cards = CardCache(self._max_ages)
        self._clock = clock
        self._process_id = token_hex(8)  # version numbers of an earlier process's history have no meaning in this one
        self._files = StaticFiles(SHARED_ASSETS, _ASSET_FOLDER)
        self._runbook_url = runbook_url
        self._page_links = page_links

    def build_routes(self) -> list[ProtectedRoute]:
        """The page at `/` and what it needs."""
        page, part = (
            RouteRequirements(Role.VIEWER, challenges_browser=True, allows_cross_site_link=True),
            RouteRequirements(Role.VIEWER, challenges_browser=True),
        )
        return [
            ProtectedRoute("/", add_security_headers(self._show_board), page),
            ProtectedRoute("/history", add_security_headers(self._show_history), page),
            ProtectedRoute("/api/board", add_security_headers(self._get_board_changes), part),
            ProtectedRoute("/board/{name}", self._files.serve, part),
        ]

    async def _show_board(self, request: Request) -> Response:
        query = BoardQuery.parse(request.query_params)
        board = build_board(self._history, self._cards, query, self._clock())
        return HTMLResponse(await run_in_threadpool(self._render_board, board, query))

    async def _get_board_changes(self, request: Request) -> Response:
        """The HTML of cards that changed since a page's last request, by the id of the card."""
        query = BoardQuery.parse(request.query_params)
        last = self._parse_cursor(request.query_params.get("cursor", ""))
        board = build_board(self._history, self._cards, query, self._clock(), last)
        return JSONResponse(await run_in_threadpool(self._render_changes, board, query))

    async def _show_history(self, request: Request) -> Response:
        name = request.query_params.get("target")
        if not name:
            return HTMLResponse(await run_in_threadpool(self._render_history, None, self._list_latest_failures()))
        record = self._history.targets.get(name)
        if record is None:
            return await self.show_missing(request, "There is no such target.")
        now = self._clock()
        record = record.copy(now)
        card = build_card(record, now, self._max_ages)
        rows = [(record, span) for span in reversed(record.failure_spans)]
        return HTMLResponse(await run_in_threadpool(self._render_history, card, rows))

    async def show_missing(self, _request: Request, what: str = "There is no such page.") -> Response:
        """A page that leads back to the board."""
        page = await run_in_threadpool(self._templates.get_template("missing.html.j2").render, what=what)
        return HTMLResponse(page, status_code=404)

    def _list_latest_failures(self) -> list[tuple[TargetHistory, FailureSpan]]:
        """The last failures of all keys, the newest first, each with the key it is of; the failures are copies."""
        found = [(record, span) for record in self._history.targets.values() for span in record.failure_spans]
        latest = nlargest(MAX_FAILURE_SPANS, found, key=lambda failure: failure[1].last_at)
        return [(record, replace(span)) for record, span in latest]

    def _render_history(self, card: Card | None, rows: Sequence[tuple[TargetHistory, FailureSpan]]) -> str:
        return self._templates.get_template("history.html.j2").render(card=card, rows=rows, now=self._clock())

    @cached_property
    def _templates(self) -> "Environment":
        """At the first page: until somebody looks, nothing of it is in memory."""
        return create_templates(
            [_ASSET_FOLDER],
            {"quantile": compute_quantile},
            {
                "runbook_url": self._runbook_url,
                "page_links": self._page_links,
                "RUNBOOK_FILE": findings.RUNBOOK_FILE,
                "HealthStatus": HealthStatus,
                "STATUS_LABELS": STATUS_LABELS,
                "MAX_LISTED_VERSIONS": MAX_LISTED_VERSIONS,
                "MAX_FAILURE_SPANS": MAX_FAILURE_SPANS,
                "latency_plot": latency_plot,
                "get_protection_level": get_protection_level,
                "sort_versions": sort_versions,
                "get_version_label": get_version_label,
                "label_versions": label_versions,
                "sort_canaries": sort_canaries,
                "format_data_keys": format_data_keys,
                "get_last_rotation_time": get_last_rotation_time,
                "format_versions": findings.format_versions,
                "describe_connectivity": findings.describe_connectivity,
                "advise_on_failure": findings.advise_on_failure,
            },
        )

    def _render_board(self, board: Board, query: BoardQuery) -> str:
        return self._templates.get_template("board.html.j2").render(
            board=board, query=query, cursor=self._format_cursor(board)
        )

    def _render_changes(self, board: Board, query: BoardQuery) -> dict[str, object]:
        parts: Any = self._templates.get_template("parts.html.j2").module  # its macros
        return {
            "cursor": self._format_cursor(board),
            "overall": str(parts.overall(board)),
            "title": str(parts.title(board)),
            "sections": {
                section.kind: {
                    "order": section.card_ids,
                    "total": section.total,
                    "foot": str(parts.foot(section, query)),
                }
                for section in board.sections
            },
            "cards": {
                card.id: str(parts.show_card(card, board.created_at))
                for section in board.sections
                for card in section.changed_cards
            },
        }

    def _format_cursor(self, board: Board) -> str:
        return f"{self._process_id}.{board.history_version}.{board.created_at!r}"

    def _parse_cursor(self, cursor: str) -> BoardCursor | None:
        """The view that a cursor stands for; None if it is not from this process."""
        boot, _, rest = cursor.partition(".")
        version, _, at = rest.partition(".")
        try:
            return BoardCursor(int(version), float(at)) if boot == self._process_id else None
        except ValueError:
            return None
