"""Deliveries on their pages and over the API: the list, one with its attempts, retries, and sending elsewhere."""

import asyncio
import json
from collections.abc import Callable, Collection, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import Annotated, Any, Final
from urllib.parse import quote, urlencode

import msgspec
from markupsafe import Markup
from pydantic import BeforeValidator
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response

from services.relay.channels.port import AddressingChannel, SendError, SendReason
from services.relay.config import RelaySettings
from services.relay.console.frame import (
    DELIVERY_LIGHTS,
    FRAME_POLICY,
    Console,
    Done,
    View,
    is_api,
    read_fields,
    redirect,
)
from services.relay.deliveries.queries import (
    DeliveryDetails,
    DeliveryFilter,
    DeliveryPage,
    DeliverySummary,
    Position,
    Since,
    check_text,
    encode_delivery,
    encode_details,
    list_deliveries,
    parse_since,
    parse_state,
    parse_time,
    read_delivery,
    read_event,
)
from services.relay.deliveries.retries import (
    ACTION,
    UnknownDeliveryError,
    retry_channel,
    retry_delivery,
    send_elsewhere,
)
from services.relay.delivery.attempt import close_channel
from services.relay.metrics import Metrics
from services.relay.outbox.audit import Actor
from services.relay.outbox.dead_letters import NO_ATTEMPT, DeadLetterFilter
from services.relay.outbox.store import Store
from services.relay.outbox.tables import UNFINISHED, DeliveryState, clean_for_database
from services.relay.preview.render import MAIL_POLICY, MAIL_SANDBOX, render_mail, render_message
from shared.config.server_settings import Role
from shared.http.access import describe_action, get_caller, get_peer
from shared.http.json_api import (
    PageQuery,
    RefusedError,
    format_cursor,
    format_json_time,
    parse_cursor,
    parse_query,
    read_form,
)

PATH: Final = "/deliveries"
PAGE_SIZE: Final = 50
_MAX_TEXT: Final = 200
_RETRYABLE: Final = (DeliveryState.DEAD, DeliveryState.QUEUED, DeliveryState.RETRYING)
_REASONS: Final = (*(reason.value for reason in SendReason if reason is not SendReason.OK), NO_ATTEMPT)
_MAX_RAW: Final = 50_000
"""Characters of a payload that the page shows as it is; the API has all."""
_ADDRESS_SECONDS: Final = 5.0
_MAX_ADDRESS_REQUESTS: Final = 4
"""At the same time."""


def _parse_form_text(text: str) -> str:
    if len(text) > _MAX_TEXT:
        raise ValueError(f"expected at most {_MAX_TEXT} characters")
    return check_text(text)


def _parse_form_time(text: str, now: float) -> float:
    """A time of a form, which is in UTC, or one with its zone, or a duration until now."""
    with suppress(ValueError):
        return parse_since(text, now)
    try:
        moment = datetime.fromisoformat(text)
        in_utc = moment.astimezone(UTC) if moment.tzinfo else moment.replace(tzinfo=UTC)
    except (ValueError, OverflowError):  # the year 0, or 10000
        raise ValueError("expected a time in UTC, such as 2026-11-24T22:46, or a duration such as 1h") from None
    return in_utc.timestamp()


@dataclass(frozen=True, slots=True)
class DeliveryQuery:
    """What a person wants to see of the list."""

    given: Mapping[str, str]
    """The filters as they were written, without empty ones."""
    filter: DeliveryFilter
    position: Position
    problems: Mapping[str, str]
    """What is wrong with a parameter, by its name."""

    @property
    def is_newest(self) -> bool:
        """Whether the page begins with the newest."""
        return self.position == Position()

    def get(self, name: str) -> str:
        """A filter as a form shows it."""
        if name not in ("since", "until"):
            return self.given.get(name, "")
        value: float | None = getattr(self.filter, name)
        return "" if value is None else datetime.fromtimestamp(value, UTC).strftime("%Y-%m-%dT%H:%M")

    def build_link(self, *, before: int | None = None, after: int | None = None, **changes: str) -> str:
        """The address of another page, with the same filters but for the changes; an empty one is taken away."""
        position = {"before": format_cursor(before), "after": format_cursor(after)}
        given = {name: value for name, value in {**self.given, **changes, **position}.items() if value}
        return f"{PATH}?{urlencode(given)}" if given else PATH


def parse_form_query(parameters: Mapping[str, str], now: float) -> DeliveryQuery:
    """The query of the page's form; a parameter that is unknown or wrong is a problem."""
    parse_form_time = partial(_parse_form_time, now=now)
    texts = dict.fromkeys(("text", "channel", "alertname", "service", "digest"), _parse_form_text)
    filters: dict[str, Callable[[str], Any]] = {
        **texts,
        "state": parse_state,
        "since": parse_form_time,
        "until": parse_form_time,
    }
    given = {name: parameters[name].strip() for name in filters if parameters.get(name, "").strip()}
    problems: dict[str, str] = {}
    values: dict[str, Any] = {}
    position: dict[str, int] = {}
    for name, text in given.items():
        try:
            values[name] = filters[name](text)
        except (ValueError, OverflowError) as error:
            problems[name] = str(error)
    names = (*filters, "before", "after")
    for name in sorted(parameters.keys() - {*names}):
        problems[name] = f"unknown parameter; expected {', '.join(names)}"
    for name in ("before", "after"):
        if parameters.get(name):
            try:
                position[name] = parse_cursor(parameters[name])
            except ValueError:
                problems[name] = "expected a link of this page"
    return DeliveryQuery(given, DeliveryFilter(**values), Position(**position), problems)


_Text = Annotated[str | None, BeforeValidator(check_text)]


class _ApiQuery(PageQuery):
    state: Annotated[DeliveryState | None, BeforeValidator(parse_state)] = None
    channel: _Text = None
    alertname: _Text = None
    service: _Text = None
    digest: _Text = None
    since: Since = None
    until: Annotated[float | None, BeforeValidator(parse_time)] = None
    text: _Text = None


class _SendRequest(msgspec.Struct):
    channel: Annotated[str, msgspec.Meta(max_length=200)]


class DeliveriesPages:
    """The list, and one delivery with its actions.

    Args:
        store: the outbox.
        settings: the configuration.
        wake_channels: called with the channels that have something new to deliver.
        metrics: counts what was merged into something newer.
    """

    def __init__(
        self,
        store: Store,
        settings: RelaySettings,
        wake_channels: Callable[[Iterable[str]], None],
        metrics: Metrics,
    ) -> None:
        self._store = store
        self._settings = settings.channels
        self._wake_channels = wake_channels
        self._metrics = metrics
        self._address_requests = asyncio.Semaphore(_MAX_ADDRESS_REQUESTS)

    @property
    def channels(self) -> Collection[str]:
        """The configured names."""
        return self._settings

    def add_routes(self, console: Console) -> None:
        """The routes of pages, API and actions."""
        one = f"{PATH}/{{id}}"
        console.page(PATH, self._list, "deliveries.html.j2", title="Deliveries", shared_fragment="delivery_list")
        console.api(PATH, self._list_for_program)
        console.api(f"{PATH}/retry", self.retry_all, role=Role.ADMIN, action="retry all")
        console.page(one, self._show, "delivery.html.j2")
        console.api(one, self._read, encode=encode_details)
        console.page(f"{one}/mail", self._show_mail)
        console.page(f"{one}/open", self._open)
        console.action(f"{one}/retry", self._retry, Role.RESPONDER, "retry", refused="Not retried")
        console.action(f"{one}/send", self._send, Role.RESPONDER, ACTION, refused="Not sent")

    async def _list(self, request: Request) -> View:
        query = parse_form_query(request.query_params, self._store.clock())
        page = DeliveryPage([], None, None, None)
        if not query.problems:
            page = await list_deliveries(self._store, query.filter, limit=PAGE_SIZE, position=query.position)
        # Channels that are not configured any more may have deliveries, too: they can be typed.
        values = {"query": query, "states": list(DeliveryState), "lights": DELIVERY_LIGHTS, "page": page}
        return View({**values, "channels": sorted(self.channels)}, 400 if query.problems else 200)

    async def _list_for_program(self, request: Request) -> dict[str, Any]:
        query = parse_query(_ApiQuery, request.query_params, self._store.clock())
        chosen = DeliveryFilter(**query.model_dump(exclude={"limit", "cursor"}))
        page = await list_deliveries(self._store, chosen, limit=query.limit, position=Position(before=query.cursor))
        end = page.examined
        return {
            "deliveries": [encode_delivery(delivery) for delivery in page.deliveries],
            "next_cursor": format_cursor(page.older),
            "examined": end and {"number": end.number, "back_to": format_json_time(end.back_to)},
        }

    async def _show(self, request: Request) -> View:
        details = await self._read(request)
        delivery, kind = details.delivery, self._get_kind(details)
        is_configured = delivery.channel in self.channels
        values = {
            "delivery": delivery,
            "details": details,
            "light": DELIVERY_LIGHTS.get(delivery.state, "unknown"),
            "kind": kind,
            "is_unfinished": delivery.state in UNFINISHED,
            "is_configured": is_configured,
            "can_retry": is_configured and delivery.state in _RETRYABLE,
            "other_channels": sorted(name for name in self.channels if name != delivery.channel),
            "has_address": self._has_address(details),
            "event": await read_event(self._store, delivery.event_id),
            "content": await run_in_threadpool(_build_content, kind, details.payload) if details.payload else None,
            "mail_sandbox": MAIL_SANDBOX,
        }
        return View(values, headers={"Content-Security-Policy": FRAME_POLICY})

    async def _show_mail(self, request: Request) -> Response:
        """The mail's HTML, for a sandboxed frame."""
        details = await self._read(request)
        if details.payload is None or self._get_kind(details) != "email":
            return HTMLResponse("<!doctype html><title>No mail</title><p>There is no mail.", status_code=404)
        html = await run_in_threadpool(render_mail, details.payload)
        return HTMLResponse(html, headers={"Content-Security-Policy": MAIL_POLICY})

    async def _open(self, request: Request) -> Response:
        """Leads to the message at its provider, which alone knows its address: Slack's receipt has none."""
        details = await self._read(request)
        try:
            return RedirectResponse(await self._find_address(details), status_code=303)
        except (SendError, RefusedError) as error:
            problem = str(error)
        except TimeoutError:
            problem = f"the provider did not answer within {_ADDRESS_SECONDS:g} s; try again"
        return redirect(request, _build_path(details.delivery.id), f"The message has no address: {problem}.")

    def _has_address(self, details: DeliveryDetails) -> bool:
        settings, receipt = self._settings.get(details.delivery.channel), details.delivery.receipt
        return settings is not None and receipt is not None and settings.has_address(receipt)

    async def _find_address(self, details: DeliveryDetails) -> str:
        """Asks the provider. Raises SendError, RefusedError, TimeoutError."""
        name, receipt = details.delivery.channel, details.delivery.receipt
        if receipt is not None and self._has_address(details):
            channel = self._settings[name].connect(_ADDRESS_SECONDS)
            try:
                async with asyncio.timeout(_ADDRESS_SECONDS), self._address_requests:
                    if isinstance(channel, AddressingChannel):
                        return await channel.find_address(receipt)
            finally:
                await close_channel(name, channel)
        raise RefusedError("its provider names none, or its channel is not configured any more", 404)

    async def _retry(self, request: Request) -> Done:
        now = await self.retry_one(request)
        message = "It is due now."
        if now.superseded_by:
            message = "Retried: this delivery has the current state of its incident."
        document = {"id": now.id, "state": now.state, "superseded_by": now.superseded_by}
        return Done(message, _build_path(now.superseded_by or now.id), document, 202)

    async def retry_one(self, request: Request) -> DeliverySummary:
        """Sends a dead letter again, and a waiting delivery at once; gives it as it is then. Raises RefusedError."""
        describe_action(request, is_stored=True)  # with what it changes
        now = await retry_delivery(self._store, _read_id(request), self.channels, _get_actor(request))
        self._wake_channels([now.channel])
        return now

    async def retry_all(self, request: Request) -> Done:
        """Sends the dead letters of a channel again; a form without a channel takes all that are configured.

        If the relay stops meanwhile, what is not sent again is still a dead letter.
        """
        given = request.query_params if is_api(request) else await read_form(request)
        channel, reason = given.get("channel", ""), given.get("reason") or None
        describe_action(request, on=" ".join(filter(None, (channel, reason))), is_stored=True)
        if not channel and is_api(request):
            raise RefusedError("channel: missing; expected the name of a channel")
        if channel:
            self._check_channel(channel)
        if reason is not None and reason not in _REASONS:
            raise RefusedError(f"reason: expected one of {', '.join(_REASONS)}")
        names = [channel]
        if not channel:  # an entry in the audit for each, so none for a channel without dead letters
            letters = [DeadLetterFilter(name, reason) for name in sorted(self.channels)]
            names = [each.channel for each in letters if await self._store.read(each.count)]
        retried = 0
        for name in names:
            async for count in retry_channel(self._store, name, reason, _get_actor(request)):
                retried += count
                self._wake_channels([name])
        message = f"{retried:,} dead letter{' is' if retried == 1 else 's are'} sent again."
        return Done(message, "/quarantine", {"retried": retried}, 202)

    async def _send(self, request: Request) -> Done:
        """Sends the current state of its incident to another channel."""
        channel = (await read_fields(request, _SendRequest, '{"channel": NAME}')).channel
        describe_action(request, channel=channel, is_stored=True)  # with what it changes
        self._check_channel(channel)
        sent = await send_elsewhere(self._store, _read_id(request), channel, _get_actor(request))
        for _ in range(sent.superseded_count):
            self._metrics.deliveries.labels(channel, DeliveryState.SUPERSEDED).inc()
        self._wake_channels([channel])
        message = f"Sent to {channel}: further messages of its incident go there, too."
        return Done(message, _build_path(sent.delivery_id), {"id": sent.delivery_id, "channel": channel}, 202)

    def _check_channel(self, name: str) -> None:
        if name not in self.channels:
            raise RefusedError(f"no such channel; expected one of {', '.join(sorted(self.channels))}", 404)

    async def _read(self, request: Request) -> DeliveryDetails:
        details = await read_delivery(self._store, _read_id(request))
        if details is None:
            raise UnknownDeliveryError
        return details

    def _get_kind(self, details: DeliveryDetails) -> str:
        """The kind of its channel; empty if that is not configured any more."""
        return str(getattr(self._settings.get(details.delivery.channel), "kind", ""))


@dataclass(frozen=True, slots=True)
class _Content:
    """What was sent, as the page shows it."""

    message: Markup
    raw: str
    """The payload as it is, perhaps cut."""
    is_cut: bool


def _build_content(kind: str, payload: str) -> _Content:
    raw = payload
    with suppress(ValueError):  # JSON is indented, anything else stays as it is
        raw = "\n".join(json.dumps(json.loads(line), indent=2, ensure_ascii=False) for line in payload.splitlines())
    return _Content(render_message(kind, payload), raw[:_MAX_RAW], len(payload) > _MAX_RAW)


def _read_id(request: Request) -> str:
    return clean_for_database(request.path_params["id"])


def _get_actor(request: Request) -> Actor:
    return Actor(get_caller(request).name, get_peer(request))


def _build_path(delivery_id: str) -> str:
    return f"{PATH}/{quote(delivery_id, safe='')}"
