"""`/api/deliveries`: what was delivered, and what was given up tried again; `/api/quarantine`: what was not accepted.

All of it is JSON, but for a body that was not accepted: `GET /api/quarantine/{id}` gives it as it came.
Times are RFC 3339 in UTC with milliseconds.
"""

import re
from collections.abc import Callable, Collection, Iterable
from dataclasses import asdict
from typing import Final, TypeVar

from starlette.datastructures import QueryParams
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from services.relay.console.again import NothingToRetryError, UnknownDeliveryError, retry, retry_channel
from services.relay.console.written import document, moment, searchable, state, whole_document, written
from services.relay.outbox import query, rejected
from services.relay.outbox.schema import plain
from services.relay.outbox.store import Store
from services.relay.outbox.waiting import StoreUnavailableError
from shared.auth import Endpoint
from shared.guard import GuardedRoute, Requires, describe
from shared.settings import Role

T = TypeVar("T")
_LIMIT: Final = 100
_MOST: Final = 1000
_FILTERS: Final = ("state", "channel", "alertname", "since", "limit", "cursor")


def routes(store: Store, channels: Collection[str], wake: Callable[[Iterable[str]], None]) -> list[GuardedRoute]:
    """The routes of the API.

    Args:
        store: the outbox.
        channels: the configured names.
        wake: called with the channels that have something to do.
    """
    deliveries, quarantine = _Deliveries(store, channels, wake), _Quarantine(store)

    def route(path: str, endpoint: Endpoint, needs: Role, action: str | None = None) -> GuardedRoute:
        methods = ["GET"] if action is None else ["POST"]
        return GuardedRoute(path, _or_503(endpoint), Requires(needs, action=action), methods)

    return [
        route("/api/deliveries", deliveries.recent, Role.VIEWER),
        route("/api/deliveries/retry", deliveries.retry_all, Role.ADMIN, "retry all"),
        route("/api/deliveries/{id}", deliveries.one, Role.VIEWER),
        route("/api/deliveries/{id}/retry", deliveries.retry, Role.RESPONDER, "retry"),
        route("/api/quarantine", quarantine.all, Role.VIEWER),
        route(
            "/api/quarantine/{id}", quarantine.body, Role.ADMIN
        ),  # whatever was sent, secrets that were misdirected too
    ]


class _Deliveries:
    def __init__(self, store: Store, channels: Collection[str], wake: Callable[[Iterable[str]], None]) -> None:
        self._store = store
        self._channels = channels
        self._wake = wake

    async def recent(self, request: Request) -> Response:
        try:
            wanted, limit, before = _wanted(request.query_params)
        except ValueError as error:
            return _error(400, str(error))
        page = await query.recent(self._store, wanted, limit=limit, before=before)
        cursor = None if page.before is None else f"{page.before:x}"
        return JSONResponse({"deliveries": [document(delivery) for delivery in page.deliveries], "next_cursor": cursor})

    async def one(self, request: Request) -> Response:
        record = await query.one(self._store, plain(request.path_params["id"]))
        return _error(404, "no such delivery") if record is None else JSONResponse(whole_document(record))

    async def retry(self, request: Request) -> Response:
        try:
            now = await retry(self._store, plain(request.path_params["id"]), self._channels)
        except UnknownDeliveryError as error:
            return _error(404, str(error))
        except NothingToRetryError as error:
            return _error(409, str(error))
        self._wake([now.channel])
        return JSONResponse({"id": now.id, "state": now.state, "superseded_by": now.superseded_by}, status_code=202)

    async def retry_all(self, request: Request) -> Response:
        channel = request.query_params.get("channel")
        describe(request, on=channel)
        if channel is None:
            return _error(400, "channel: missing; expected the name of one")
        if channel not in self._channels:
            return _error(404, f"no such channel; expected one of {', '.join(sorted(self._channels))}")
        retried = 0
        async for taken in retry_channel(self._store, channel):
            retried += taken
            self._wake([channel])
        return JSONResponse({"retried": retried}, status_code=202)


class _Quarantine:
    def __init__(self, store: Store) -> None:
        self._store = store

    async def all(self, _request: Request) -> Response:
        kept = await rejected.kept(self._store)
        return JSONResponse(
            {"quarantine": [{**asdict(entry), "received_at": written(entry.received_at)} for entry in kept]}
        )

    async def body(self, request: Request) -> Response:
        entry = request.path_params["id"]
        body = await rejected.body(self._store, int(entry)) if re.fullmatch("[0-9]{1,18}", entry) else None
        if body is None:
            return _error(404, "no such entry")
        headers = {
            "Content-Disposition": f'attachment; filename="webhook-{entry}.txt"',
            "X-Content-Type-Options": "nosniff",  # whoever may send a webhook wrote it
        }
        return Response(body, media_type="text/plain", headers=headers)


def _wanted(parameters: QueryParams) -> tuple[query.Filter, int, int | None]:
    """What was asked for, how much of it, and where to begin. Raises ValueError with what was expected."""
    if set(parameters) - set(_FILTERS):
        raise ValueError(f"unknown filter; expected {', '.join(_FILTERS)}")
    limit, cursor = parameters.get("limit", str(_LIMIT)), parameters.get("cursor")
    if not re.fullmatch("[0-9]{1,4}", limit) or not 1 <= int(limit) <= _MOST:
        raise ValueError(f"limit: expected a number from 1 to {_MOST}")
    if cursor is not None and not re.fullmatch("[0-9a-f]{1,15}", cursor):
        raise ValueError("cursor: expected the next_cursor of an earlier answer")
    wanted = query.Filter(
        state=_read("state", state, parameters),
        channel=_read("channel", searchable, parameters),
        alertname=_read("alertname", searchable, parameters),
        since=_read("since", moment, parameters),
    )
    return wanted, int(limit), None if cursor is None else int(cursor, 16)


def _read(name: str, parse: Callable[[str], T], parameters: QueryParams) -> T | None:
    if name not in parameters:
        return None
    try:
        return parse(parameters[name])
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None


def _or_503(endpoint: Endpoint) -> Endpoint:
    async def answer(request: Request) -> Response:
        try:
            return await endpoint(request)
        except StoreUnavailableError as error:
            return _error(503, f"the outbox cannot be used now, try again: {error}")

    return answer


def _error(code: int, reason: str) -> Response:
    return JSONResponse({"error": reason}, status_code=code)
