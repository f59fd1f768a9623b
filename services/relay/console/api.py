"""`GET /api/deliveries` and `/api/deliveries/{id}`: what was delivered; `GET /api/quarantine`: what was not accepted.

All of it is JSON, but for a body that was not accepted: `GET /api/quarantine/{id}` gives it as it came.
Times are RFC 3339 in UTC with milliseconds.
"""

import re
from collections.abc import Awaitable, Callable
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any, Final

from starlette.datastructures import QueryParams
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from services.relay.outbox import query, rejected
from services.relay.outbox.schema import State
from services.relay.outbox.store import Store, StoreUnavailableError
from shared.auth import guarded
from shared.secret_file import SecretFile

_LIMIT: Final = 100
_MOST: Final = 1000
_FILTERS: Final = ("state", "channel", "alertname", "since", "limit")


def routes(store: Store, admin: SecretFile | None) -> list[Route]:
    """The routes of the API, behind the admin token where there is one."""

    async def deliveries(request: Request) -> Response:
        try:
            wanted, limit = _wanted(request.query_params)
        except ValueError as error:
            return _error(400, str(error))
        found = await query.recent(store, wanted, limit=limit)
        return JSONResponse({"deliveries": [_delivery(delivery) for delivery in found]})

    async def delivery(request: Request) -> Response:
        found = await query.one(store, request.path_params["id"])
        if found is None:
            return _error(404, "no such delivery")
        one, attempts = found
        tried = [{**asdict(attempt), "started_at": _time(attempt.started_at)} for attempt in attempts]
        return JSONResponse({**_delivery(one), "tried": tried})

    async def quarantine(_request: Request) -> Response:
        kept = await rejected.kept(store)
        return JSONResponse(
            {"quarantine": [{**asdict(entry), "received_at": _time(entry.received_at)} for entry in kept]}
        )

    async def quarantined(request: Request) -> Response:
        entry = request.path_params["id"]
        body = await rejected.body(store, int(entry)) if re.fullmatch("[0-9]{1,18}", entry) else None
        if body is None:
            return _error(404, "no such entry")
        headers = {
            "Content-Disposition": f'attachment; filename="webhook-{entry}.txt"',
            "X-Content-Type-Options": "nosniff",  # whoever may send a webhook wrote it
        }
        return Response(body, media_type="text/plain", headers=headers)

    endpoints = {
        "/api/deliveries": deliveries,
        "/api/deliveries/{id}": delivery,
        "/api/quarantine": quarantine,
        "/api/quarantine/{id}": quarantined,
    }
    return [Route(path, guarded(_or_503(endpoint), admin)) for path, endpoint in endpoints.items()]


def _wanted(parameters: QueryParams) -> tuple[query.Filter, int]:
    """What was asked for, and how much of it. Raises ValueError with what was expected."""
    if set(parameters) - set(_FILTERS):
        raise ValueError(f"unknown filter; expected {', '.join(_FILTERS)}")
    limit, state = parameters.get("limit", str(_LIMIT)), parameters.get("state")
    if not re.fullmatch("[0-9]{1,4}", limit) or not 1 <= int(limit) <= _MOST:
        raise ValueError(f"limit: expected a number from 1 to {_MOST}")
    if state is not None and state not in list(State):
        raise ValueError(f"state: expected one of {', '.join(State)}")
    return query.Filter(
        state=State(state) if state is not None else None,
        channel=parameters.get("channel"),
        alertname=parameters.get("alertname"),
        since=_moment(parameters["since"]) if "since" in parameters else None,
    ), int(limit)


def _moment(text: str) -> float:
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        moment = None
    if moment is None or moment.tzinfo is None:
        raise ValueError("since: expected a time with its zone, such as 2026-11-24T22:46:10Z")
    return moment.timestamp()


def _or_503(endpoint: Callable[[Request], Awaitable[Response]]) -> Callable[[Request], Awaitable[Response]]:
    async def answer(request: Request) -> Response:
        try:
            return await endpoint(request)
        except StoreUnavailableError as error:
            return _error(503, f"the outbox cannot be read: {error}")

    return answer


def _delivery(delivery: query.Delivery) -> dict[str, Any]:
    times = {"accepted_at": _time(delivery.accepted_at), "finished_at": _time(delivery.finished_at)}
    return {**asdict(delivery), **times}


def _time(seconds: float | None) -> str | None:
    if seconds is None:
        return None
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _error(code: int, reason: str) -> Response:
    return JSONResponse({"error": reason}, status_code=code)
