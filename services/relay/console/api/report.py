"""`/api/report`: the figures of a period."""

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from services.relay.report.encoding import encode_report
from services.relay.report.period import PARAMETERS
from services.relay.report.reader import ReportReader
from shared.http.json_api import build_error_response, check_names


class ReportEndpoint:
    """The report as JSON.

    Args:
        reader: of reports.
    """

    def __init__(self, reader: ReportReader) -> None:
        self._reader = reader

    async def get(self, request: Request) -> Response:
        """The report of the period that the query names."""
        try:
            check_names(request.query_params, PARAMETERS)
            report = await self._reader.read(request.query_params)
        except ValueError as error:
            return build_error_response(400, str(error))
        return JSONResponse(encode_report(report))
