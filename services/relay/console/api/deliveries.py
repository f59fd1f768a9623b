"""`/api/deliveries`: deliveries, and what callers do with them. Times are RFC 3339 in UTC with milliseconds."""

import asyncio
from collections.abc import Callable, Iterable
from functools import partial
from typing import Annotated, Final

import msgspec
from starlette.datastructures import QueryParams
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from services.relay.console.delivery_actions import DeliveryActions, UnknownChannelError
from services.relay.outbox.engine.store import Store
from services.relay.outbox.operators.audit import Actor, insert_entry
from services.relay.outbox.operators.dead_letters import NO_ATTEMPT
from services.relay.outbox.operators.requeue import retry_channel
from services.relay.outbox.operators.retry import NotRetryableError, UnknownDeliveryError
from services.relay.outbox.operators.sending_elsewhere import NotSendableError
from services.relay.outbox.queries import delivery_list
from services.relay.outbox.queries.delivery_list import (
    check_text,
    encode_delivery,
    encode_details,
    parse_since,
    parse_state,
    parse_time,
)
from services.relay.outbox.queries.delivery_search import DeliveryFilter, Position
from services.relay.outbox.tables import clean_for_database
from services.relay.send_error import SendReason
from shared.http.authorization import describe_action, get_caller, get_peer
from shared.http.body_limits import BODY_SECONDS, BodyTooLargeError, read_body
from shared.http.json_api import build_error_response, check_names, format_json_time, parse_parameter
from shared.http.pagination import Page, format_cursor, parse_page
from shared.http.untrusted_json import UntrustedJsonError, decode_json

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
        wake_channels: called with the channels that have something new to deliver.
        actions: what callers do with one delivery.
    """

    def __init__(self, store: Store, wake_channels: Callable[[Iterable[str]], None], actions: DeliveryActions) -> None:
        self._store = store
        self._actions = actions
        self._channels = actions.channels
        self._wake_channels = wake_channels

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
        on = " ".join(filter(None, (channel, reason)))
        describe_action(request, on=on, is_stored=True)
        if channel is None:
            return build_error_response(400, "channel: missing; expected the name of a channel")
        if channel not in self._channels:
            return build_error_response(404, f"no such channel; expected one of {', '.join(sorted(self._channels))}")
        if reason is not None and reason not in DEAD_LETTER_REASONS:
            return build_error_response(400, f"reason: expected one of {', '.join(DEAD_LETTER_REASONS)}")
        actor = Actor(get_caller(request).name, get_peer(request))
        # Before its first step, since each is a commit of its own.
        await self._store.run(lambda transaction: insert_entry(transaction, *actor, "retry all", on))
        retried = 0
        async for requeued in retry_channel(self._store, channel, reason):
            retried += requeued
            self._wake_channels([channel])
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
