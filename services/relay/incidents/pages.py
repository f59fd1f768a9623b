"""`/api/incidents`: the incidents, and who takes care of each.

Times are RFC 3339 in UTC with milliseconds.

`/incidents`: what goes on and what went on; and one incident as a timeline over all channels, with its actions.
"""

import asyncio
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Final
from urllib.parse import quote, urlencode
from uuid import uuid4

import msgspec
from starlette.datastructures import QueryParams
from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse, Response

from services.relay.acknowledgement.store import Acknowledgement, EpisodeOverError, acknowledge, unacknowledge
from services.relay.config import RelaySettings
from services.relay.console.frame import DELIVERY_LIGHTS, Console, HealthStatus, redirect
from services.relay.deliveries.queries import DeliveryFilter, check_text, encode_delivery, list_deliveries, parse_since
from services.relay.incidents.post_mortem import IncidentReader, PostMortem, build_json, build_markdown
from services.relay.incidents.queries import (
    IncidentFilter,
    UnknownIncidentError,
    encode_incident,
    find_incident_id,
    list_incidents,
    parse_episode,
    parse_status,
    read_incident,
)
from services.relay.incidents.timeline import EntryKind, encode_entry, encode_hop
from services.relay.metrics import Metrics
from services.relay.model import Status
from services.relay.outbox.store import Store
from services.relay.outbox.tables import clean_for_database
from services.relay.silences.store import SilenceRefusedError, SilenceRequest, request_silence
from services.relay.text import clean_line, truncate
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
from shared.web.time_format import format_rough_duration

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

    def add_routes(self, console: Console) -> None:
        """The routes of the API."""
        console.api("/incidents", self.list)
        console.api("/incidents/{id}", self.get)
        console.api("/incidents/{id}/acknowledge", self.acknowledge, role=Role.RESPONDER, action="acknowledge")
        console.api("/incidents/{id}/unacknowledge", self.unacknowledge, role=Role.RESPONDER, action="unacknowledge")

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


_PAGE_SIZE: Final = 50
_EXPORTED_EVENTS: Final = 200
_MAX_COMMENT: Final = 500
_MAX_NAME: Final = 80
_MAX_FILTER: Final = 200
_DAY: Final = 86_400.0
STATES: Final = {
    "all": ("All", None, None),
    "open": ("Open", Status.FIRING, None),
    "unacknowledged": ("Open, nobody acknowledged", Status.FIRING, False),
    "acknowledged": ("Open, acknowledged", Status.FIRING, True),
    "resolved": ("Resolved", Status.RESOLVED, None),
}
"""The choices of the filter: their text, status and acknowledgement."""
PERIODS: Final = {
    "": ("Any time", None),
    "1d": ("24 hours", _DAY),
    "7d": ("7 days", 7 * _DAY),
    "30d": ("30 days", 30 * _DAY),
}
"""The choices of how long ago an episode started: their text and seconds."""
SILENCE_SECONDS: Final = (1800, 3600, 2 * 3600, 4 * 3600, 8 * 3600, 86_400, 3 * 86_400, 7 * 86_400)
ENTRY_LIGHTS: Final = {
    EntryKind.FAULT: HealthStatus.FAILING,
    EntryKind.ALERT: HealthStatus.DEGRADED,
    EntryKind.FAILED: HealthStatus.DEGRADED,
    EntryKind.DEAD: HealthStatus.FAILING,
    EntryKind.RESOLVED: HealthStatus.HEALTHY,
}
"""The light of an entry of the timeline; the others have none."""
_REFUSALS: Final = (FormError, UnknownIncidentError, EpisodeOverError)
"""Why an action changes nothing."""


@dataclass(frozen=True, slots=True)
class ListQuery:
    """What a person wants to see of the list."""

    state: str = "all"
    alertname: str = ""
    service: str = ""
    period: str = ""
    cursor: str = ""

    @classmethod
    def parse(cls, query: QueryParams) -> "ListQuery":
        """From the page's address; what is no choice counts as not given."""
        state, period = query.get("state", "all"), query.get("period", "")
        return cls(
            state=state if state in STATES else "all",
            alertname=_clean(query.get("alert", ""))[:_MAX_FILTER],
            service=_clean(query.get("service", ""))[:_MAX_FILTER],
            period=period if period in PERIODS else "",
            cursor=query.get("cursor", ""),
        )

    @property
    def is_filtered(self) -> bool:
        """Whether some incidents are left out."""
        return self.state != "all" or bool(self.alertname or self.service or self.period)

    def build_filter(self, now: float) -> IncidentFilter:
        """What the outbox is asked for."""
        _, status, is_acknowledged = STATES[self.state]
        _, seconds = PERIODS[self.period]
        return IncidentFilter(
            status=status,
            is_acknowledged=is_acknowledged,
            alertname=self.alertname or None,
            service=self.service or None,
            since=None if seconds is None else now - seconds,
        )

    def build_link(self, **changes: str) -> str:
        """The address of another page, the rest as it is."""
        values = {
            "state": self.state if self.state != "all" else "",
            "alert": self.alertname,
            "service": self.service,
            "period": self.period,
            **changes,
        }
        given = {name: value for name, value in values.items() if value}
        return f"/incidents?{urlencode(given)}" if given else "/incidents"


class IncidentPages:
    """The list, one incident, its exports and its actions.

    Args:
        store: the outbox.
        renderer: renders the templates.
        reader: reads one incident.
        settings: which channels know acknowledgements, and the relay's own address.
        wake_channels: called with the channels that have something new to deliver.
        wake_silences: called when a silence waits; None without an Alertmanager, where there are no silences.
        metrics: counts acknowledgements.
    """

    def __init__(
        self,
        store: Store,
        renderer: Console,
        reader: IncidentReader,
        settings: RelaySettings,
        wake_channels: Callable[[Iterable[str]], None],
        wake_silences: Callable[[], None] | None,
        metrics: Metrics,
    ) -> None:
        self._store = store
        self._renderer = renderer
        self._reader = reader
        self._acknowledging_channels = settings.acknowledging_channels
        self._public_url = settings.auth.public_url
        self._wake_channels = wake_channels
        self._wake_silences = wake_silences
        self._metrics = metrics

    def add_routes(self, console: Console) -> None:
        """The routes of pages, exports and actions."""
        one, refused = "/incidents/{id}", "Nothing was changed"
        console.page("/incidents", self._list, title="Incidents")
        console.page(one, self._show)
        console.page(f"{one}/export.md", self._export_markdown)
        console.page(f"{one}/export.json", self._export_json)
        for name, act in (("acknowledge", self._acknowledge), ("unacknowledge", self._unacknowledge)):
            console.action(f"{one}/{name}", act, Role.RESPONDER, name, refused=refused, has_api=False)
        console.action(
            f"{one}/silence", self._silence, Role.ADMIN, "silence", refused="Nothing was silenced", has_api=False
        )

    async def _list(self, request: Request) -> Response:
        query, error, before = ListQuery.parse(request.query_params), "", None
        try:
            before = parse_cursor(query.cursor) if query.cursor else None
        except ValueError:
            error = "This address names no page of the list: the first one is shown."
        chosen = query.build_filter(self._store.clock())
        page = await list_incidents(self._store, chosen, limit=_PAGE_SIZE, before=before)
        older = query.build_link(cursor=cursor) if (cursor := format_cursor(page.before)) else None
        values = {
            "query": query,
            "incidents": page.incidents,
            "older": older,
            "is_first_page": before is None,
            "error": error,
            "states": STATES,
            "periods": PERIODS,
            "lights": DELIVERY_LIGHTS,
        }
        return await self._renderer.render(request, "incidents.html.j2", values)

    async def _show(self, request: Request) -> Response:
        incident_id = _read_id(request)
        try:
            found = await find_incident_id(self._store, incident_id)
        except UnknownIncidentError as error:
            return redirect(request, "/incidents", f"Nothing is shown: {error}.")
        if found != incident_id:
            return RedirectResponse(_build_address(found, request.query_params), status_code=307)
        episode, before = _parse_number(request, "episode", 10), _parse_number(request, "cursor", 16)
        waits = request.query_params.get("fault") == "wait"
        view = await self._reader.read(incident_id, episode=episode, before=before, waits_for_fault=waits)
        if view is None:
            return await self._show_missing(request, incident_id)
        position = {"episode": episode, "cursor": request.query_params["cursor"] if before else None}
        values = {
            "view": view,
            "page_address": _build_address(incident_id, position),
            "fault_address": _build_address(incident_id, {**position, "fault": "wait"}),
            "earlier_address": _build_address(incident_id, {**position, "cursor": format_cursor(view.history.earlier)}),
            "can_silence": self._wake_silences is not None,
            "silence_choices": [(seconds, format_rough_duration(seconds)) for seconds in SILENCE_SECONDS],
            "max_comment": _MAX_COMMENT,
            "lights": DELIVERY_LIGHTS,
            "entry_lights": ENTRY_LIGHTS,
        }
        return await self._renderer.render(request, "incident.html.j2", values)

    async def _show_missing(self, request: Request, incident_id: str) -> Response:
        exists = await read_incident(self._store, incident_id) is not None
        values = {"incident_id": incident_id if exists else None}
        return await self._renderer.render(request, "incident_missing.html.j2", values, status=404)

    async def _export_markdown(self, request: Request) -> Response:
        export = await self._read_export(request)
        if export is None:
            return await self._show_missing(request, _read_id(request))
        text = await asyncio.to_thread(build_markdown, export)
        return Response(text, media_type="text/markdown", headers=_name_file(export, "md"))

    async def _export_json(self, request: Request) -> Response:
        export = await self._read_export(request)
        if export is None:
            return await self._show_missing(request, _read_id(request))
        return JSONResponse(await asyncio.to_thread(build_json, export), headers=_name_file(export, "json"))

    async def _read_export(self, request: Request) -> PostMortem | None:
        incident_id = _read_id(request)
        view = await self._reader.read(
            incident_id,
            episode=_parse_number(request, "episode", 10),
            before=_parse_number(request, "cursor", 16),
            limit=_EXPORTED_EVENTS,
            waits_for_fault=True,
        )
        if view is None:
            return None
        position = {"episode": None if view.history.is_current else view.history.episode}
        base = self._public_url or f"{request.scope.get('scheme', 'http')}://{request.headers.get('host', '')}"
        address = f"{base}{_build_address(incident_id, position)}"
        return PostMortem(view, self._store.clock(), address)

    async def _acknowledge(self, request: Request) -> Response:
        describe_action(request, is_stored=True)  # with what it changes
        incident_id = _read_id(request)
        try:
            done = await acknowledge(
                self._store,
                incident_id,
                episode=_parse_episode(await read_form(request)),
                who=get_caller(request).name,
                via="console",
                peer=get_peer(request),
                acknowledging_channels=self._acknowledging_channels,
            )
        except _REFUSALS as error:
            return self._refuse(request, incident_id, error)
        if done.is_changed:
            self._metrics.count_acknowledgement("console")
        message = "Acknowledged." if done.is_changed else f"{done.by} has acknowledged it already."
        return self._finish(request, done, message)

    async def _unacknowledge(self, request: Request) -> Response:
        describe_action(request, is_stored=True)  # with what it changes
        incident_id, who = _read_id(request), get_caller(request).name
        try:
            episode = _parse_episode(await read_form(request))
            done = await unacknowledge(
                self._store, incident_id, episode=episode, who=who, via="console", peer=get_peer(request)
            )
        except _REFUSALS as error:
            return self._refuse(request, incident_id, error)
        message = "Nobody takes care of it now; its escalation starts again."
        return self._finish(request, done, message if done.is_changed else "Nobody had acknowledged it.")

    def _finish(self, request: Request, done: Acknowledgement, message: str) -> Response:
        describe_action(request, is_stored=True, changed=done.is_changed)
        self._wake_channels(done.channels_to_wake)
        return redirect(request, f"/incidents/{done.incident_id}", message)

    def _refuse(self, request: Request, incident_id: str, error: Exception) -> Response:
        """Nothing was changed; the page says why."""
        describe_action(request, is_stored=True, changed=False)
        text = str(error)
        return redirect(request, f"/incidents/{incident_id}", f"Nothing was changed: {text}.")

    async def _silence(self, request: Request) -> Response:
        incident_id = _read_id(request)
        describe_action(request, is_stored=True)  # the worker stores what became of it
        if self._wake_silences is None:
            message = "Nothing was silenced: set alertmanager.urls, so that the relay knows where."
            return redirect(request, f"/incidents/{incident_id}", message)
        try:
            await request_silence(self._store, await _build_silence(request, incident_id))
        except (*_REFUSALS, SilenceRefusedError) as error:
            text = str(error).rstrip(".")
            return redirect(request, f"/incidents/{incident_id}", f"Nothing was silenced: {text}.")
        self._wake_silences()
        message = "The silence is requested; the timeline shows what Alertmanager answers."
        return redirect(request, f"/incidents/{incident_id}", message)


async def _build_silence(request: Request, incident_id: str) -> SilenceRequest:
    """What the form asks for. Raises FormError, SilenceRefusedError."""
    form = await read_form(request)
    seconds = form.get("seconds", "")
    if seconds not in map(str, SILENCE_SECONDS):
        raise SilenceRefusedError("expected one of the durations; choose one, and try again.")
    return SilenceRequest(
        id=uuid4().hex,
        incident_id=incident_id,
        episode=_parse_episode(form),
        who=truncate(clean_line(get_caller(request).name), _MAX_NAME),
        peer=get_peer(request) or "console",
        seconds=float(seconds),
        comment=truncate(clean_line(form.get("comment", "")), _MAX_COMMENT) or None,
    )


def _parse_episode(form: Mapping[str, str]) -> int:
    """The episode that the page showed. Raises FormError."""
    try:
        return parse_episode(form.get("episode", ""))
    except ValueError:
        raise FormError("the form names no episode; reload the page, and try again", 400) from None


def _read_id(request: Request) -> str:
    return clean_for_database(request.path_params["id"])


def _clean(text: str) -> str:
    return clean_for_database(text.strip())


def _parse_number(request: Request, name: str, base: int) -> int | None:
    """A number of the page's address; what is none counts as not given."""
    text = request.query_params.get(name, "")
    try:
        return int(text, base) if 0 < len(text) <= 15 and text.isalnum() else None
    except ValueError:
        return None


def _build_address(incident_id: str, position: Mapping[str, object]) -> str:
    given = {name: value for name, value in position.items() if value}
    return f"/incidents/{quote(incident_id, safe='')}" + (f"?{urlencode(given)}" if given else "")


def _name_file(export: PostMortem, ending: str) -> dict[str, str]:
    name = f"incident-{export.view.incident.id[:12]}-{export.view.history.episode}.{ending}"
    return {"Content-Disposition": f'attachment; filename="{name}"'}
