"""`/api/deliveries`: deliveries, and what callers do with them. Times are RFC 3339 in UTC with milliseconds.

What people do with one delivery, by API or on its page: retry it, send it elsewhere.

`/deliveries`: what was sent, what was not, and why; and one delivery, with its message as its readers see it.

The address of a list of deliveries: its filters and its position, and the links to the pages beside it. Pure.

Where a person reads a message at its provider: a receipt goes in, the address comes out.

Slack's receipt has no address, and the workspace's name is known to Slack alone; so it is asked when a person follows
the link.
"""

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
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import QueryParams
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, RedirectResponse, Response

from services.relay.channels.port import AddressingChannel, ChannelSettings, Receipt, SendError, SendReason
from services.relay.config import RelaySettings
from services.relay.console.frame import (
    DELIVERY_LIGHTS,
    FRAME_POLICY,
    Console,
    View,
    redirect,
    redirect_refused,
)
from services.relay.deliveries import queries as delivery_list
from services.relay.deliveries.queries import (
    DeliveryDetails,
    DeliveryFilter,
    DeliverySummary,
    Position,
    check_text,
    encode_delivery,
    encode_details,
    parse_since,
    parse_state,
    parse_time,
)
from services.relay.deliveries.retries import (
    ACTION,
    NotRetryableError,
    NotSendableError,
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
    FormError,
    Page,
    build_error_response,
    check_names,
    format_cursor,
    format_json_time,
    parse_cursor,
    parse_page,
    parse_parameter,
    read_form,
)
from shared.http.limits import BODY_SECONDS, BodyTooLargeError, read_body
from shared.http.untrusted_json import UntrustedJsonError, decode_json


class UnknownChannelError(Exception):
    """There is no such channel; the message is a sentence with those that are there."""


class DeliveryActions:
    """The actions, for requests whose path names a delivery as `id`.

    Args:
        store: the outbox.
        channels: the configured names.
        wake_channels: called with the channels that have something new to deliver.
        metrics: counts what was merged into something newer.
    """

    def __init__(
        self,
        store: Store,
        channels: Collection[str],
        wake_channels: Callable[[Iterable[str]], None],
        metrics: Metrics,
    ) -> None:
        self._store = store
        self.channels = channels
        self._wake_channels = wake_channels
        self._metrics = metrics

    async def retry(self, request: Request) -> DeliverySummary:
        """Sends a dead letter again, and a waiting delivery at once; gives it as it stands then.

        Raises:
            UnknownDeliveryError: nothing was changed.
            NotRetryableError: nothing was changed.
            StoreUnavailableError: it is not known how it stands.
        """
        describe_action(request, is_stored=True)  # with what it changes
        actor = Actor(get_caller(request).name, get_peer(request))
        delivery_id = clean_for_database(request.path_params["id"])
        now = await retry_delivery(self._store, delivery_id, self.channels, actor)
        self._wake_channels([now.channel])
        return now

    async def retry_all(self, request: Request, channel: str | None, reason: str | None) -> int:
        """Sends the dead letters of a channel again, or of all that are configured; gives how many.

        Raises:
            UnknownChannelError: nothing was changed.
            StoreUnavailableError: some may be sent again; those that are not are still dead letters.
        """
        describe_action(request, on=" ".join(filter(None, (channel, reason))), is_stored=True)
        reason = reason and clean_for_database(reason)
        if channel is not None:
            self._check_channel(channel)
            names = [channel]
        else:  # an entry in the audit for each, so none for a channel without dead letters
            letters = [DeadLetterFilter(name, reason) for name in sorted(self.channels)]
            names = [each.channel for each in letters if await self._store.read(each.count)]
        actor, retried = Actor(get_caller(request).name, get_peer(request)), 0
        for name in names:
            async for count in retry_channel(self._store, name, reason, actor):
                retried += count
                self._wake_channels([name])
        return retried

    def _check_channel(self, name: str) -> None:
        if name not in self.channels:
            raise UnknownChannelError(f"no such channel; expected one of {', '.join(sorted(self.channels))}")

    async def send(self, request: Request, channel: str) -> str:
        """Sends the current state of its incident to another channel; gives the id of the delivery there.

        Raises:
            UnknownChannelError: nothing was changed.
            UnknownDeliveryError: nothing was changed.
            NotSendableError: nothing was changed.
            StoreUnavailableError: it is not known to be committed.
        """
        delivery_id = clean_for_database(request.path_params["id"])
        describe_action(request, channel=channel, is_stored=True)  # with what it changes
        self._check_channel(channel)
        sent = await send_elsewhere(
            self._store, delivery_id, channel, who=get_caller(request).name, peer=get_peer(request)
        )
        for _ in range(sent.superseded_count):
            self._metrics.count_delivery(channel, DeliveryState.SUPERSEDED)
        self._wake_channels([channel])
        return sent.delivery_id


DEAD_LETTER_REASONS: Final = (*(reason.value for reason in SendReason if reason is not SendReason.OK), NO_ATTEMPT)
_FILTERS: Final = (
    *("state", "channel", "alertname", "service", "digest", "since", "until", "text"),
    *("limit", "cursor"),
)


_MAX_BODY: Final = 4096


class _SendRequest(msgspec.Struct):
    """The body of `POST /api/deliveries/{id}/send`."""

    channel: Annotated[str, msgspec.Meta(max_length=200)]


_SEND_REQUEST: Final = msgspec.json.Decoder(_SendRequest)


class DeliveriesEndpoint:
    """The endpoints of deliveries.

    Args:
        store: the outbox.
        actions: what callers do with deliveries.
    """

    def __init__(self, store: Store, actions: DeliveryActions) -> None:
        self._store = store
        self._actions = actions

    def add_routes(self, console: Console) -> None:
        """The routes of the API."""
        console.api("/deliveries", self.list)
        console.api("/deliveries/retry", self.retry_all, role=Role.ADMIN, action="retry all")
        console.api("/deliveries/{id}", self.get)
        console.api("/deliveries/{id}/retry", self.retry, role=Role.RESPONDER, action="retry")
        console.api("/deliveries/{id}/send", self.send, role=Role.RESPONDER, action=ACTION)

    async def list(self, request: Request) -> Response:
        """A page of deliveries, the newest first."""
        try:
            delivery_filter, page = _parse_filter(request.query_params, self._store.clock())
        except ValueError as error:
            return build_error_response(400, str(error))
        listed = await delivery_list.list_deliveries(
            self._store, delivery_filter, limit=page.limit, position=Position(before=page.before)
        )
        rows = [encode_delivery(delivery) for delivery in listed.deliveries]
        end = listed.examined
        examined = end and {"number": end.number, "back_to": format_json_time(end.back_to)}
        return JSONResponse({"deliveries": rows, "next_cursor": format_cursor(listed.older), "examined": examined})

    async def get(self, request: Request) -> Response:
        """One delivery with its attempts."""
        record = await delivery_list.read_delivery(self._store, clean_for_database(request.path_params["id"]))
        return build_error_response(404, "no such delivery") if record is None else JSONResponse(encode_details(record))

    async def retry(self, request: Request) -> Response:
        """Delivers a dead letter again."""
        try:
            now = await self._actions.retry(request)
        except UnknownDeliveryError as error:
            return build_error_response(404, str(error))
        except NotRetryableError as error:
            return build_error_response(409, str(error))
        return JSONResponse({"id": now.id, "state": now.state, "superseded_by": now.superseded_by}, status_code=202)

    async def send(self, request: Request) -> Response:
        """Sends the current state of its incident to another channel."""
        try:
            async with asyncio.timeout(BODY_SECONDS):
                channel = decode_json(_SEND_REQUEST, await read_body(request.stream(), _MAX_BODY)).channel
            delivery_id = await self._actions.send(request, channel)
        except (BodyTooLargeError, TimeoutError):
            return build_error_response(400, f'expected {{"channel": NAME}} in at most {_MAX_BODY} bytes')
        except UntrustedJsonError as error:
            return build_error_response(400, f'expected {{"channel": NAME}}: {error}')
        except (UnknownDeliveryError, UnknownChannelError) as error:
            return build_error_response(404, str(error))
        except NotSendableError as error:
            return build_error_response(409, str(error))
        return JSONResponse({"id": delivery_id, "channel": channel}, status_code=202)

    async def retry_all(self, request: Request) -> Response:
        """Delivers all dead letters of a channel again, or those that were given up for a reason."""
        channel, reason = request.query_params.get("channel"), request.query_params.get("reason")
        describe_action(request, is_stored=True)
        if channel is None:
            return build_error_response(400, "channel: missing; expected the name of a channel")
        if reason is not None and reason not in DEAD_LETTER_REASONS:
            return build_error_response(400, f"reason: expected one of {', '.join(DEAD_LETTER_REASONS)}")
        try:
            retried = await self._actions.retry_all(request, channel, reason)
        except UnknownChannelError as error:
            return build_error_response(404, str(error))
        return JSONResponse({"retried": retried}, status_code=202)


def _parse_filter(parameters: QueryParams, now: float) -> tuple[DeliveryFilter, Page]:
    """The filter and the page. Raises ValueError with what was expected."""
    check_names(parameters, _FILTERS)
    page = parse_page(parameters)
    delivery_filter = DeliveryFilter(
        state=parse_parameter("state", parse_state, parameters),
        channel=parse_parameter("channel", check_text, parameters),
        alertname=parse_parameter("alertname", check_text, parameters),
        digest=parse_parameter("digest", check_text, parameters),
        service=parse_parameter("service", check_text, parameters),
        since=parse_parameter("since", partial(parse_since, now=now), parameters),
        until=parse_parameter("until", parse_time, parameters),
        text=parse_parameter("text", check_text, parameters),
    )
    return delivery_filter, page


PATH: Final = "/deliveries"
_MAX_TEXT: Final = 200


def _parse_text(text: str) -> str:
    if len(text) > _MAX_TEXT:
        raise ValueError(f"expected at most {_MAX_TEXT} characters")
    return check_text(text)


def _parse_time(text: str, now: float) -> float:
    """A time of a form, which is in UTC, or one with its zone, or a duration until now."""
    with suppress(ValueError):
        return parse_since(text, now)
    try:
        moment = datetime.fromisoformat(text)
        in_utc = moment.astimezone(UTC) if moment.tzinfo else moment.replace(tzinfo=UTC)
    except (ValueError, OverflowError):  # the year 0, or 10000
        raise ValueError("expected a time in UTC, such as 2026-11-24T22:46, or a duration such as 1h") from None
    return in_utc.timestamp()


_FIELDS: Final[Mapping[str, Callable[[str], Any]]] = {
    "text": _parse_text,
    "state": parse_state,
    "channel": _parse_text,
    "alertname": _parse_text,
    "service": _parse_text,
    "digest": _parse_text,
}
"""The parameters that filter, as `GET /api/deliveries` names them; those of `_TIMES` do, too."""
_TIMES: Final = ("since", "until")


@dataclass(frozen=True, slots=True)
class DeliveryQuery:
    """What a person wants to see of the list."""

    given: Mapping[str, str]
    """The filters as they were written; those that are empty are absent."""
    filter: DeliveryFilter
    position: Position
    problems: Mapping[str, str]
    """What is wrong with a filter, by its name."""

    @property
    def is_newest(self) -> bool:
        """Whether the page begins with the newest."""
        return self.position == Position()

    def get(self, name: str) -> str:
        """A filter as a form shows it."""
        if name not in _TIMES:
            return self.given.get(name, "")
        value: float | None = getattr(self.filter, name)
        return "" if value is None else datetime.fromtimestamp(value, UTC).strftime("%Y-%m-%dT%H:%M")

    def build_link(self, *, before: int | None = None, after: int | None = None, **changes: str) -> str:
        """The address of another page, with the same filters but for the changes; an empty one is taken away."""
        position = {"before": format_cursor(before), "after": format_cursor(after)}
        given = {name: value for name, value in {**self.given, **changes, **position}.items() if value}
        return f"{PATH}?{urlencode(given)}" if given else PATH


def parse_query(parameters: Mapping[str, str], now: float) -> DeliveryQuery:
    """What the address of the page says; a parameter that is unknown is ignored."""
    fields: dict[str, Callable[[str], Any]] = {**_FIELDS, **dict.fromkeys(_TIMES, partial(_parse_time, now=now))}
    given = {name: parameters[name].strip() for name in fields if parameters.get(name, "").strip()}
    problems, values, position = {}, {}, {}
    for name, text in given.items():
        try:
            values[name] = fields[name](text)
        except (ValueError, OverflowError) as error:
            problems[name] = str(error)
    for name in ("before", "after"):
        if parameters.get(name):
            try:
                position[name] = parse_cursor(parameters[name])
            except ValueError:
                problems[name] = "expected a link of this page"
    return DeliveryQuery(given, DeliveryFilter(**values), Position(**position), problems)


_SECONDS: Final = 5.0
_MAX_REQUESTS: Final = 4
"""At the same time."""


class NoAddressError(Exception):
    """There is no address; the message is a sentence that says why, without its full stop."""


class MessageAddresses:
    """Asks the providers.

    Args:
        channels: the configured ones.
    """

    def __init__(self, channels: Mapping[str, ChannelSettings]) -> None:
        self._channels = channels
        self._requests = asyncio.Semaphore(_MAX_REQUESTS)

    def can_find(self, channel_name: str, receipt: Receipt | None) -> bool:
        """Whether the provider can be asked."""
        settings = self._channels.get(channel_name)
        return settings is not None and receipt is not None and settings.has_address(receipt)

    async def find(self, channel_name: str, receipt: Receipt | None) -> str:
        """The address of the message. Raises NoAddressError."""
        if receipt is None or not self.can_find(channel_name, receipt):
            raise NoAddressError("its provider names none, or its channel is not configured any more")
        channel = self._channels[channel_name].connect(_SECONDS)
        try:
            async with asyncio.timeout(_SECONDS), self._requests:
                if isinstance(channel, AddressingChannel):
                    return await channel.find_address(receipt)
            raise NoAddressError("its provider names none")
        except SendError as error:
            raise NoAddressError(str(error)) from None
        except TimeoutError:
            raise NoAddressError(f"the provider did not answer within {_SECONDS:g} s; try again") from None
        finally:
            await close_channel(channel_name, channel)


PAGE_SIZE: Final = 50
_RETRYABLE: Final = (DeliveryState.DEAD, DeliveryState.QUEUED, DeliveryState.RETRYING)
_MAX_RAW: Final = 50_000
"""Characters of a payload that the page shows as it is; the API has all."""


@dataclass(frozen=True, slots=True)
class _Content:
    """What was sent, as the page shows it."""

    message: Markup
    raw: str
    """The payload as it is, perhaps cut."""
    is_cut: bool


class DeliveriesPages:
    """The list, and one delivery with its actions.

    Args:
        store: the outbox.
        settings: the configuration.
        renderer: renders the templates.
        actions: what callers do with one delivery.
    """

    def __init__(
        self,
        store: Store,
        settings: RelaySettings,
        renderer: Console,
        actions: DeliveryActions,
    ) -> None:
        self._store = store
        self._channels = settings.channels
        self._renderer = renderer
        self._actions = actions
        self._addresses = MessageAddresses(settings.channels)

    def add_routes(self, console: Console) -> None:
        """The routes of the pages and their actions."""
        one = f"{PATH}/{{id}}"
        console.page(PATH, self._list, "deliveries.html.j2", title="Deliveries", shared_fragment="delivery_list")
        console.page(one, self._show)
        console.page(f"{one}/mail", self._show_mail)
        console.page(f"{one}/open", self._open)
        console.action(f"{one}/retry", self._retry, Role.RESPONDER, "retry", refused="Not retried", has_api=False)
        console.action(f"{one}/send", self._send, Role.RESPONDER, ACTION, refused="Not sent", has_api=False)

    async def _list(self, request: Request) -> View:
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
        return View(values, status)

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
        payload = details.payload
        if payload is None:
            return None
        return _Content(
            render_message(self._get_kind(details), payload),
            _indent(payload)[:_MAX_RAW],
            len(payload) > _MAX_RAW,
        )


def _build_path(delivery_id: str) -> str:
    return f"{PATH}/{quote(delivery_id, safe='')}"


def _indent(payload: str) -> str:
    """JSON as a person reads it; anything else as it is."""
    try:
        return "\n".join(json.dumps(json.loads(line), indent=2, ensure_ascii=False) for line in payload.splitlines())
    except ValueError:
        return payload
