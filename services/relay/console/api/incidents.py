"""`/api/incidents`: the incidents, and who takes care of each.

Times are RFC 3339 in UTC with milliseconds.
"""

import asyncio
from collections.abc import Awaitable, Callable, Collection, Iterable
from functools import partial
from typing import Annotated, Final

import msgspec
from starlette.datastructures import QueryParams
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from services.relay.console.incidents.entries import encode_entry
from services.relay.console.incidents.hops import encode_hop
from services.relay.console.incidents.reader import IncidentReader
from services.relay.metrics import Metrics
from services.relay.outbox.engine.store import Store
from services.relay.outbox.operators.acknowledgement import (
    Acknowledgement,
    EpisodeOverError,
    acknowledge,
    unacknowledge,
)
from services.relay.outbox.queries.delivery_list import check_text, encode_delivery, list_deliveries, parse_since
from services.relay.outbox.queries.delivery_search import DeliveryFilter
from services.relay.outbox.queries.incident_list import (
    IncidentFilter,
    UnknownIncidentError,
    encode_incident,
    find_incident_id,
    list_incidents,
    parse_episode,
    parse_status,
    read_incident,
)
from services.relay.outbox.tables import clean_for_database
from shared.http.authorization import describe_action, get_caller, get_peer
from shared.http.body_limits import BODY_SECONDS, BodyTooLargeError, read_body
from shared.http.json_api import build_error_response, check_names, format_json_time, parse_parameter
from shared.http.pagination import Page, format_cursor, parse_cursor, parse_page
from shared.http.untrusted_json import UntrustedJsonError, decode_json

_VIA: Final = "api"
_FILTERS: Final = ("status", "acknowledged", "alertname", "service", "since", "limit", "cursor")
_TIMELINE_PARAMETERS: Final = ("episode", "cursor")
_MAX_DELIVERIES: Final = 100
"""The newest deliveries that an incident shows."""
_MAX_BODY: Final = 4096
_EXPECTED_BODY: Final = 'expected {"episode": NUMBER}, or an empty body'


class _EpisodeRequest(msgspec.Struct, forbid_unknown_fields=True):
    """The body of `acknowledge` and `unacknowledge`."""

    episode: Annotated[int, msgspec.Meta(ge=1, le=999_999_999)] | None = None


_EPISODE_REQUEST: Final = msgspec.json.Decoder(_EpisodeRequest)


class IncidentsEndpoint:
    """The endpoints of incidents.

    Args:
        store: the outbox.
        reader: reads one with its timeline.
        acknowledging_channels: the channels whose provider knows acknowledgements.
        wake_channels: called with the channels that have something new to deliver.
        metrics: counts acknowledgements.
    """

    def __init__(
        self,
        store: Store,
        reader: IncidentReader,
        acknowledging_channels: Collection[str],
        wake_channels: Callable[[Iterable[str]], None],
        metrics: Metrics,
    ) -> None:
        self._store = store
        self._reader = reader
        self._acknowledging_channels = acknowledging_channels
        self._wake_channels = wake_channels
        self._metrics = metrics

    async def list(self, request: Request) -> Response:
        """A page of incidents: the open ones, the worst first, then the others, the newest first."""
        try:
            chosen, page = _parse_filter(request.query_params, self._store.clock())
        except ValueError as error:
            return build_error_response(400, str(error))
        listed = await list_incidents(self._store, chosen, limit=page.limit, before=page.before)
        rows = [encode_incident(incident) for incident in listed.incidents]
        return JSONResponse({"incidents": rows, "next_cursor": format_cursor(listed.before)})

    async def get(self, request: Request) -> Response:
        """One incident, with its newest deliveries and a page of the timeline of one of its episodes."""
        try:
            incident_id = await self._find_id(request)
            episode, before = parse_timeline_page(request.query_params)
        except UnknownIncidentError as error:
            return build_error_response(404, str(error))
        except ValueError as error:
            return build_error_response(400, str(error))
        view = await self._reader.read(incident_id, episode=episode, before=before)
        if view is None:
            found = await read_incident(self._store, incident_id)
            return build_error_response(
                404, "no such incident" if found is None else "nothing of it is stored any more"
            )
        chosen = DeliveryFilter(incident_id=incident_id)
        listed = await list_deliveries(self._store, chosen, limit=_MAX_DELIVERIES)
        timeline, history = view.timeline, view.history
        return JSONResponse(
            {
                **encode_incident(view.incident),
                "deliveries": [encode_delivery(delivery) for delivery in listed.deliveries],
                "timeline_episode": history.episode,
                "timeline": [*map(encode_entry, timeline.entries)],
                "timeline_cursor": format_cursor(history.earlier),
                "timeline_is_cut": history.is_cut,
                "hops": {"start": [*map(encode_hop, timeline.start)], "end": [*map(encode_hop, timeline.end)]},
            }
        )

    async def acknowledge(self, request: Request) -> Response:
        """Acknowledges the episode that the body names, or the current one: 200, also if it was acknowledged before."""
        return await self._act(request, self._acknowledge)

    async def unacknowledge(self, request: Request) -> Response:
        """Withdraws the acknowledgement, likewise: 200, also if there is none."""
        return await self._act(request, self._unacknowledge)

    async def _act(
        self, request: Request, action: Callable[[Request, int | None], Awaitable[Acknowledgement]]
    ) -> Response:
        describe_action(request, is_stored=True)  # with what it changes
        try:
            episode = await _read_episode(request)
        except ValueError as error:
            return build_error_response(400, str(error))
        try:
            done = await action(request, episode)
        except UnknownIncidentError as error:
            return build_error_response(404, str(error))
        except EpisodeOverError as error:
            return build_error_response(409, str(error))
        describe_action(request, is_stored=True, changed=done.is_changed)
        self._wake_channels(done.channels_to_wake)
        return JSONResponse(
            {"id": done.incident_id, "acknowledged_by": done.by, "acknowledged_at": format_json_time(done.at)}
        )

    async def _find_id(self, request: Request) -> str:
        return await find_incident_id(self._store, clean_for_database(request.path_params["id"]))

    async def _acknowledge(self, request: Request, episode: int | None) -> Acknowledgement:
        done = await acknowledge(
            self._store,
            await self._find_id(request),
            episode=episode,
            who=get_caller(request).name,
            via=_VIA,
            peer=get_peer(request),
            acknowledging_channels=self._acknowledging_channels,
        )
        if done.is_changed:
            self._metrics.count_acknowledgement(_VIA)
        return done

    async def _unacknowledge(self, request: Request, episode: int | None) -> Acknowledgement:
        return await unacknowledge(
            self._store,
            await self._find_id(request),
            episode=episode,
            who=get_caller(request).name,
            via=_VIA,
            peer=get_peer(request),
        )


async def _read_episode(request: Request) -> int | None:
    """The episode that the body names; None for the current one. Raises ValueError with what was expected."""
    try:
        async with asyncio.timeout(BODY_SECONDS):
            body = await read_body(request.stream(), _MAX_BODY)
        return decode_json(_EPISODE_REQUEST, body).episode if body else None
    except (BodyTooLargeError, TimeoutError):
        raise ValueError(f"{_EXPECTED_BODY}, in at most {_MAX_BODY} bytes") from None
    except UntrustedJsonError as error:
        raise ValueError(f"{_EXPECTED_BODY}: {error}") from None


def parse_timeline_page(parameters: QueryParams) -> tuple[int | None, int | None]:
    """The episode, and where its page begins. Raises ValueError with what was expected."""
    check_names(parameters, _TIMELINE_PARAMETERS)
    return parse_parameter("episode", parse_episode, parameters), parse_parameter("cursor", parse_cursor, parameters)


def _parse_flag(text: str) -> bool:
    if text not in {"true", "false"}:
        raise ValueError("expected true or false")
    return text == "true"


def _parse_filter(parameters: QueryParams, now: float) -> tuple[IncidentFilter, Page]:
    """The filter and the page. Raises ValueError with what was expected."""
    check_names(parameters, _FILTERS)
    page = parse_page(parameters)
    chosen = IncidentFilter(
        status=parse_parameter("status", parse_status, parameters),
        is_acknowledged=parse_parameter("acknowledged", _parse_flag, parameters),
        alertname=parse_parameter("alertname", check_text, parameters),
        service=parse_parameter("service", check_text, parameters),
        since=parse_parameter("since", partial(parse_since, now=now), parameters),
    )
    return chosen, page
