"""`/api/quarantine`: what was not accepted, and its replay.

All of it is JSON, except the body of a quarantined webhook: `GET /api/quarantine/{id}` returns it as it came.
"""

import asyncio
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, Final

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from services.relay.intake.replay import NotConfirmedError, ReplayPreview, ReplayRefusedError, Replays
from services.relay.intake.webhook_parser import MalformedWebhookError, TooManyTextsError
from services.relay.outbox.accept import encode_accepted
from services.relay.outbox.engine.store import Store
from services.relay.outbox.operators.quarantine import (
    MAX_BODY_BYTES,
    AlreadyReplayedError,
    QuarantineEntry,
    UnknownEntryError,
    list_entries,
    read_webhook,
)
from shared.http.authorization import describe_action, get_caller, get_peer
from shared.http.body_limits import BODY_SECONDS, BodyTooLargeError, read_body
from shared.http.json_api import build_error_response, format_json_time

_REFUSALS: Final[Mapping[type[Exception], int]] = {
    UnknownEntryError: 404,
    AlreadyReplayedError: 409,
    ReplayRefusedError: 409,
    MalformedWebhookError: 400,
    TooManyTextsError: 413,
    TimeoutError: 408,
}


class QuarantineEndpoint:
    """The endpoints of the quarantine.

    Args:
        store: the outbox.
        replays: accepts webhooks after all.
    """

    def __init__(self, store: Store, replays: Replays) -> None:
        self._store = store
        self._replays = replays

    async def list(self, _request: Request) -> Response:
        """All entries, the newest first."""
        return JSONResponse({"quarantine": [_encode_entry(entry) for entry in await list_entries(self._store)]})

    async def get_body(self, request: Request) -> Response:
        """The body of one, as a download."""
        try:
            entry, body = await read_webhook(self._store, request.path_params["id"])
        except UnknownEntryError as error:
            return build_error_response(404, str(error))
        headers = {
            "Content-Disposition": f'attachment; filename="webhook-{entry.id}.txt"',
            "X-Content-Type-Options": "nosniff",  # the sender of the webhook wrote it
        }
        return Response(body, media_type="text/plain", headers=headers)

    async def replay(self, request: Request) -> Response:
        """Accepts one after all: as it is kept, or as the request's body has it."""
        describe_action(request, is_stored=True)  # with what it accepts, or it changed nothing
        try:
            entry, stored = await read_webhook(self._store, request.path_params["id"])
            sent = await _read_repaired(request)
            caller, code = get_caller(request).name, request.query_params.get("confirm")
            accepted = await self._replays.replay(entry, sent or stored, code, who=caller, peer=get_peer(request))
        except NotConfirmedError as error:
            return JSONResponse({"error": str(error), "preview": _encode_preview(error.preview)}, status_code=409)
        except tuple(_REFUSALS) as error:
            return build_error_response(_REFUSALS[type(error)], str(error))
        except BodyTooLargeError:
            refused = build_error_response(413, f"the body is over {MAX_BODY_BYTES} bytes; post it to /alerts")
            refused.headers["Connection"] = "close"  # else uvicorn would read the rest, to drop it
            return refused
        return JSONResponse(encode_accepted(accepted), status_code=200 if accepted.is_duplicate else 202)


async def _read_repaired(request: Request) -> bytes:
    """The body of the request; empty if there is none. Raises BodyTooLargeError, TimeoutError."""
    try:
        async with asyncio.timeout(BODY_SECONDS):
            return await read_body(request.stream(), MAX_BODY_BYTES)
    except TimeoutError:
        raise TimeoutError(f"the body did not arrive within {BODY_SECONDS:g} s; send it again") from None


def _encode_entry(entry: QuarantineEntry) -> dict[str, Any]:
    times = {"received_at": format_json_time(entry.received_at), "replayed_at": format_json_time(entry.replayed_at)}
    return {**asdict(entry), **times, "is_cut": entry.is_cut, "hint": entry.hint}


def _encode_preview(preview: ReplayPreview) -> dict[str, Any]:
    times = {"started_at": format_json_time(preview.started_at), "received_at": format_json_time(preview.received_at)}
    escalation = [step._asdict() for step in preview.escalation]
    return {**asdict(preview), **times, "escalation": escalation}
