"""`GET /api/history`: the failures of keys for other programs, such as the relay's timeline of an incident.

As `/history`, it knows what happened since the exporter started; `since` says when that was.
"""

from dataclasses import asdict
from typing import Any, Final

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from services.exporter.history import FailureSpan, History, TargetHistory
from shared.config.server_settings import Role
from shared.http.authorization import ProtectedRoute, RouteRequirements
from shared.http.json_api import build_error_response, check_names, format_json_time

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
