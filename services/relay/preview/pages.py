"""`/channels/-/render`, and the command `render`: a webhook as every channel would show it. Nothing is sent.

The webhook is pasted, an example, or an event of the outbox; it stands in the form, so that it can be changed and
rendered again. A mail is in a frame, in which nothing runs and nothing is loaded; the form is sent there, too.
"""

import asyncio
import sys
from collections.abc import Coroutine, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeVar

import click
from sqlalchemy import Connection, bindparam, func, select
from starlette.requests import Request
from starlette.responses import HTMLResponse, PlainTextResponse, Response

from services.relay.cli import add_config_option, check_channel_or_exit
from services.relay.config import RelaySettings
from services.relay.console.frame import FRAME_POLICY, Console, View
from services.relay.outbox.store import Store
from services.relay.outbox.tables import clean_for_database, events
from services.relay.preview.render import (
    MAIL_POLICY,
    MAIL_SANDBOX,
    RenderedPayload,
    RenderingBusyError,
    WebhookRenderer,
    format_pretty,
    render_mail,
    render_page,
)
from shared.http.json_api import Query, RefusedError, parse_query, read_form
from shared.process.command_line import load_settings_or_exit, parse_option_or_exit, replace_unencodable_output
from shared.sql.rows import RowQuery, select_values

_RENDER_EXAMPLES: Final = """\b
Examples:
  keypulse-relay --config ops/compose/relay.yml render --payload tests/relay/payloads/01-firing-1.json --channel pagerduty
  keypulse-relay --config relay.yml render --payload FILE --channel slack-critical --format pretty
  keypulse-relay --config relay.yml render --payload FILE --channel email-oncall --format html >mail.html
  curl -s localhost:9912/api/quarantine/7 | keypulse-relay --config relay.yml render --payload - --channel pagerduty"""  # noqa: E501


@click.command("render", short_help="Print what a channel would send.", epilog=_RENDER_EXAMPLES)
@click.option("--payload", required=True, metavar="FILE", help="A webhook as JSON; - is standard input.")
@click.option("--channel", required=True, help="The name of a channel in the configuration.")
@click.option(
    "--format",
    "shape",
    type=click.Choice(["json", "pretty", "html"]),
    default="json",
    show_default=True,
    help="The payload as it is sent; as a person sees it in a terminal; or as a page.",
)
@add_config_option
def command(config: Path | None, payload: str, channel: str, shape: str) -> None:
    """Print what a channel would send for a webhook. Sends nothing."""
    settings = load_settings_or_exit(RelaySettings, config)
    check_channel_or_exit(settings, channel)

    rendered = parse_option_or_exit("--payload", lambda file: asyncio.run(_render(settings, channel, file)), payload)
    kind = settings.channels[channel].kind
    if shape != "json":
        rendered = format_pretty(kind, rendered) if shape == "pretty" else render_page(kind, rendered)
    replace_unencodable_output()
    click.echo(rendered)


async def _render(settings: RelaySettings, channel: str, file: str) -> str:
    try:
        body = await asyncio.to_thread(sys.stdin.buffer.read if file == "-" else Path(file).read_bytes)
    except OSError as error:
        raise ValueError(f"it cannot be read: {error.strerror}") from None
    webhooks = WebhookRenderer(settings, asks_servers=True)
    try:
        (rendered,) = await webhooks.render(body, only=channel)
    except RenderingBusyError as error:
        raise ValueError(str(error)) from None
    finally:
        await webhooks.close()
    if rendered.payload is None:
        raise ValueError("this channel could not build its message; the log has the defect")
    return rendered.payload


T = TypeVar("T")
_MAX_WAIT: Final = 0.15
"""Seconds."""


async def read_part(request: Request, part: str, reading: Coroutine[Any, Any, T]) -> T | None:
    """What is read; None if that takes long, and the request is for the whole page.

    Args:
        request: of the page, or of htmx for a part of it.
        part: the id of the element that shows what is read.
        reading: it continues where this returns None, for the request that follows. Its exceptions are raised.
    """
    task = asyncio.ensure_future(reading)
    if request.headers.get("hx-target") == part:
        return await task
    await asyncio.wait({task}, timeout=_MAX_WAIT)
    if task.done():
        return task.result()
    task.add_done_callback(lambda done: done.cancelled() or done.exception())
    return None


_MAX_READ: Final = 100
"""The newest events that are looked at: those of the relay's own have no webhook, and some are too large."""


class RecentEvent(NamedTuple):
    id: str
    receiver: str
    alertname: str
    status: str
    accepted_at: float
    """Unix seconds."""


_newest = select(events.c.seq).order_by(events.c.seq.desc()).limit(_MAX_READ).scalar_subquery()
_fits = func.length(events.c.body).between(1, bindparam("max_bytes"))
_RECENT: Final = (
    RowQuery(
        RecentEvent,
        select(events.c.id, events.c.receiver, events.c.alertname, events.c.status, events.c.accepted_at),
    )
    .where(events.c.seq.in_(_newest), _fits)
    .order_by(events.c.seq.desc())
    .limit(bindparam("most"))
)
_BODY: Final = select_values(bytes, events.c.body).where(events.c.id == bindparam("event"), _fits)


async def list_recent_events(store: Store, limit: int, max_bytes: int) -> list[RecentEvent]:
    """The last webhooks that have at most `max_bytes`, the newest first. Raises StoreUnavailableError."""
    return await store.read(partial(_RECENT.fetch_all, values={"most": limit, "max_bytes": max_bytes}))


async def read_webhook(store: Store, event_id: str, max_bytes: int) -> bytes | None:
    """The webhook of an event as it came; None if there is none, or a larger one. Raises StoreUnavailableError."""

    def read(connection: Connection) -> bytes | None:
        return _BODY.fetch_first(connection, {"event": event_id, "max_bytes": max_bytes})

    return await store.read(read)


MAX_PAYLOAD: Final = 256 * 1024
"""Bytes of a webhook that is rendered here."""
_MAX_FORM: Final = 3 * MAX_PAYLOAD + 4096
"""Bytes of the form: it may write each byte of the webhook as three."""
_CONTENT_TOO_LARGE: Final = 413
_MAX_FORMS: Final = 4
"""Forms in memory at the same time."""
_MAX_EVENTS: Final = 10
_EXAMPLES: Final[Mapping[str, str]] = {
    file.stem: file.read_text(encoding="utf-8") for file in sorted((Path(__file__).parent / "examples").glob("*.json"))
}
_FIRST_EXAMPLE: Final = "firing"
_TOO_LARGE: Final = (
    f"expected at most {MAX_PAYLOAD // 1024} KiB; for more, run: keypulse-relay render --payload FILE --channel NAME"
)


class _Query(Query):
    event: str | None = None
    example: str = _FIRST_EXAMPLE


class RenderPages:
    """The page, and the frames of its mails."""

    def __init__(self, store: Store, webhooks: WebhookRenderer) -> None:
        self._store = store
        self._webhooks = webhooks
        self._forms = asyncio.Semaphore(_MAX_FORMS)

    def add_routes(self, console: Console) -> None:
        """The routes; a POST changes nothing, and so it is no action."""
        console.page("/channels/-/render", self._show, "render.html.j2")
        console.post("/channels/-/render", self._render_form, "render.html.j2")
        console.post("/channels/-/render/mail", self._show_mail)

    async def _show(self, request: Request) -> View:
        query = parse_query(_Query, request.query_params)
        payload = _EXAMPLES.get(query.example)
        if query.event is not None:
            body = await read_webhook(self._store, clean_for_database(query.event), MAX_PAYLOAD)
            payload = None if body is None else body.decode(errors="replace")
        if payload is None:
            return await self._view("", error="there is no such example, or webhook in the outbox", status=404)
        return await self._render(payload)

    async def _render_form(self, request: Request) -> View:
        try:
            payload = await self._read_payload(request)
        except RefusedError as error:
            return await self._view("", error=str(error), status=error.status)
        return await self._render(payload)

    async def _render(self, payload: str) -> View:
        try:
            return await self._view(payload, await self._webhooks.render(payload.encode()))
        except ValueError as error:
            return await self._view(payload, error=str(error))
        except RefusedError as error:
            return await self._view(payload, error=str(error), status=error.status)

    async def _view(
        self, payload: str, rendered: Sequence[RenderedPayload] = (), *, error: str | None = None, status: int = 200
    ) -> View:
        values = {
            "payload": payload,
            "rendered": rendered,
            "error": error,
            "examples": list(_EXAMPLES),
            "mail_sandbox": MAIL_SANDBOX,
            "events": await list_recent_events(self._store, _MAX_EVENTS, MAX_PAYLOAD),
        }
        return View(values, status, {"Content-Security-Policy": FRAME_POLICY})

    async def _show_mail(self, request: Request) -> Response:
        """The mail of the channel that the query names, as a document for its frame."""
        try:
            payload = await self._read_payload(request)
            rendered = await self._webhooks.render(payload.encode(), only=request.query_params.get("channel", ""))
        except (RefusedError, ValueError) as error:
            return PlainTextResponse(f"{error}\n", status_code=getattr(error, "status", 422))
        mail = next((each.payload for each in rendered if each.kind == "email"), None)
        if mail is None:
            return PlainTextResponse("there is no such mail\n", status_code=404)
        page = await asyncio.to_thread(render_mail, mail)
        return HTMLResponse(page, headers={"Content-Security-Policy": MAIL_POLICY})

    async def _read_payload(self, request: Request) -> str:
        if self._forms.locked():
            raise RenderingBusyError("other payloads are being rendered; try again in a moment")
        async with self._forms:
            try:
                payload = (await read_form(request, _MAX_FORM)).get("payload", "")
            except RefusedError as error:
                raise error if error.status != _CONTENT_TOO_LARGE else RefusedError(_TOO_LARGE, error.status) from None
        if len(payload.encode()) > MAX_PAYLOAD:
            raise RefusedError(_TOO_LARGE, _CONTENT_TOO_LARGE)
        return payload
