"""The board for people: its pages, what its script asks for, its files. HTML is made here and nowhere else.

A look is taken on the event loop, where the history lives; the HTML of it is made in a thread.
"""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from heapq import nlargest
from pathlib import Path
from secrets import token_hex
from typing import Any, Final

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response

from services.exporter.history import FAILURES, FailureSpan, History, quantile
from services.exporter.web import advice, cards, plot, words
from services.exporter.web.board import Asked, Board, Heads, Look, look
from services.exporter.web.findings import WORDS, Light, of_versions
from shared import VERSION
from shared.auth import Endpoint
from shared.guard import GuardedRoute, Requires
from shared.settings import Role

_FOLDER: Final = Path(__file__).parent / "board"
_TYPES: Final = {".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
_FILES: Final = {
    file.name: (file.read_bytes(), _TYPES[file.suffix]) for file in _FOLDER.iterdir() if file.suffix in _TYPES
}
HEADERS: Final = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self'; "
        "base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
    ),
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


class Pages:
    """The routes of the board.

    Args:
        history: what is shown.
        stale_after: seconds without news after which the last ones are said to be old.
        overdue_after: seconds after which a right round trip is no success any more.
        runbook: the URL of docs/KMS_OPERATIONS.md as people here read it; without it, sections are named only.
        clock: Unix seconds.
    """

    def __init__(
        self,
        history: History,
        *,
        stale_after: float,
        overdue_after: float = math.inf,
        runbook: str | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._history = history
        self._max_age = cards.MaxAge(stale_after, overdue_after)
        self._heads = Heads(self._max_age)
        self._clock = clock
        self._boot = token_hex(8)  # a number of an earlier process's history says nothing here
        self._templates = Environment(
            loader=FileSystemLoader(_FOLDER),
            autoescape=True,
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        self._templates.filters.update(
            ago=words.ago,
            span=words.span,
            moment=words.moment,
            short=words.short,
            iso=words.iso,
            took=words.took,
            rounded=words.rounded,
            quantile=quantile,
        )
        self._templates.globals.update(
            version=VERSION,
            runbook=runbook,
            runbook_file=advice.RUNBOOK,
            Light=Light,
            WORDS=WORDS,
            LISTED=cards.LISTED,
            FAILURES=FAILURES,
            plot=plot,
            protection=cards.protection,
            versions=cards.versions,
            canaries=cards.canaries,
            data_keys=cards.data_keys,
            last_rotated=cards.last_rotated,
            of_versions=of_versions,
            of_the_way=advice.of_the_way,
            of_a_failure=advice.of_a_failure,
        )

    def routes(self) -> list[GuardedRoute]:
        """The page at `/` and what it needs."""
        page, part = Requires(Role.VIEWER, browser=True, linked=True), Requires(Role.VIEWER, browser=True)
        return [
            GuardedRoute("/", _fenced(self._page), page),
            GuardedRoute("/history", _fenced(self._failures), page),
            GuardedRoute("/api/board", _fenced(self._changes), part),
            GuardedRoute("/board/{name}", _fenced(self._file), part),
        ]

    async def _page(self, request: Request) -> Response:
        asked = Asked.of(request.query_params)
        board = look(self._history, self._heads, asked, self._clock())
        return HTMLResponse(await run_in_threadpool(self._html, board, asked))

    async def _changes(self, request: Request) -> Response:
        """What is new for a page that looked before, as HTML by the id of its card."""
        asked = Asked.of(request.query_params)
        last = self._last(request.query_params.get("cursor", ""))
        board = look(self._history, self._heads, asked, self._clock(), last)
        return JSONResponse(await run_in_threadpool(self._news, board, asked))

    async def _failures(self, request: Request) -> Response:
        name = request.query_params.get("target")
        if not name:
            return HTMLResponse(await run_in_threadpool(self._failed, None, self._latest()))
        record = self._history.targets.get(name)
        if record is None:
            return PlainTextResponse("there is no such target; / lists all of them\n", status_code=404)
        now = self._clock()
        record = record.copy(now)
        head = cards.head(record, now, self._max_age)
        rows = [(name, span) for span in reversed(record.failures)]
        return HTMLResponse(await run_in_threadpool(self._failed, head, rows))

    def _latest(self) -> list[tuple[str, FailureSpan]]:
        """The last failures of all keys, the newest first, each with its key's name; copies."""
        found = [(record.target, span) for record in self._history.targets.values() for span in record.failures]
        latest = nlargest(FAILURES, found, key=lambda failure: failure[1].last)
        return [(name, replace(span)) for name, span in latest]

    def _failed(self, head: cards.Head | None, rows: Sequence[tuple[str, FailureSpan]]) -> str:
        return self._template("history.html.j2").render(head=head, rows=rows, now=self._clock())

    async def _file(self, request: Request) -> Response:
        found = _FILES.get(request.path_params["name"])
        if found is None:
            return PlainTextResponse("there is no such file\n", status_code=404)
        return Response(found[0], media_type=found[1])

    def _template(self, name: str) -> Template:
        return self._templates.get_template(name)

    def _html(self, board: Board, asked: Asked) -> str:
        return self._template("board.html.j2").render(board=board, asked=asked, cursor=self._cursor(board))

    def _news(self, board: Board, asked: Asked) -> dict[str, object]:
        parts: Any = self._template("parts.html.j2").module  # its macros
        return {
            "cursor": self._cursor(board),
            "overall": str(parts.overall(board)),
            "title": str(parts.title(board)),
            "sections": {
                section.kind: {
                    "order": section.order,
                    "total": section.total,
                    "foot": str(parts.foot(section, asked)),
                }
                for section in board.sections
            },
            "cards": {head.id: str(parts.card(head, board.at)) for section in board.sections for head in section.fresh},
        }

    def _cursor(self, board: Board) -> str:
        return f"{self._boot}.{board.version}.{board.at!r}"

    def _last(self, cursor: str) -> Look | None:
        """The look that a cursor stands for; None where it is none of ours."""
        boot, _, rest = cursor.partition(".")
        version, _, at = rest.partition(".")
        try:
            return Look(int(version), float(at)) if boot == self._boot else None
        except ValueError:
            return None


def _fenced(page: Endpoint) -> Endpoint:
    """`page`, with the headers that say what a browser may do with it."""

    async def answer(request: Request) -> Response:
        response = await page(request)
        response.headers.update(HEADERS)
        return response

    return answer
