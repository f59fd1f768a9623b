"""The pages of the board, the endpoint that its script polls, its static files, and `GET /api/history`.

Their addresses are relative, so a proxy may have them below any path.

A board is built on the event loop, where the history lives; its HTML is rendered in a thread. `/api/history` has the
failures of keys for other programs, such as the relay's timeline of an incident. As `/history`, it knows what happened
since the exporter started; `since` says when that was.
"""

import math
import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
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
from services.exporter.path_proof import PathProof, find_proof
from services.exporter.web import board as board_module
from services.exporter.web import findings
from services.exporter.web.board import Board, BoardQuery, Card, CardCache, MaxAges, build_board, build_card
from shared.config.server_settings import Role
from shared.http.access import ProtectedRoute, RouteRequirements
from shared.http.json_api import Query, RefusedError, build_error_response, format_json_time, parse_query
from shared.web.pages import SHARED_ASSETS, StaticFiles, add_security_headers, create_templates

if TYPE_CHECKING:
    from jinja2 import Environment

MAX_FAILURES: Final = 200
"""Failures in one answer; the newest."""


class _HistoryQuery(Query):
    target: str | None = None
    service: str | None = None


def _list_failures(records: Iterable[TargetHistory], limit: int) -> list[tuple[TargetHistory, FailureSpan]]:
    """The last failures, the newest first, each with its key."""
    found = [(record, span) for record in records for span in record.failure_spans]
    return nlargest(limit, found, key=lambda failure: failure[1].last_at)


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
_VERSION: Final = re.compile("[0-9]{1,15}")


class BoardPages:
    """The routes of the board.

    Args:
        history: what is shown.
        result_max_age: seconds without news after which the last ones are said to be old.
        success_max_age: seconds after which a round trip no longer counts as a success.
        runbook_url: the URL of docs/KMS_OPERATIONS.md inside the organisation; without it, sections are named only.
        proof_every: seconds from one proof of the path to the next; 0 for none.
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
        proof_every: float = 0.0,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._history = history
        self._max_ages = MaxAges(result_max_age, success_max_age)
        self._cards = CardCache(self._max_ages)
        self._clock = clock
        self._boot_id = token_hex(8)  # versions of the cards before a restart or a reload have no meaning now
        self._files = StaticFiles(SHARED_ASSETS, _ASSET_FOLDER)
        self._runbook_url = runbook_url
        self._page_links = page_links
        self._proof_every = proof_every

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
            ProtectedRoute("/api/history", self._get_failures, RouteRequirements(Role.VIEWER)),
            ProtectedRoute("/board/{name}", self._files.serve, part),
        ]

    async def _show_board(self, request: Request) -> Response:
        query = BoardQuery.parse(request.query_params)
        board = build_board(self._history, self._cards, query, self._clock())
        return HTMLResponse(await run_in_threadpool(self._render_board, board, query))

    async def _get_board_changes(self, request: Request) -> Response:
        """The HTML of cards that changed since a page's last request, by the id of the card."""
        query = BoardQuery.parse(request.query_params)
        boot_id, _, version = request.query_params.get("cursor", "").partition(".")
        last_version = int(version) if boot_id == self._boot_id and _VERSION.fullmatch(version) else 0
        board = build_board(self._history, self._cards, query, self._clock(), last_version)
        return JSONResponse(await run_in_threadpool(self._render_changes, board, query))

    async def _get_failures(self, request: Request) -> Response:
        history = self._history
        try:
            query = parse_query(_HistoryQuery, request.query_params)
        except RefusedError as error:
            return build_error_response(error.status, str(error))
        if query.target is not None and query.target not in history.targets:
            return build_error_response(404, "there is no such target; without the filter all are listed")
        records = [
            record
            for name, record in history.targets.items()
            if query.target in (None, name) and query.service in (None, record.service)
        ]
        newest = _list_failures(records, MAX_FAILURES)
        return JSONResponse(
            {
                "since": format_json_time(history.started_at),
                "failures": [_encode_failure(record, span) for record, span in newest],
                "left_out": sum(len(record.failure_spans) for record in records) - len(newest),
            }
        )

    async def _show_history(self, request: Request) -> Response:
        name = request.query_params.get("target")
        if not name:
            latest = _list_failures(self._history.targets.values(), MAX_FAILURE_SPANS)
            copies = [(record, replace(span)) for record, span in latest]
            return HTMLResponse(await run_in_threadpool(self._render_history, None, copies))
        record = self._history.targets.get(name)
        if record is None:
            return await self.show_missing(request, "There is no such target.")
        now = self._clock()
        record = record.copy(now)
        card = build_card(record, now, self._max_ages)
        rows = [(record, span) for span in reversed(record.failure_spans)]
        return HTMLResponse(await run_in_threadpool(self._render_history, card, rows))

    async def show_missing(self, request: Request, what: str = "There is no such page.") -> Response:
        """A page that leads back to the board, from whatever depth."""
        root = "../" * (request.scope["raw_path"].count(b"/") - 1) or "./"
        page = await run_in_threadpool(self._templates.get_template("missing.html.j2").render, what=what, root=root)
        return HTMLResponse(page, status_code=404)

    def _render_history(self, card: Card | None, rows: Sequence[tuple[TargetHistory, FailureSpan]]) -> str:
        return self._templates.get_template("history.html.j2").render(card=card, rows=rows, now=self._clock())

    @cached_property
    def _templates(self) -> "Environment":
        """At the first page: until somebody looks, nothing of it is in memory."""
        return create_templates(
            [_ASSET_FOLDER],
            {"quantile": compute_quantile},
            {
                "cards": board_module,
                "problems": findings,
                "MAX_FAILURE_SPANS": MAX_FAILURE_SPANS,
                "runbook_url": self._runbook_url,
                "page_links": self._page_links,
                "watched_since": self._history.started_at,
            },
        )

    def _render_board(self, board: Board, query: BoardQuery) -> str:
        return self._templates.get_template("board.html.j2").render(
            board=board, query=query, cursor=self._format_cursor(board), proof=self._find_proof(board.created_at)
        )

    def _render_changes(self, board: Board, query: BoardQuery) -> dict[str, object]:
        parts: Any = self._templates.get_template("parts.html.j2").module  # its macros
        return {
            "cursor": self._format_cursor(board),
            "now": board.created_at,
            "overall": str(parts.overall(board)),
            "proof": str(parts.proof(self._find_proof(board.created_at), board.created_at)),
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

    def _find_proof(self, now: float) -> PathProof | None:
        """The proof to show; None if there are none."""
        return find_proof(self._proof_every, now) if self._proof_every else None

    def _format_cursor(self, board: Board) -> str:
        return f"{self._boot_id}.{board.version}"
