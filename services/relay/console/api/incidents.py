"""`/api/incidents`: the incidents, and who takes care of each.

Times are RFC 3339 in UTC with milliseconds.
"""

import re
from collections.abc import Callable, Collection, Iterable
from functools import partial
from typing import Final

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
    IncidentResolvedError,
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
    parse_status,
    read_incident,
)
from services.relay.outbox.tables import clean_for_database
from shared.http.authorization import describe_action, get_caller, get_peer
from shared.http.json_api import build_error_response, check_names, format_json_time, parse_parameter
from shared.http.pagination import Page, format_cursor, parse_cursor, parse_page

_VIA: Final = "api"
_FILTERS: Final = ("status", "acknowledged", "alertname", "service", "since", "limit", "cursor")
_TIMELINE_PARAMETERS: Final = ("episode", "cursor")
_MAX_DELIVERIES: Final = 100
"""The newest deliveries that an incident shows."""


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
        """Acknowledges the current episode: 200, also if it was acknowledged before."""
        describe_action(request, is_stored=True)  # with what it changes
        who, peer = get_caller(request).name, get_peer(request)
        try:
            incident_id = await self._find_id(request)
            done = await acknowledge(
                self._store,
                incident_id,
                who=who,
                via=_VIA,
                peer=peer,
                acknowledging_channels=self._acknowledging_channels,
            )
        except UnknownIncidentError as error:
            return build_error_response(404, str(error))
        except IncidentResolvedError as error:
            return build_error_response(409, str(error))
        if done.is_changed:
            self._metrics.count_acknowledgement(_VIA)
        return self._respond(request, done)

    async def unacknowledge(self, request: Request) -> Response:
        """Withdraws the acknowledgement: 200, also if there is none."""
        describe_action(request, is_stored=True)  # with what it changes
        who, peer = get_caller(request).name, get_peer(request)
        try:
            incident_id = await self._find_id(request)
            done = await unacknowledge(self._store, incident_id, who=who, via=_VIA, peer=peer)
        except UnknownIncidentError as error:
            return build_error_response(404, str(error))
        except IncidentResolvedError as error:
            return build_error_response(409, str(error))
        return self._respond(request, done)

    async def _find_id(self, request: Request) -> str:
        return await find_incident_id(self._store, clean_for_database(request.path_params["id"]))

    def _respond(self, request: Request, done: Acknowledgement) -> Response:
        describe_action(request, is_stored=True, changed=done.is_changed)
        self._wake_channels(done.channels_to_wake)
        return JSONResponse(
            {"id": done.incident_id, "acknowledged_by": done.by, "acknowledged_at": format_json_time(done.at)}
        )


def parse_timeline_page(parameters: QueryParams) -> tuple[int | None, int | None]:
    """The episode, and where its page begins. Raises ValueError with what was expected."""
    check_names(parameters, _TIMELINE_PARAMETERS)
    return parse_parameter("episode", _parse_episode, parameters), parse_parameter("cursor", parse_cursor, parameters)


def _parse_episode(text: str) -> int:
    if not re.fullmatch("[1-9][0-9]{0,8}", text):
        raise ValueError("expected the number of an episode, 1 for the first one")
    return int(text)


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
