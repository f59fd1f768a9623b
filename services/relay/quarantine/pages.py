"""`/api/quarantine`: what was not accepted, and its replay.

All of it is JSON, except the body of a quarantined webhook: `GET /api/quarantine/{id}` returns it as it came.

`/quarantine`: what was given up, and the retry of many; what was refused, and its replay.

The body of a refused webhook as people read and edit it. Pure.

It may be anything that anybody sent: no JSON, no text, nested without end, or much longer once it is indented.
"""

import asyncio
import json
import re
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, Final, NamedTuple

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from services.relay.channels.port import REASON_ADVICE, ReasonAdvice
from services.relay.console.frame import Console, Handler, redirect, redirect_refused
from services.relay.deliveries.pages import DeliveryActions, UnknownChannelError
from services.relay.deliveries.retries import NotRetryableError, UnknownDeliveryError
from services.relay.intake.webhook import MalformedWebhookError, TooManyTextsError
from services.relay.outbox.accept import encode_accepted
from services.relay.outbox.dead_letters import NO_ATTEMPT, read_dead_letters
from services.relay.outbox.quarantine import (
    MAX_BODY_BYTES,
    MAX_ENTRIES,
    AlreadyReplayedError,
    QuarantineEntry,
    UnknownEntryError,
    list_entries,
    read_webhook,
)
from services.relay.outbox.store import Store
from services.relay.outbox.tables import clean_for_database
from services.relay.quarantine.replay import NotConfirmedError, ReplayPreview, ReplayRefusedError, Replays
from shared.config.server_settings import Role
from shared.http.access import describe_action, get_caller, get_peer
from shared.http.json_api import FormError, build_error_response, format_json_time, read_form
from shared.http.limits import BODY_SECONDS, BodyTooLargeError, read_body

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

    def add_routes(self, console: Console) -> None:
        """The routes of the API."""
        console.api("/quarantine", self.list)
        console.api("/quarantine/{id}", self.get_body, role=Role.ADMIN)  # it may contain misdirected secrets
        console.api("/quarantine/{id}/replay", self.replay, role=Role.ADMIN, action="replay")

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
    escalation = [{"after": step.after, "channels": step.channels} for step in preview.escalation]
    return {**asdict(preview), **times, "escalation": escalation}


PAGE_BYTES: Final = 64 * 1024
"""Bytes of a body that a page shows; a larger one is edited elsewhere."""
_MAX_FORMATTED: Final = 4 * PAGE_BYTES
"""Characters of an indented document; of a longer one the page has the body as it came."""


class FormattedBody(NamedTuple):
    """A body as a page shows it."""

    text: str
    is_json: bool
    """Whether `text` is an indented document instead of the body as it came."""
    is_whole: bool
    """Whether all of the body is in it, so that it can be edited."""
    has_replacements: bool
    """Whether `text` has the character that stands for bytes that are no UTF-8."""


def format_body(body: bytes) -> FormattedBody:
    """The body as text, indented where it is JSON."""
    text = body[:PAGE_BYTES].decode(errors="replace")
    is_whole = len(body) <= PAGE_BYTES
    document = _indent(text) if is_whole else None
    # Neither a database nor a page can hold NUL or half a surrogate pair, which JSON can write as escapes.
    text = clean_for_database(document or text)
    return FormattedBody(text, document is not None, is_whole, "\ufffd" in text)


def _indent(text: str) -> str | None:
    """The document, indented; None if it is no JSON, or would be too long."""
    parts, size = [], 0
    try:
        for part in json.JSONEncoder(indent=2, ensure_ascii=False).iterencode(json.loads(text)):
            parts.append(part)
            size += len(part)
            if size > _MAX_FORMATTED:
                return None
    except (ValueError, RecursionError):
        return None
    return "".join(parts)


PATH: Final = "/quarantine"
_MAX_FORM_BYTES: Final = 3 * MAX_BODY_BYTES + 4096
"""A form has up to three bytes for one of the body."""
_MAX_FORMS: Final = 2
"""Bodies in a form at the same time: each takes tens of megabytes, and of the intake's time some tenths of a second."""
_FORM_WAIT_SECONDS: Final = 10.0
"""How long a further one waits: the answer to a form that is still being sent may get lost."""
_UNKNOWN_ADVICE: Final = ReasonAdvice("a reason of a newer keypulse", "open one: its attempts say more")
_ADVICE: Final[Mapping[str, ReasonAdvice]] = {
    **{reason.value: advice for reason, advice in REASON_ADVICE.items()},
    NO_ATTEMPT: ReasonAdvice(
        "the channel did not work until `delivery.give_up_after` was over", "see why on the page Channels"
    ),
}
_PAGE_SIZE: Final = 20
"""Refused webhooks on a page."""
_CONFIRMED: Final = "yes"
_REFUSED_REPAIRS: Final = (MalformedWebhookError, TooManyTextsError, ReplayRefusedError)


class QuarantinePages:
    """The pages of dead letters and of refused webhooks.

    Args:
        store: the outbox.
        renderer: renders the templates.
        actions: retry dead letters.
        replays: accepts refused webhooks after all.
    """

    def __init__(self, store: Store, renderer: Console, actions: DeliveryActions, replays: Replays) -> None:
        self._store = store
        self._renderer = renderer
        self._actions = actions
        self._replays = replays
        self._forms = asyncio.Semaphore(_MAX_FORMS)

    def add_routes(self, console: Console) -> None:
        """The routes of the pages and of their actions."""

        def action(path: str, act: Handler, role: Role, name: str, refused: str = "Nothing was done") -> None:
            handler = self._answer_errors(act)
            console.action(PATH + path, handler, role, name, refused=refused, back=PATH, has_api=False)

        console.page(PATH, self._show, title="Quarantine")
        action("/retry", self._retry_all, Role.ADMIN, "retry all")
        action("/retry/{id}", self._retry_one, Role.RESPONDER, "retry")
        # It may contain misdirected secrets.
        console.page(PATH + "/{id}", self._answer_errors(self._show_entry), role=Role.ADMIN)
        action("/{id}/preview", self._limit_forms(self._preview), Role.ADMIN, "preview replay")
        action("/{id}/replay", self._limit_forms(self._replay), Role.ADMIN, "replay")

    async def _show(self, request: Request) -> Response:
        part = request.headers.get("hx-target")  # a page that is open loads its two parts each by itself
        values = {} if part == "refused" else await self._read_dead_letters()
        values |= {} if part == "dead_letters" else await self._read_refused(request.query_params.get("before", ""))
        return await self._renderer.render(request, "quarantine.html.j2", values)

    async def _read_dead_letters(self) -> dict[str, object]:
        letters = await self._store.read(read_dead_letters)
        return {
            "letters": letters,
            "advice": {group.reason: _ADVICE.get(group.reason, _UNKNOWN_ADVICE) for group in letters.groups},
            "channels": self._actions.channels,
        }

    async def _read_refused(self, before: str) -> dict[str, object]:
        oldest = int(before) if re.fullmatch("[0-9]{1,18}", before) else None
        entries = await list_entries(self._store, _PAGE_SIZE + 1, oldest)
        return {
            "entries": entries[:_PAGE_SIZE],
            "older": entries[_PAGE_SIZE - 1].id if len(entries) > _PAGE_SIZE else None,
            "is_older_page": oldest is not None,
            "max_entries": MAX_ENTRIES,
        }

    async def _retry_all(self, request: Request) -> Response:
        form = await read_form(request)
        try:
            count = await self._actions.retry_all(request, form.get("channel") or None, form.get("reason") or None)
        except UnknownChannelError as error:
            return redirect_refused(request, PATH, f"Not retried: {error}.")
        return redirect(request, PATH, f"{count:,} dead letter{' is' if count == 1 else 's are'} sent again.")

    async def _retry_one(self, request: Request) -> Response:
        try:
            now = await self._actions.retry(request)
        except (UnknownDeliveryError, NotRetryableError) as error:
            return redirect_refused(request, PATH, f"Not retried: {error}.")
        return redirect(request, PATH, f"{now.alertname} is sent again on {now.channel}.")

    async def _show_entry(self, request: Request) -> Response:
        entry, body = await read_webhook(self._store, request.path_params["id"])
        return await self._render_entry(request, entry, body)

    async def _preview(self, request: Request) -> Response:
        entry, stored = await read_webhook(self._store, request.path_params["id"])
        edited = (await read_form(request, _MAX_FORM_BYTES)).get("body")
        body = stored if edited is None else edited.encode()
        try:
            preview = await self._replays.preview(entry, body)
        except _REFUSED_REPAIRS as error:
            return await self._render_entry(request, entry, stored, edited=edited, error=f"Not accepted: {error}")
        return await self._render_entry(request, entry, stored, edited=edited, preview=preview)

    async def _replay(self, request: Request) -> Response:
        describe_action(request, is_stored=True)  # with what it accepts, or it changed nothing
        entry, stored = await read_webhook(self._store, request.path_params["id"])
        form = await read_form(request, _MAX_FORM_BYTES)
        edited, is_confirmed = form.get("body"), form.get("confirmed") == _CONFIRMED
        body, code = stored if edited is None else edited.encode(), form.get("code") if is_confirmed else None
        who, peer = get_caller(request).name, get_peer(request)
        try:
            accepted = await self._replays.replay(entry, body, code, who=who, peer=peer)
        except NotConfirmedError as error:
            why = "Nothing was done: what it would do has changed. Read it again, then confirm."
            return await self._render_entry(
                request, entry, stored, edited=edited, preview=error.preview, error=why, status=409
            )
        except AlreadyReplayedError as error:
            return redirect(request, PATH, f"Nothing was done: {error}.")
        except _REFUSED_REPAIRS as error:
            return await self._render_entry(
                request, entry, stored, edited=edited, error=f"Not accepted: {error}", status=422
            )
        if accepted.is_duplicate:
            return redirect(request, PATH, "Accepted. It repeats what was accepted before: nothing is sent.")
        return redirect(request, PATH, f"Accepted: it goes to {', '.join(accepted.channels) or 'no channel'}.")

    async def _render_entry(
        self,
        request: Request,
        entry: QuarantineEntry,
        body: bytes,
        *,
        edited: str | None = None,
        preview: ReplayPreview | None = None,
        error: str | None = None,
        status: int = 200,
    ) -> Response:
        values = {
            "entry": entry,
            "formatted": format_body(body),
            "edited": edited,
            "preview": preview,
            "error": error,
            "PAGE_BYTES": PAGE_BYTES,
        }
        return await self._renderer.render(request, "quarantine_entry.html.j2", values, status=status)

    def _limit_forms(self, handler: Handler) -> Handler:
        async def answer(request: Request) -> Response:
            try:  # nothing of the form is read meanwhile
                async with asyncio.timeout(_FORM_WAIT_SECONDS):
                    await self._forms.acquire()
            except TimeoutError:
                raise FormError("others are being repaired; go back, and try again in a moment", 503) from None
            try:
                response: Response = await handler(request)
            finally:
                self._forms.release()
            return response

        return answer

    def _answer_errors(self, handler: Handler) -> Handler:
        async def answer(request: Request) -> Response:
            try:
                response: Response = await handler(request)
                return response  # noqa: TRY300
            except UnknownEntryError as error:
                values = {"error": str(error)}
                return await self._renderer.render(request, "quarantine_missing.html.j2", values, status=404)
            except FormError as error:
                return redirect_refused(request, PATH, f"Nothing was done: {error}.")

        return answer
