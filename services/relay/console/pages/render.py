"""`/channels/-/render`: a webhook as every channel would show it, side by side. Nothing is sent.

The webhook is pasted, an example, or an event of the outbox; it stands in the form, so that it can be changed and
rendered again. A mail has a frame of its own, in which nothing runs and nothing is loaded; the form is sent there, too.
"""

import asyncio
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from starlette.requests import Request
from starlette.responses import HTMLResponse, PlainTextResponse, Response

from services.relay.console.pages.layout import FRAME_POLICY, PageRenderer
from services.relay.outbox.engine.store import Store
from services.relay.outbox.queries.recent_events import list_recent_events, read_webhook
from services.relay.outbox.tables import clean_for_database
from services.relay.preview.message import MAIL_POLICY, MAIL_SANDBOX, render_mail
from services.relay.rendering import RenderedPayload, RenderingBusyError, WebhookRenderer
from shared.http.authorization import ProtectedRoute
from shared.http.form import FormError, read_form

MAX_PAYLOAD: Final = 256 * 1024
"""Bytes of a webhook that is rendered here."""
_MAX_FORM: Final = 3 * MAX_PAYLOAD + 4096
"""Bytes of the form: it may write each byte of the webhook as three."""
_CONTENT_TOO_LARGE: Final = 413
_MAX_FORMS: Final = 4
"""Forms in memory at the same time."""
_MAX_EVENTS: Final = 10
_EXAMPLES: Final[Mapping[str, str]] = {
    file.stem: file.read_text(encoding="utf-8")
    for file in sorted((Path(__file__).parents[1] / "examples").glob("*.json"))
}
_FIRST_EXAMPLE: Final = "firing"
_TOO_LARGE: Final = (
    f"expected at most {MAX_PAYLOAD // 1024} KiB; for more, run: keypulse-relay render --payload FILE --channel NAME"
)


class RenderPages:
    """The page, and the frames of its mails.

    Args:
        store: the outbox.
        renderer: renders the templates.
        webhooks: renders webhooks.
    """

    def __init__(self, store: Store, renderer: PageRenderer, webhooks: WebhookRenderer) -> None:
        self._store = store
        self._renderer = renderer
        self._webhooks = webhooks
        self._forms = asyncio.Semaphore(_MAX_FORMS)

    def build_routes(self) -> list[ProtectedRoute]:
        """The routes; a POST changes nothing, and so it is no action."""
        page = self._renderer.build_page_route
        return [
            page("/channels/-/render", self._show),
            page("/channels/-/render", self._render_form, methods=["POST"]),
            page("/channels/-/render/mail", self._show_mail, methods=["POST"]),
        ]

    async def _show(self, request: Request) -> Response:
        """An example, or a webhook of the outbox."""
        event, example = request.query_params.get("event"), request.query_params.get("example", _FIRST_EXAMPLE)
        if event is None:
            payload = _EXAMPLES.get(example)
        else:
            body = await read_webhook(self._store, clean_for_database(event), MAX_PAYLOAD)
            payload = None if body is None else body.decode(errors="replace")
        if payload is None:
            return await self._respond(request, "", [], "there is no such example, or webhook in the outbox", 404)
        return await self._respond_rendered(request, payload)

    async def _render_form(self, request: Request) -> Response:
        try:
            payload = await self._read_payload(request)
        except FormError as error:
            return await self._respond(request, "", [], str(error), error.status)
        except RenderingBusyError as error:
            return await self._respond(request, "", [], str(error), 503)
        return await self._respond_rendered(request, payload)

    async def _show_mail(self, request: Request) -> Response:
        """The mail of the channel that the query names, as a document of its own."""
        try:
            payload = await self._read_payload(request)
            rendered = await self._webhooks.render(payload.encode(), only=request.query_params.get("channel", ""))
        except FormError as error:
            return PlainTextResponse(f"{error}\n", status_code=error.status)
        except ValueError as error:
            return PlainTextResponse(f"{error}\n", status_code=422)
        except RenderingBusyError as error:
            return PlainTextResponse(f"{error}\n", status_code=503)
        mail = next((each.payload for each in rendered if each.kind == "email"), None)
        if mail is None:
            return PlainTextResponse("there is no such mail\n", status_code=404)
        page = await asyncio.to_thread(render_mail, mail)
        return HTMLResponse(page, headers={"Content-Security-Policy": MAIL_POLICY})

    async def _read_payload(self, request: Request) -> str:
        """The webhook of the form. Raises FormError or RenderingBusyError."""
        if self._forms.locked():
            raise RenderingBusyError("other payloads are being rendered; try again in a moment")
        async with self._forms:
            try:
                payload = (await read_form(request, _MAX_FORM)).get("payload", "")
            except FormError as error:
                raise FormError(
                    _TOO_LARGE if error.status == _CONTENT_TOO_LARGE else str(error), error.status
                ) from None
        if len(payload.encode()) > MAX_PAYLOAD:
            raise FormError(_TOO_LARGE, _CONTENT_TOO_LARGE)
        return payload

    async def _respond_rendered(self, request: Request, payload: str) -> Response:
        try:
            rendered = await self._webhooks.render(payload.encode())
        except ValueError as error:
            return await self._respond(request, payload, [], str(error), 200)
        except RenderingBusyError as error:
            return await self._respond(request, payload, [], str(error), 503)
        return await self._respond(request, payload, rendered, None, 200)

    async def _respond(
        self, request: Request, payload: str, rendered: list[RenderedPayload], error: str | None, status: int
    ) -> Response:
        values = {
            "payload": payload,
            "rendered": rendered,
            "error": error,
            "examples": list(_EXAMPLES),
            "mail_sandbox": MAIL_SANDBOX,
            "events": await list_recent_events(self._store, _MAX_EVENTS, MAX_PAYLOAD),
        }
        response = await self._renderer.render(request, "render.html.j2", values, status=status)
        response.headers["Content-Security-Policy"] = FRAME_POLICY
        return response
