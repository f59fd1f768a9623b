"""A stand-in for PagerDuty's Events API v2: an event comes in, incidents open and resolve.

Rules: https://developer.pagerduty.com/docs/send-alert-event (fields, limits, answers),
https://developer.pagerduty.com/docs/send-change-event, which calls nobody, and
https://developer.pagerduty.com/docs/events-api-v2-overview (deduplication).
"""

import json
import uuid
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from typing import Any, Literal
from urllib.parse import urlsplit

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from ops.demo.stand_ins.provider_faults import ChangeFeed, Provider, ProviderFaults, respond_with_fault
from shared.http.limits import BodyTooLargeError, read_body

MAX_BYTES = 512 * 1024
MAX_SUMMARY = 1024
MAX_DEDUP_KEY = 255
ACTIONS = ("trigger", "acknowledge", "resolve")
SEVERITIES = ("critical", "error", "warning", "info")
MAX_STORED = 500

Json = dict[str, Any]


@dataclass
class PagerDutyIncident:
    """An incident as a person on call sees it; `log` has its events, oldest first."""

    dedup_key: str
    status: Literal["triggered", "acknowledged", "resolved"]
    summary: str
    severity: str
    source: str
    links: list[Json]
    client: Any
    client_url: Any
    custom_details: Any
    opened_at: float
    resolved_at: float | None = None
    log: deque[Json] = field(default_factory=lambda: deque(maxlen=MAX_STORED))


class PagerDuty:
    """One account: its routing keys, its incidents, every accepted event, and its change events."""

    def __init__(
        self, keys: Iterable[str], faults: ProviderFaults, changes: ChangeFeed, clock: Callable[[], float]
    ) -> None:
        self._keys = frozenset(keys)
        self._faults = faults
        self._changes = changes
        self._clock = clock
        self.incidents: deque[PagerDutyIncident] = deque(maxlen=MAX_STORED)
        self.events: deque[Json] = deque(maxlen=MAX_STORED)
        self.change_events: deque[Json] = deque(maxlen=MAX_STORED)

    def get_state(self) -> Json:
        """Incidents, events and change events, oldest first, as JSON. Routing keys are secrets and not part of it."""
        return {
            "incidents": [{**asdict(incident), "log": list(incident.log)} for incident in self.incidents],
            "events": list(self.events),
            "change_events": list(self.change_events),
        }

    async def enqueue(self, request: Request) -> Response:
        """`POST /v2/enqueue`: 202, or 400 with `errors`, 413, 429."""
        return await self._take(request, "enqueue", self._respond)

    async def enqueue_change(self, request: Request) -> Response:
        """`POST /v2/change/enqueue`: the same."""
        return await self._take(request, "change/enqueue", self._respond_to_change)

    async def _take(self, request: Request, path: str, respond: Callable[[Json], Response]) -> Response:
        try:
            raw = await read_body(request.stream(), MAX_BYTES)
        except BodyTooLargeError:
            return _build_refusal(f"Event size exceeds {MAX_BYTES} bytes", status=413)
        fault = self._faults.match(Provider.PAGERDUTY, lambda fault: fault.method in {None, path})
        return await respond_with_fault(
            self._faults,
            fault,
            lambda: _respond_to_object(raw, respond),
            build_error=_build_refusal,
            build_rate_limited=_build_throttle_response,
        )

    def _respond_to_change(self, event: Json) -> Response:
        if errors := list(find_change_errors(event, self._keys)):
            return _build_refusal(*errors)
        found = {"at": self._clock(), "payload": event["payload"], "links": event.get("links") or []}
        self.change_events.append(found)
        self._changes.publish()
        return JSONResponse({"status": "success", "message": "Change event processed"}, status_code=202)

    def _respond(self, event: Json) -> Response:
        if errors := list(find_event_errors(event, self._keys)):
            return _build_refusal(*errors)
        dedup_key = event.get("dedup_key") or uuid.uuid4().hex
        self._store(event, dedup_key)
        accepted = {"status": "success", "message": "Event processed", "dedup_key": dedup_key}
        return JSONResponse(accepted, status_code=202)

    def _store(self, event: Json, dedup_key: str) -> None:
        now = self._clock()
        action, payload, links = event["event_action"], event.get("payload") or {}, event.get("links") or []
        self.events.append(
            {"at": now, "event_action": action, "dedup_key": dedup_key, "payload": payload, "links": links}
        )
        self._changes.publish()
        incident = self._find_open(dedup_key)
        if incident is None:
            if action != "trigger":
                return  # an acknowledge or resolve without an open alert is accepted and dropped
            incident = PagerDutyIncident(
                dedup_key=dedup_key,
                status="triggered",
                summary=payload["summary"],
                severity=payload["severity"],
                source=payload["source"],
                links=links,
                client=event.get("client"),
                client_url=event.get("client_url"),
                custom_details=payload.get("custom_details"),
                opened_at=now,
            )
            self.incidents.append(incident)
        elif action == "acknowledge":
            incident.status = "acknowledged"
        elif action == "resolve":
            incident.status, incident.resolved_at = "resolved", now
        # A trigger for an open alert is one more line in its log and changes nothing else.
        incident.log.append({"at": now, "event_action": action, "summary": payload.get("summary")})

    def _find_open(self, dedup_key: str) -> PagerDutyIncident | None:
        found = (i for i in reversed(self.incidents) if i.dedup_key == dedup_key and i.status != "resolved")
        return next(found, None)


def _respond_to_object(raw: bytes, respond: Callable[[Json], Response]) -> Response:
    try:
        event = json.loads(raw)
    except ValueError:
        return _build_refusal("JSON is invalid")
    return respond(event) if isinstance(event, dict) else _build_refusal("Event is not an object")


def find_change_errors(event: Json, keys: frozenset[str]) -> Iterable[str]:
    """What PagerDuty would not take as a change event: of its payload only the summary is required."""
    yield from _find_key_errors(event.get("routing_key"), keys)
    yield from _find_payload_errors(event.get("payload"), ("summary",))
    yield from _find_attachment_errors(event, "links", "href", ("http", "https"))


def _find_key_errors(routing_key: object, keys: frozenset[str]) -> Iterable[str]:
    if not routing_key or not isinstance(routing_key, str):
        yield "'routing_key' is missing or blank"
    elif len(routing_key) != 32:
        yield "Length of 'routing_key' is incorrect (should be 32 characters)"
    elif routing_key not in keys:
        yield "Invalid routing key"


def find_event_errors(event: Json, keys: frozenset[str]) -> Iterable[str]:
    """Everything that PagerDuty would not take, in its manner of speaking."""
    yield from _find_key_errors(event.get("routing_key"), keys)
    action = event.get("event_action")
    if action not in ACTIONS:
        yield f"'event_action' is invalid (must be one of the following: {', '.join(ACTIONS)})"
    dedup_key = event.get("dedup_key")
    if dedup_key is None:
        if action in ("acknowledge", "resolve"):
            yield "'dedup_key' is missing or blank"
    elif not isinstance(dedup_key, str) or len(dedup_key) > MAX_DEDUP_KEY:
        yield f"'dedup_key' is invalid (must be a string of at most {MAX_DEDUP_KEY} characters)"
    if action == "trigger":
        yield from _find_payload_errors(event.get("payload"), ("summary", "source", "severity"))
    yield from _find_attachment_errors(event, "links", "href", ("http", "https"))
    yield from _find_attachment_errors(event, "images", "src", ("https",))


def _find_payload_errors(payload: object, required: tuple[str, ...]) -> Iterable[str]:
    if not isinstance(payload, dict):
        yield "'payload' is missing or blank"
        return
    for name in required:
        if not payload.get(name) or not isinstance(payload[name], str):
            yield f"'payload.{name}' is missing or blank"
    if isinstance(payload.get("summary"), str) and len(payload["summary"]) > MAX_SUMMARY:
        yield f"'payload.summary' is too long (maximum is {MAX_SUMMARY} characters)"
    if payload.get("severity") and payload["severity"] not in SEVERITIES:
        yield f"'payload.severity' is invalid (must be one of the following: {', '.join(SEVERITIES)})"


def _find_attachment_errors(event: Json, name: str, address: str, schemes: tuple[str, ...]) -> Iterable[str]:
    items = event.get(name)
    if items is None:
        return
    if not isinstance(items, list):
        yield f"'{name}' is invalid (must be an array)"
        return
    for i, item in enumerate(items):
        url = item.get(address) if isinstance(item, dict) else None
        if not isinstance(url, str) or _get_scheme(url) not in schemes:
            yield f"'{name}[{i}].{address}' is invalid (must be a URL: {' or '.join(schemes)})"


def _get_scheme(url: str) -> str:
    try:
        parts = urlsplit(url)
    except ValueError:
        return ""
    return parts.scheme.lower() if parts.netloc else ""


def _build_refusal(*errors: str, status: int = 400) -> Response:
    refusal = {"status": "invalid event", "message": "Event object is invalid", "errors": list(errors)}
    return JSONResponse(refusal, status_code=status)


def _build_throttle_response(headers: dict[str, str]) -> Response:
    message = "Requests for this service are arriving too quickly.  Please retry later."
    refusal = {"status": "throttle exceeded", "message": message, "errors": ["Enhance Your Calm."]}
    return JSONResponse(refusal, status_code=429, headers=headers)
