"""Dead letters and refused webhooks on one page, and over the API: retried, repaired and replayed."""

import asyncio
import json
import re
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, Final, NamedTuple

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from services.relay.channels.port import REASON_ADVICE, ReasonAdvice
from services.relay.console.frame import Console, Done, Handler, View
from services.relay.deliveries.pages import DeliveriesPages
from services.relay.outbox.accept import AcceptResult, encode_accepted
from services.relay.outbox.dead_letters import NO_ATTEMPT, read_dead_letters
from services.relay.outbox.quarantine import (
    MAX_BODY_BYTES,
    MAX_ENTRIES,
    AlreadyReplayedError,
    QuarantineEntry,
    list_entries,
    read_webhook,
)
from services.relay.outbox.store import Store
from services.relay.outbox.tables import clean_for_database
from services.relay.quarantine.replay import NotConfirmedError, ReplayPreview, Replays
from shared.config.server_settings import Role
from shared.http.access import describe_action, get_caller, get_peer
from shared.http.json_api import RefusedError, format_json_time, read_form, read_request


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
    """A body as a page shows it, for people to read and edit.

    It may be anything: no JSON, no text, nested without end, or much longer once it is indented.
    """

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
_ENTRY: Final = "quarantine_entry.html.j2"


class QuarantinePages:
    """The pages of dead letters and of refused webhooks, with their actions.

    Args:
        store: the outbox.
        deliveries: retries dead letters.
        replays: accepts refused webhooks after all.
    """

    def __init__(self, store: Store, deliveries: DeliveriesPages, replays: Replays) -> None:
        self._store = store
        self._deliveries = deliveries
        self._replays = replays
        self._forms = asyncio.Semaphore(_MAX_FORMS)

    def add_routes(self, console: Console) -> None:
        """The routes of pages, API and actions."""
        one = f"{PATH}/{{id}}"

        def action(path: str, act: Handler, role: Role, name: str, refused: str) -> None:
            console.action(path, act, role, name, refused=refused, back=PATH, has_api=False)

        console.page(PATH, self._show, "quarantine.html.j2", title="Quarantine")
        console.api(PATH, self._list)
        action(f"{PATH}/retry", self._deliveries.retry_all, Role.ADMIN, "retry all", "Not retried")
        action(f"{PATH}/retry/{{id}}", self._retry, Role.RESPONDER, "retry", "Not retried")
        # It may contain misdirected secrets.
        console.page(one, self._show_entry, _ENTRY, role=Role.ADMIN)
        console.api(one, self._get_body, role=Role.ADMIN)
        action(f"{one}/preview", self._limit_forms(self._preview), Role.ADMIN, "preview replay", "Nothing was done")
        action(f"{one}/replay", self._limit_forms(self._replay), Role.ADMIN, "replay", "Nothing was done")
        console.api(f"{one}/replay", self._replay_for_program, role=Role.ADMIN, action="replay")

    async def _show(self, request: Request) -> dict[str, object]:
        part = request.headers.get("hx-target")  # a page that is open loads its two parts each by itself
        values = {} if part == "refused" else await self._read_dead_letters()
        return values | ({} if part == "dead_letters" else await self._read_refused(request))

    async def _read_dead_letters(self) -> dict[str, object]:
        letters = await self._store.read(read_dead_letters)
        return {
            "letters": letters,
            "advice": {group.reason: _ADVICE.get(group.reason, _UNKNOWN_ADVICE) for group in letters.groups},
            "channels": self._deliveries.channels,
        }

    async def _read_refused(self, request: Request) -> dict[str, object]:
        before = request.query_params.get("before", "")
        oldest = int(before) if re.fullmatch("[0-9]{1,18}", before) else None
        entries = await list_entries(self._store, _PAGE_SIZE + 1, oldest)
        return {
            "entries": entries[:_PAGE_SIZE],
            "older": entries[_PAGE_SIZE - 1].id if len(entries) > _PAGE_SIZE else None,
            "is_older_page": oldest is not None,
            "max_entries": MAX_ENTRIES,
        }

    async def _list(self, _request: Request) -> dict[str, object]:
        return {"quarantine": [_encode_entry(entry) for entry in await list_entries(self._store)]}

    async def _retry(self, request: Request) -> Done:
        now = await self._deliveries.retry_one(request)
        return Done(f"{now.alertname} is sent again on {now.channel}.", PATH)

    async def _get_body(self, request: Request) -> Response:
        """The body as it came, as a download."""
        entry, body = await read_webhook(self._store, request.path_params["id"])
        headers = {
            "Content-Disposition": f'attachment; filename="webhook-{entry.id}.txt"',
            "X-Content-Type-Options": "nosniff",  # the sender of the webhook wrote it
        }
        return Response(body, media_type="text/plain", headers=headers)

    async def _show_entry(self, request: Request) -> dict[str, object]:
        return _build_values(*await read_webhook(self._store, request.path_params["id"]))

    async def _preview(self, request: Request) -> View:
        entry, stored = await read_webhook(self._store, request.path_params["id"])
        edited = (await read_form(request, _MAX_FORM_BYTES)).get("body")
        values = _build_values(entry, stored, edited)
        try:
            values["preview"] = await self._replays.preview(entry, stored if edited is None else edited.encode())
        except RefusedError as error:
            values["error"] = f"Not accepted: {error}"
        return View(values, template=_ENTRY)

    async def _replay(self, request: Request) -> View | Done:
        describe_action(request, is_stored=True)  # with what it accepts, or it changed nothing
        entry, stored = await read_webhook(self._store, request.path_params["id"])
        form = await read_form(request, _MAX_FORM_BYTES)
        edited, code = form.get("body"), form.get("code") if form.get("confirmed") == _CONFIRMED else None
        values = _build_values(entry, stored, edited)
        try:
            accepted = await self._accept(request, entry, stored if edited is None else edited.encode(), code)
        except NotConfirmedError as error:
            values["preview"] = error.preview
            values["error"] = "Nothing was done: what it would do has changed. Read it again, then confirm."
            return View(values, 409, template=_ENTRY)
        except AlreadyReplayedError:
            raise
        except RefusedError as error:
            values["error"] = f"Not accepted: {error}"
            return View(values, 422, template=_ENTRY)
        if accepted.is_duplicate:
            return Done("Accepted. It repeats what was accepted before: nothing is sent.", PATH)
        return Done(f"Accepted: it goes to {', '.join(accepted.channels) or 'no channel'}.", PATH)

    async def _replay_for_program(self, request: Request) -> Response | Done:
        """Accepts one as it is kept, or as the request's body has it."""
        describe_action(request, is_stored=True)  # as above
        entry, stored = await read_webhook(self._store, request.path_params["id"])
        repaired = await read_request(
            request, MAX_BODY_BYTES, f"the body is over {MAX_BODY_BYTES} bytes; post it to /alerts"
        )
        try:
            accepted = await self._accept(request, entry, repaired or stored, request.query_params.get("confirm"))
        except NotConfirmedError as error:
            return JSONResponse({"error": str(error), "preview": _encode_preview(error.preview)}, error.status)
        return Done("", "", encode_accepted(accepted), 200 if accepted.is_duplicate else 202)

    async def _accept(self, request: Request, entry: QuarantineEntry, body: bytes, code: str | None) -> AcceptResult:
        who, peer = get_caller(request).name, get_peer(request)
        return await self._replays.replay(entry, body, code, who=who, peer=peer)

    def _limit_forms(self, handler: Handler) -> Handler:
        async def answer(request: Request) -> View | Done:
            try:  # nothing of the form is read meanwhile
                async with asyncio.timeout(_FORM_WAIT_SECONDS):
                    await self._forms.acquire()
            except TimeoutError:
                raise RefusedError("others are being repaired; go back, and try again in a moment", 503) from None
            try:
                done: View | Done = await handler(request)
            finally:
                self._forms.release()
            return done

        return answer


def _build_values(entry: QuarantineEntry, body: bytes, edited: str | None = None) -> dict[str, object]:
    """The values of the page of an entry; `edited` is the body as a person repaired it."""
    values = {"entry": entry, "formatted": format_body(body), "edited": edited, "preview": None, "error": None}
    return {**values, "PAGE_BYTES": PAGE_BYTES}
