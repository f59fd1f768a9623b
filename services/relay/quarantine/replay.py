"""Accepts a webhook from the quarantine after all: says what that would do now, and does it once a person confirms.

An old webhook may page somebody about what is over, or resolve what fires. So a replay needs the code of a preview,
which stands for this body and this state of its incident. Where either has changed, nothing happens.
"""

import hashlib
import json
from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from typing import Final, NamedTuple

from services.relay.intake.acceptance import Acceptance, check_source
from services.relay.intake.routing import RouteSettings
from services.relay.intake.webhook import MalformedWebhookError, parse_webhook
from services.relay.model import EscalationStep, Status
from services.relay.outbox.accept import AcceptResult, DeliveryPlan, IncomingEvent
from services.relay.outbox.context import build_title
from services.relay.outbox.incidents import IncidentState, read_state
from services.relay.outbox.quarantine import MAX_BODY_BYTES, AlreadyReplayedError, QuarantineEntry, Replay, read_entry
from shared.http.json_api import RefusedError
from shared.process.concurrency import run_in_thread_if_large

_OLD_SECONDS: Final = 300.0
"""Alertmanager's default `group_interval`: after it, a newer notification of a group that changed was due."""


class IncidentStatus(StrEnum):
    """What the outbox knows of the incident of a webhook."""

    UNKNOWN = "unknown"
    FIRING = "firing"
    RESOLVED = "resolved"


@dataclass(frozen=True, slots=True)
class ReplayPreview:
    """What the replay of a webhook would do now. Times are unix seconds."""

    code: str
    """Confirms it."""
    incident_id: str
    incident_status: IncidentStatus
    title: str
    alertname: str
    source: str
    receiver: str
    status: Status
    """Of the webhook."""
    alert_count: int
    started_at: float
    """When the oldest of its alerts started."""
    received_at: float
    """When it was refused."""
    is_duplicate: bool
    """Whether it repeats what was accepted, so that nothing would be sent."""
    channels: tuple[str, ...]
    escalation: tuple[EscalationStep, ...]
    ignored_heartbeats: tuple[str, ...]
    """The watchdogs whose heartbeats it has: old ones prove nothing, and are left out."""
    warnings: tuple[str, ...]
    """Sentences: what a person should know before."""


class ReplayRefusedError(RefusedError):
    """It cannot be replayed as it is; the message is a sentence."""

    status = 409


class NotConfirmedError(RefusedError):
    """Nothing was done: the code is missing, or is not that of `preview`."""

    status = 409

    def __init__(self, preview: ReplayPreview) -> None:
        super().__init__("not confirmed: read what the replay would do, then repeat it with the code of this preview")
        self.preview = preview


class _Parsed(NamedTuple):
    incoming: IncomingEvent
    route: RouteSettings | None
    ignored_heartbeats: tuple[str, ...]


class Replays:
    """Replays entries of the quarantine as they are kept, or repaired."""

    def __init__(self, acceptance: Acceptance) -> None:
        self._acceptance = acceptance

    async def preview(self, entry: QuarantineEntry, body: bytes) -> ReplayPreview:
        """What the replay of an entry would do now.

        Raises:
            MalformedWebhookError, TooManyTextsError: as for `POST /alerts`.
            ReplayRefusedError: it has nothing to accept, or was replayed.
            StoreUnavailableError: the incident cannot be read.
        """
        parsed = await self._parse(entry, body)
        state, now = await read_state(self._acceptance.store, parsed.incoming.incident_id, parsed.incoming.fingerprint)
        return self._build_preview(entry, parsed, state, now)

    async def replay(
        self, entry: QuarantineEntry, body: bytes, code: str | None, *, who: str, peer: str | None
    ) -> AcceptResult:
        """Accepts an entry as if it had just been sent, once; `code` is that of the preview that the caller has read.

        Raises:
            NotConfirmedError: nothing was changed.
            MalformedWebhookError, TooManyTextsError: as for `POST /alerts`.
            ReplayRefusedError: it has nothing to accept.
            UnknownEntryError, AlreadyReplayedError: nothing was changed.
            StoreUnavailableError: it is not known to be committed.
        """
        parsed = await self._parse(entry, body)

        def check(state: IncidentState | None, plan: DeliveryPlan | None) -> None:
            if code is None or code != _compute_code(entry, parsed.incoming, state, plan):
                raise _OutdatedCodeError

        incoming = parsed.incoming._replace(replay=Replay(entry.id, who, peer))
        try:
            return await self._acceptance.commit(incoming, parsed.route, check)
        except _OutdatedCodeError:
            current = await read_entry(self._acceptance.store, entry.id)  # it may have been replayed in this moment
            raise NotConfirmedError(await self.preview(current, body)) from None

    async def _parse(self, entry: QuarantineEntry, body: bytes) -> _Parsed:
        if entry.replayed_at is not None:
            raise AlreadyReplayedError(f"it was replayed already, by {entry.replayed_by}")
        if len(body) > MAX_BODY_BYTES:
            raise ReplayRefusedError(f"the body has {len(body)} bytes; expected at most {MAX_BODY_BYTES}")
        check_source(entry.source)
        settings = self._acceptance.settings
        work = partial(parse_webhook, body, entry.source, settings.watchdogs, settings.routes, settings.proven_channels)
        try:
            heartbeats, _, incoming, route = await run_in_thread_if_large(len(body), work)
        except MalformedWebhookError as error:
            if len(body) == MAX_BODY_BYTES == entry.body_bytes:
                raise MalformedWebhookError(f"{error}; only the first {MAX_BODY_BYTES // 1024} KiB are kept") from None
            raise
        if incoming is None:
            raise ReplayRefusedError("it has heartbeats or proofs alone, and an old one proves nothing: no need")
        return _Parsed(incoming, route, tuple(sorted(heartbeats)))

    def _build_preview(
        self, entry: QuarantineEntry, parsed: _Parsed, state: IncidentState | None, now: float
    ) -> ReplayPreview:
        incoming, event = parsed.incoming, parsed.incoming.event
        plan = self._acceptance.plan(incoming, parsed.route, state, now)
        is_duplicate = plan is None or (plan.is_repeat and not plan.channels)
        return ReplayPreview(
            code=_compute_code(entry, incoming, state, plan),
            incident_id=incoming.incident_id,
            incident_status=_find_status(state),
            title=build_title(event),
            alertname=incoming.alertname,
            source=event.source,
            receiver=event.receiver,
            status=event.status,
            alert_count=len(event.alerts) + event.unlisted_count,
            started_at=min(alert.starts_at for alert in event.alerts).timestamp(),
            received_at=entry.received_at,
            is_duplicate=is_duplicate,
            channels=plan.channels if plan else (),
            escalation=plan.escalation if plan and plan.is_open else (),
            ignored_heartbeats=parsed.ignored_heartbeats,
            warnings=() if is_duplicate else tuple(_list_warnings(entry, event.status, state, now)),
        )


class _OutdatedCodeError(Exception):
    """The code is not that of what would happen."""


def _find_status(state: IncidentState | None) -> IncidentStatus:
    if state is None:
        return IncidentStatus.UNKNOWN
    return IncidentStatus.FIRING if state.is_open else IncidentStatus.RESOLVED


def _compute_code(
    entry: QuarantineEntry, incoming: IncomingEvent, state: IncidentState | None, plan: DeliveryPlan | None
) -> str:
    """Stands for the body, the latest event of its incident, and the channels."""
    latest = state and [state.event_id, state.is_open]
    content = hashlib.sha256(incoming.body).hexdigest()
    value = json.dumps([entry.id, content, incoming.incident_id, latest, plan and plan.channels])
    return hashlib.sha256(value.encode()).hexdigest()[:16]


def _list_warnings(entry: QuarantineEntry, status: Status, state: IncidentState | None, now: float) -> list[str]:
    warnings = []
    is_outdated = state is not None and state.accepted_at > entry.received_at
    if is_outdated:
        warnings.append("A newer webhook of this incident was accepted since: this one shows an older state.")
    if status is Status.FIRING:
        if state is not None and not state.is_open:
            warnings.append("The incident is resolved. This would open it again and notify people as of a new one.")
        if is_outdated or now - entry.received_at > _OLD_SECONDS:
            warnings.append(
                "Check in Alertmanager whether these alerts still fire: if not, nothing may send their end."
            )
    elif state is None:
        warnings.append("Nobody was notified of its start: only its end would be sent.")
    elif state.is_open and is_outdated:
        warnings.append("The incident fires by the newer webhook. This would resolve it.")
    return warnings
