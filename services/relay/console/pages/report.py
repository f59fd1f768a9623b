"""`/report`: what happened in a period; `/report.csv`: the same figures for a spreadsheet."""

from typing import Final
from urllib.parse import urlencode

from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

from services.relay.console.pages.deferred_part import read_part
from services.relay.console.pages.layout import PageRenderer
from services.relay.outbox.engine.work_queue import StoreUnavailableError
from services.relay.report.delay import explain_delay
from services.relay.report.encoding import format_csv
from services.relay.report.period import DEFAULT_SINCE, PARAMETERS
from services.relay.report.reader import ReportReader
from shared.http.authorization import ProtectedRoute

_FRAGMENT: Final = "figures"
_PRESETS: Final = {"24h": "24 hours", "7d": "7 days", "30d": "30 days", "90d": "90 days"}
_CAUSES: Final = {
    "provider": "Provider",
    "rate_limit": "Rate limit",
    "circuit_breaker": "Circuit breaker",
    "restored_backup": "Restored backup",
    "unknown": "Unknown",
}


class ReportPages:
    """The page of the report.

    Args:
        reader: of reports.
        renderer: renders the template.
        zone: the name of the time zone in which dates are read.
    """

    def __init__(self, reader: ReportReader, renderer: PageRenderer, zone: str) -> None:
        self._reader = reader
        self._renderer = renderer
        self._zone = zone

    def build_routes(self) -> list[ProtectedRoute]:
        """The routes of page and CSV."""
        return [
            self._renderer.build_page_route("/report", self._show),
            self._renderer.build_page_route("/report.csv", self._get_csv),
        ]

    async def _show(self, request: Request) -> Response:
        given = {name: value for name, value in request.query_params.items() if name in PARAMETERS and value}
        error, unavailable, report = None, None, None
        try:
            report = await read_part(request, _FRAGMENT, self._reader.read(request.query_params))
        except ValueError as problem:
            error = str(problem)
        except StoreUnavailableError as problem:
            if request.headers.get("hx-target") != _FRAGMENT:
                raise  # the whole page says so
            unavailable = str(problem)
        values = {
            "report": report,
            "error": error,
            "unavailable": unavailable,
            "given": given,
            "since": given.get("since", "" if given else DEFAULT_SINCE),
            "presets": _PRESETS,
            "zone": self._zone,
            "query": urlencode(given),
            "causes": _CAUSES,
            "explain_delay": explain_delay,
        }
        return await self._renderer.render(request, "report.html.j2", values, status=400 if error else 200)

    async def _get_csv(self, request: Request) -> Response:
        try:
            report = await self._reader.read(request.query_params)
        except ValueError as error:
            return PlainTextResponse(f"{error}\n", status_code=400)
        headers = {"Content-Disposition": 'attachment; filename="keypulse-report.csv"'}
        return Response(format_csv(report), media_type="text/csv", headers=headers)
