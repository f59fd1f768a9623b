"""`/api/quarantine`: what was not accepted.

All of it is JSON, except the body of a quarantined webhook: `GET /api/quarantine/{id}` returns it as it came.
"""

import re
from dataclasses import asdict

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from services.relay.outbox import quarantine as rejected
from services.relay.outbox.engine.store import Store
from shared.http.json_api import build_error_response, format_time


class QuarantineEndpoint:
    """The endpoints of the quarantine.

    Args:
        store: the outbox.
    """

    def __init__(self, store: Store) -> None:
        self._store = store

    async def list(self, _request: Request) -> Response:
        """All entries, the newest first."""
        entries = await rejected.list_entries(self._store)
        return JSONResponse(
            {"quarantine": [{**asdict(entry), "received_at": format_time(entry.received_at)} for entry in entries]}
        )

    async def get_body(self, request: Request) -> Response:
        """The body of one, as a download."""
        entry = request.path_params["id"]
        body = await rejected.read_body(self._store, int(entry)) if re.fullmatch("[0-9]{1,18}", entry) else None
        if body is None:
            return build_error_response(404, "no such entry")
        headers = {
            "Content-Disposition": f'attachment; filename="webhook-{entry}.txt"',
            "X-Content-Type-Options": "nosniff",  # the sender of the webhook wrote it
        }
        return Response(body, media_type="text/plain", headers=headers)
