"""`/deliveries`: what was sent, what was not, and why; and one delivery, with its message as its readers see it."""

import json
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import quote

from markupsafe import Markup
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response

from services.relay.config import RelaySettings
from services.relay.console.delivery_actions import DeliveryActions, UnknownChannelError
from services.relay.console.events import ChangeStream
from services.relay.console.pages.delivery_query import PATH, parse_query
from services.relay.console.pages.layout import FRAME_POLICY, PageRenderer, redirect, redirect_refused
from services.relay.console.status import DELIVERY_LIGHTS
from services.relay.message_addresses import MessageAddresses, NoAddressError
from services.relay.outbox.engine.store import Store
from services.relay.outbox.operators.retry import NotRetryableError, UnknownDeliveryError
from services.relay.outbox.operators.sending_elsewhere import ACTION, NotSendableError
from services.relay.outbox.queries import delivery_list
from services.relay.outbox.queries.delivery_list import DeliveryDetails
from services.relay.outbox.tables import UNFINISHED, DeliveryState, clean_for_database
from services.relay.preview.message import MAIL_POLICY, MAIL_SANDBOX, render_mail, render_message
from services.relay.shared_read import SharedRead
from shared.config.server_settings import Role
from shared.http.authorization import ProtectedRoute
from shared.http.form import FormError, read_form

PAGE_SIZE: Final = 50
_RETRYABLE: Final = (DeliveryState.DEAD, DeliveryState.QUEUED, DeliveryState.RETRYING)
_LIST: Final = "delivery_list"
"""The part of the list that is loaded again; nothing in it is of one viewer."""
_SHARED_SECONDS: Final = 1.0
"""For which a rendered list is current where no change is known."""
_MAX_SHARED_LISTS: Final = 20
"""Lists, with different filters, of which the last one is stored."""
_MAX_RAW: Final = 50_000
"""Characters of a payload that the page shows as it is; the API has all."""


@dataclass(frozen=True, slots=True)
class _Content:
    """What was sent, as the page shows it."""

    message: Markup
    raw: str
    """The payload as it is, perhaps cut."""
    is_cut: bool
    curl: str | None
    """The command that sends it again by hand."""


class DeliveriesPages:
    """The list, and one delivery with its actions.

    Args:
        store: the outbox.
        settings: the configuration.
        renderer: renders the templates.
        actions: what callers do with one delivery.
        changes: says whether something has changed since the list was rendered last.
    """

    def __init__(
        self,
        store: Store,
        settings: RelaySettings,
        renderer: PageRenderer,
        actions: DeliveryActions,
        changes: ChangeStream,
    ) -> None:
        self._store = store
        self._channels = settings.channels
        self._renderer = renderer
        self._actions = actions
        self._addresses = MessageAddresses(settings.channels)
        self._changes = changes
        self._lists: OrderedDict[bytes, SharedRead[Response]] = OrderedDict()

    def build_routes(self) -> list[ProtectedRoute]:
        """The routes of the pages and their actions."""
        page, action = self._renderer.build_page_route, self._renderer.build_action_route
        return [
            page(PATH, self._list),
            page(f"{PATH}/{{id}}", self._show),
            page(f"{PATH}/{{id}}/mail", self._show_mail),
            page(f"{PATH}/{{id}}/open", self._open),
            action(f"{PATH}/{{id}}/retry", self._retry, Role.RESPONDER, "retry"),
            action(f"{PATH}/{{id}}/send", self._send, Role.RESPONDER, ACTION),
        ]

    async def _list(self, request: Request) -> Response:
        """The list; the part of it that is loaded again is rendered once for all who show it."""
        if "hx-request" not in request.headers or request.headers.get("hx-target") != _LIST:
            return await self._render_list(request)
        query = request.scope.get("query_string", b"")
        shared = self._lists.setdefault(query, SharedRead(self._render_list, _SHARED_SECONDS))
        self._lists.move_to_end(query)
        if len(self._lists) > _MAX_SHARED_LISTS:
            self._lists.popitem(last=False)
        rendered = await shared.get(self._changes.version, request)
        return HTMLResponse(rendered.body, status_code=rendered.status_code)

    async def _render_list(self, request: Request) -> Response:
        query = parse_query(request.query_params, self._store.clock())
        values: dict[str, Any] = {"query": query, "states": list(DeliveryState), "lights": DELIVERY_LIGHTS}
        if query.problems:
            page = delivery_list.DeliveryPage([], None, None, None)
        else:
            page = await delivery_list.list_deliveries(
                self._store, query.filter, limit=PAGE_SIZE, position=query.position
            )
        # Channels that are not configured any more may have deliveries, too: they can be typed.
        values |= {"page": page, "channels": sorted(self._channels)}
        status = 400 if query.problems else 200
        return await self._renderer.render(request, "deliveries.html.j2", values, status=status)

    async def _show(self, request: Request) -> Response:
        details = await self._read(request)
        if details is None:
            return await self._renderer.render(request, "delivery_missing.html.j2", {}, status=404)
        delivery = details.delivery
        is_configured = delivery.channel in self._channels
        values = {
            "delivery": delivery,
            "details": details,
            "light": DELIVERY_LIGHTS.get(delivery.state, "unknown"),
            "kind": self._get_kind(details),
            "is_unfinished": delivery.state in UNFINISHED,
            "is_configured": is_configured,
            "can_retry": is_configured and delivery.state in _RETRYABLE,
            "other_channels": sorted(name for name in self._channels if name != delivery.channel),
            "has_address": self._addresses.can_find(delivery.channel, delivery.receipt),
            "event": await delivery_list.read_event(self._store, delivery.event_id),
            "content": await run_in_threadpool(self._build_content, details),
            "mail_sandbox": MAIL_SANDBOX,
        }
        response = await self._renderer.render(request, "delivery.html.j2", values)
        response.headers["Content-Security-Policy"] = FRAME_POLICY
        return response

    async def _show_mail(self, request: Request) -> Response:
        """The mail's HTML, for a sandboxed frame."""
        details = await self._read(request)
        if details is None or details.payload is None or self._get_kind(details) != "email":
            return HTMLResponse("<!doctype html><title>No mail</title><p>There is no mail.", status_code=404)
        html = await run_in_threadpool(render_mail, details.payload)
        return HTMLResponse(html, headers={"Content-Security-Policy": MAIL_POLICY})

    async def _open(self, request: Request) -> Response:
        """Leads to the message at its provider, which is asked for its address."""
        details = await self._read(request)
        if details is None:
            return await self._renderer.render(request, "delivery_missing.html.j2", {}, status=404)
        try:
            address = await self._addresses.find(details.delivery.channel, details.delivery.receipt)
        except NoAddressError as error:
            return redirect(request, _build_path(details.delivery.id), f"The message has no address: {error}.")
        return RedirectResponse(address, status_code=303)

    async def _retry(self, request: Request) -> Response:
        delivery_id = clean_for_database(request.path_params["id"])
        try:
            now = await self._actions.retry(request)
        except (NotRetryableError, UnknownDeliveryError) as error:
            return redirect_refused(request, _build_path(delivery_id), f"Not retried: {error}.")
        if now.superseded_by:
            message = "Retried: this delivery has the current state of its incident."
            return redirect(request, _build_path(now.superseded_by), message)
        return redirect(request, _build_path(delivery_id), "It is due now.")

    async def _send(self, request: Request) -> Response:
        delivery_id = clean_for_database(request.path_params["id"])
        try:
            form = await read_form(request)
            channel = form.get("channel", "")
            sent = await self._actions.send(request, channel)
        except (NotSendableError, UnknownChannelError, UnknownDeliveryError, FormError) as error:
            return redirect_refused(request, _build_path(delivery_id), f"Not sent: {error}.")
        return redirect(
            request, _build_path(sent), f"Sent to {channel}: further messages of its incident go there, too."
        )

    async def _read(self, request: Request) -> DeliveryDetails | None:
        return await delivery_list.read_delivery(self._store, clean_for_database(request.path_params["id"]))

    def _get_kind(self, details: DeliveryDetails) -> str:
        """The kind of its channel; empty if that is not configured any more."""
        return str(getattr(self._channels.get(details.delivery.channel), "kind", ""))

    def _build_content(self, details: DeliveryDetails) -> _Content | None:
        payload, channel = details.payload, self._channels.get(details.delivery.channel)
        if payload is None:
            return None
        return _Content(
            render_message(self._get_kind(details), payload),
            _indent(payload)[:_MAX_RAW],
            len(payload) > _MAX_RAW,
            channel.build_curl(details.delivery.id, payload) if channel else None,
        )


def _build_path(delivery_id: str) -> str:
    return f"{PATH}/{quote(delivery_id, safe='')}"


def _indent(payload: str) -> str:
    """JSON as a person reads it; anything else as it is."""
    try:
        return "\n".join(json.dumps(json.loads(line), indent=2, ensure_ascii=False) for line in payload.splitlines())
    except ValueError:
        return payload
