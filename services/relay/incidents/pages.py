"""Incidents on pages and over the API: the list, one as a timeline over all channels, and who takes care of it."""

import asyncio
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Final, Literal
from urllib.parse import quote, urlencode
from uuid import uuid4

import msgspec
from pydantic import AfterValidator, BeforeValidator, StringConstraints
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from services.relay.acknowledgement.store import Acknowledgement, Acknowledging
from services.relay.config import RelaySettings
from services.relay.console.frame import DELIVERY_LIGHTS, Console, Done, HealthStatus, is_api, read_fields
from services.relay.deliveries.queries import DeliveryFilter, Since, check_text, encode_delivery, list_deliveries
from services.relay.incidents.post_mortem import IncidentReader, IncidentView, build_markdown
from services.relay.incidents.queries import (
    IncidentFilter,
    encode_incident,
    find_incident_id,
    list_incidents,
    parse_episode,
    parse_status,
)
from services.relay.incidents.timeline import EntryKind, encode_entry, encode_hop
from services.relay.model import Status
from services.relay.outbox.store import Store
from services.relay.outbox.tables import clean_for_database
from services.relay.silences.store import SilenceRequest, request_silence
from services.relay.text import clean_line, truncate
from shared.config.server_settings import Role
from shared.http.access import describe_action, get_caller, get_peer
from shared.http.json_api import (
    PageQuery,
    Query,
    RefusedError,
    format_cursor,
    format_json_time,
    parse_cursor,
    parse_query,
)
from shared.web.time_format import format_rough_duration

_PAGE_SIZE: Final = 50
_MAX_DELIVERIES: Final = 100
"""The newest deliveries that the API has of an incident."""
_EXPORTED_EVENTS: Final = 200
_MAX_COMMENT: Final = 500
_MAX_NAME: Final = 80
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


def _parse_flag(text: str) -> bool:
    if text not in {"true", "false"}:
        raise ValueError("expected true or false")
    return text == "true"


def _check_choice(*choices: str) -> AfterValidator:
    def check(text: str) -> str:
        if text not in choices:
            raise ValueError(f"expected one of {', '.join(filter(None, choices))}")
        return text

    return AfterValidator(check)


_Text = Annotated[str, StringConstraints(strip_whitespace=True, max_length=200), AfterValidator(check_text)]
_Cursor = Annotated[int | None, BeforeValidator(parse_cursor)]


class _ApiQuery(PageQuery):
    status: Annotated[Status | None, BeforeValidator(parse_status)] = None
    acknowledged: Annotated[bool | None, BeforeValidator(_parse_flag)] = None
    alertname: Annotated[str | None, BeforeValidator(check_text)] = None
    service: Annotated[str | None, BeforeValidator(check_text)] = None
    since: Since = None


class ListQuery(Query):
    """What a person wants to see of the list."""

    state: Annotated[str, _check_choice(*STATES)] = "all"
    alert: _Text = ""
    service: _Text = ""
    period: Annotated[str, _check_choice(*PERIODS)] = ""
    cursor: _Cursor = None

    @property
    def is_filtered(self) -> bool:
        """Whether some incidents are left out."""
        return self.state != "all" or bool(self.alert or self.service or self.period)

    def build_filter(self, now: float) -> IncidentFilter:
        """What the outbox is asked for."""
        _, status, is_acknowledged = STATES[self.state]
        _, seconds = PERIODS[self.period]
        since = None if seconds is None else now - seconds
        return IncidentFilter(status, is_acknowledged, self.alert or None, self.service or None, since)

    def build_link(self, **changes: str) -> str:
        """The address of another page, the rest as it is."""
        values = {**self.model_dump(include={"state", "alert", "service", "period"}), **changes}
        given = {name: value for name, value in values.items() if value and (name, value) != ("state", "all")}
        return f"/incidents?{urlencode(given)}" if given else "/incidents"


class _OneQuery(Query):
    episode: Annotated[int | None, BeforeValidator(parse_episode)] = None
    cursor: _Cursor = None
    fault: Literal["wait"] | None = None
    """Whether to ask the exporter, for some seconds; otherwise what it said a moment ago counts."""


class _EpisodeRequest(msgspec.Struct, forbid_unknown_fields=True):
    episode: Annotated[int, msgspec.Meta(ge=1, le=999_999_999)] | None = None


class _SilenceRequest(msgspec.Struct):
    episode: Annotated[int, msgspec.Meta(ge=1, le=999_999_999)]
    seconds: int
    comment: str = ""


class IncidentPages:
    """The list, one incident, its post-mortem and its actions.

    Args:
        store: the outbox.
        reader: reads one incident.
        settings: the relay's own address.
        acknowledging: acknowledges and withdraws.
        wake_silences: called when a silence waits; None without an Alertmanager, where there are no silences.
    """

    def __init__(
        self,
        store: Store,
        reader: IncidentReader,
        settings: RelaySettings,
        acknowledging: Acknowledging,
        wake_silences: Callable[[], None] | None,
    ) -> None:
        self._store = store
        self._reader = reader
        self._acknowledging = acknowledging
        self._public_url = settings.auth.public_url
        self._wake_silences = wake_silences

    def add_routes(self, console: Console) -> None:
        """The routes of pages, API and actions."""
        one, refused = "/incidents/{id}", "Nothing was changed"
        console.page("/incidents", self._list, "incidents.html.j2", title="Incidents")
        console.api("/incidents", self._list_for_program)
        console.page(one, self._show, "incident.html.j2")
        console.api(one, self._show)
        console.page(f"{one}/export.md", self._export)
        console.action(f"{one}/acknowledge", self._acknowledge, Role.RESPONDER, "acknowledge", refused=refused)
        console.action(f"{one}/unacknowledge", self._unacknowledge, Role.RESPONDER, "unacknowledge", refused=refused)
        refused = "Nothing was silenced"
        console.action(f"{one}/silence", self._silence, Role.ADMIN, "silence", refused=refused, has_api=False)

    async def _list(self, request: Request) -> dict[str, Any]:
        query = parse_query(ListQuery, request.query_params)
        chosen = query.build_filter(self._store.clock())
        page = await list_incidents(self._store, chosen, limit=_PAGE_SIZE, before=query.cursor)
        return {
            "query": query,
            "incidents": page.incidents,
            "older": query.build_link(cursor=cursor) if (cursor := format_cursor(page.before)) else None,
            "is_first_page": query.cursor is None,
            "states": STATES,
            "periods": PERIODS,
            "lights": DELIVERY_LIGHTS,
        }

    async def _list_for_program(self, request: Request) -> dict[str, Any]:
        query = parse_query(_ApiQuery, request.query_params, self._store.clock())
        chosen = IncidentFilter(query.status, query.acknowledged, query.alertname, query.service, query.since)
        page = await list_incidents(self._store, chosen, limit=query.limit, before=query.cursor)
        rows = [encode_incident(incident) for incident in page.incidents]
        return {"incidents": rows, "next_cursor": format_cursor(page.before)}

    async def _show(self, request: Request) -> dict[str, Any] | Response:
        query = parse_query(_OneQuery, request.query_params)
        incident_id = await self._find_id(request)
        if incident_id != request.path_params["id"] and not is_api(request):
            return RedirectResponse(_build_address(incident_id, request.query_params), status_code=307)
        waits = query.fault is not None
        view = await self._reader.read(incident_id, episode=query.episode, before=query.cursor, waits_for_fault=waits)
        if is_api(request):
            return await self._encode(view)
        position = {"episode": query.episode, "cursor": format_cursor(query.cursor)}
        return {
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

    async def _encode(self, view: IncidentView) -> dict[str, Any]:
        chosen = DeliveryFilter(incident_id=view.incident.id)
        listed = await list_deliveries(self._store, chosen, limit=_MAX_DELIVERIES)
        timeline, history = view.timeline, view.history
        return {
            **encode_incident(view.incident),
            "deliveries": [encode_delivery(delivery) for delivery in listed.deliveries],
            "timeline_episode": history.episode,
            "timeline": [*map(encode_entry, timeline.entries)],
            "timeline_cursor": format_cursor(history.earlier),
            "timeline_is_cut": history.is_cut,
            "hops": {"start": [*map(encode_hop, timeline.start)], "end": [*map(encode_hop, timeline.end)]},
        }

    async def _export(self, request: Request) -> Response:
        query = parse_query(_OneQuery, request.query_params)
        view = await self._reader.read(
            await self._find_id(request),
            episode=query.episode,
            before=query.cursor,
            limit=_EXPORTED_EVENTS,
            waits_for_fault=True,
        )
        position = {"episode": None if view.history.is_current else view.history.episode}
        base = self._public_url or f"{request.scope.get('scheme', 'http')}://{request.headers.get('host', '')}"
        address = f"{base}{_build_address(view.incident.id, position)}"
        name = f"incident-{view.incident.id[:12]}-{view.history.episode}.md"
        headers = {"Content-Disposition": f'attachment; filename="{name}"'}
        text = await asyncio.to_thread(build_markdown, view, self._store.clock(), address)
        return Response(text, media_type="text/markdown", headers=headers)

    async def _acknowledge(self, request: Request) -> Done:
        done = await self._change(request)
        message = "Acknowledged." if done.is_changed else f"{done.by} has acknowledged it already."
        return _build_answer(done, message)

    async def _unacknowledge(self, request: Request) -> Done:
        done = await self._change(request, withdraws=True)
        message = "Nobody takes care of it now; its escalation starts again."
        return _build_answer(done, message if done.is_changed else "Nobody had acknowledged it.")

    async def _change(self, request: Request, *, withdraws: bool = False) -> Acknowledgement:
        episode, via = await _read_episode(request), "api" if is_api(request) else "console"
        incident_id, who, peer = await self._find_id(request), get_caller(request).name, get_peer(request)
        done = await self._acknowledging.change(
            incident_id, withdraws=withdraws, episode=episode, who=who, via=via, peer=peer
        )
        describe_action(request, is_stored=True, changed=done.is_changed)
        return done

    async def _silence(self, request: Request) -> Done:
        describe_action(request, is_stored=True)  # the worker stores what became of it
        if self._wake_silences is None:
            raise RefusedError("set alertmanager.urls, so that the relay knows where", 409)
        form = await read_fields(request, _SilenceRequest, "a form", 64 * 1024)
        if form.seconds not in SILENCE_SECONDS:
            raise RefusedError("expected one of the durations; choose one, and try again")
        silence = SilenceRequest(
            id=uuid4().hex,
            incident_id=_read_id(request),
            episode=form.episode,
            who=truncate(clean_line(get_caller(request).name), _MAX_NAME),
            peer=get_peer(request) or "console",
            seconds=float(form.seconds),
            comment=truncate(clean_line(form.comment), _MAX_COMMENT) or None,
        )
        await request_silence(self._store, silence)
        self._wake_silences()
        message = "The silence is requested; the timeline shows what Alertmanager answers."
        return Done(message, f"/incidents/{silence.incident_id}")

    async def _find_id(self, request: Request) -> str:
        return await find_incident_id(self._store, _read_id(request))


def _build_answer(done: Acknowledgement, message: str) -> Done:
    at = format_json_time(done.at)
    document = {"id": done.incident_id, "acknowledged_by": done.by, "acknowledged_at": at}
    return Done(message, f"/incidents/{done.incident_id}", document)


async def _read_episode(request: Request) -> int | None:
    """The episode that an action names; None for the current one, which a program alone may leave out."""
    describe_action(request, is_stored=True)  # with what it changes
    episode = (await read_fields(request, _EpisodeRequest, '{"episode": NUMBER}, or an empty body')).episode
    if episode is None and not is_api(request):
        raise RefusedError("the form names no episode; reload the page, and try again")
    return episode


def _read_id(request: Request) -> str:
    return clean_for_database(request.path_params["id"])


def _build_address(incident_id: str, position: Mapping[str, object]) -> str:
    given = {name: value for name, value in position.items() if value}
    return f"/incidents/{quote(incident_id, safe='')}" + (f"?{urlencode(given)}" if given else "")
