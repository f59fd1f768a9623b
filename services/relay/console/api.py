"""`GET /api/deliveries` and `GET /api/deliveries/{id}`: what was delivered, as JSON.

Times are RFC 3339 in UTC with milliseconds.
"""

from collections.abc import Awaitable, Callable
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any, Final

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from services.relay.outbox import query
from services.relay.outbox.schema import State
from services.relay.outbox.store import Store, StoreUnavailableError
from shared.auth import guarded
from shared.secret_file import SecretFile

_LIMIT: Final = 100
_MOST: Final = 1000


def routes(store: Store, admin: SecretFile | None) -> list[Route]:
    """The routes of the API, behind the admin token where there is one."""

    async def deliveries(request: Request) -> Response:
        parameters = request.query_params
        limit, state = parameters.get("limit", str(_LIMIT)), parameters.get("state")
        if not (limit.isdecimal() and len(limit) <= len(str(_MOST)) and 1 <= int(limit) <= _MOST):
            return _error(400, f"limit: expected a number from 1 to {_MOST}")
        if state is not None and state not in list(State):
            return _error(400, f"state: expected one of {', '.join(State)}")
        found = await query.recent(
            store, state=State(state) if state else None, channel=parameters.get("channel"), limit=int(limit)
        )
        return JSONResponse({"deliveries": [_delivery(delivery) for delivery in found]})

    async def delivery(request: Request) -> Response:
        found = await query.one(store, request.path_params["id"])
        if found is None:
            return _error(404, "no such delivery")
        one, attempts = found
        tried = [{**asdict(attempt), "started_at": _time(attempt.started_at)} for attempt in attempts]
        return JSONResponse({**_delivery(one), "tried": tried})

    return [
        Route("/api/deliveries", guarded(_or_503(deliveries), admin)),
        Route("/api/deliveries/{id}", guarded(_or_503(delivery), admin)),
    ]


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
