"""An incident of the relay's own about webhooks in quarantine, because an alert in them may have reached nobody.

It goes to the default channels, and is resolved when no further webhook was quarantined for an hour.

Incidents of the relay's own, and further events of others' incidents: published through the outbox like a webhook.

Replicas detect the same at the same time, and one may stop in between. So the decision is part of the transaction, and
each is published once.
"""

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from typing import Final

from services.relay.config import RelaySettings
from services.relay.intake.routing import find_route
from services.relay.metrics import Metrics
from services.relay.model import (
    OWN_SOURCE,
    Alert,
    Event,
    Status,
    build_fingerprint,
    build_incident_id,
    find_alertname,
)
from services.relay.outbox.accept import DeliveryPlan, IncomingEvent, PlanEvent, accept_event, plan_deliveries
from services.relay.outbox.incidents import Incident, IncidentState, iterate_open_incidents, read_open_incident
from services.relay.outbox.quarantine import QuarantineEntry, list_entries
from services.relay.outbox.store import Store
from services.relay.outbox.tables import DeliveryState
from services.relay.text import clean_line, truncate


@dataclass(frozen=True, slots=True)
class SelfAlert:
    """An incident of the relay's own."""

    group: str
    """Identifies it among the relay's own, for ever."""
    labels: dict[str, str]
    title: str
    """The cause and its effect, as the rules have it."""
    summary: str
    description: str

    @property
    def incident_id(self) -> str:
        return build_incident_id(self.event(datetime.min.replace(tzinfo=UTC)))

    def event(self, starts_at: datetime) -> Event:
        annotations = {"title": self.title, "summary": self.summary, "description": self.description}
        alert = Alert(
            status=Status.FIRING,
            labels=self.labels,
            annotations=annotations,
            starts_at=starts_at,
            fingerprint=self.group,
        )
        return Event(
            source=OWN_SOURCE,
            receiver="keypulse-relay",
            group_key=self.group,
            status=alert.status,
            alerts=(alert,),
            group_labels={"alertname": self.labels["alertname"]},
            common_labels=self.labels,
            common_annotations=annotations,
        )


@dataclass(slots=True)
class AlertPublisher:
    """Commits events of the relay's own, and wakes the channels that have something new."""

    store: Store
    metrics: Metrics
    settings: RelaySettings
    wake_channels: Callable[[Iterable[str]], None]

    def now(self) -> datetime:
        return datetime.fromtimestamp(self.store.clock(), UTC)

    async def fire(self, alert: SelfAlert, channels: Collection[str]) -> bool:
        """Opens an incident on these channels; False if it is open already. Raises StoreUnavailableError."""
        event = alert.event(self.now())

        def decide(current: IncidentState | None, _now: float) -> DeliveryPlan | None:
            return None if current and current.is_open else self._plan(event, current, channels)

        return await self._accept(event, decide)

    async def resolve(self, incident: Incident, remark: str) -> bool:
        """See `publish`."""
        return incident.event is not None and await self.publish(
            incident, build_resolve(incident.event, self.now(), remark)
        )

    async def publish(self, incident: Incident, event: Event) -> bool:
        """Adds an event to an incident, on every channel on which it is open; False if it has changed since.

        If one of those is no longer configured, it may have a new name: then the routes count too. Raises
        StoreUnavailableError.
        """

        def decide(current: IncidentState | None, _now: float) -> DeliveryPlan | None:
            if current is None or current.event_id != incident.event_id:
                return None
            routes, index = self.settings.routes, find_route(event, self.settings.routes)
            routed = self.settings.default_channels if index is None else routes[index].channels
            removed = current.open_channels.difference(self.settings.channels, current.served_channels)
            channels = current.open_channels.union(routed) if removed else current.open_channels
            escalation = () if index is None else routes[index].escalation
            return self._plan(event, current, channels)._replace(escalation=escalation)

        return await self._accept(event, decide)

    def _plan(self, event: Event, state: IncidentState | None, channels: Collection[str]) -> DeliveryPlan:
        routed = tuple(sorted(set(channels).intersection(self.settings.channels)))
        return plan_deliveries(event, state, routed_channels=routed, configured_channels=self.settings.channels)

    async def _accept(self, event: Event, decide: PlanEvent) -> bool:
        incoming = IncomingEvent(
            event=event,
            incident_id=build_incident_id(event),
            fingerprint=build_fingerprint(event),
            alertname=find_alertname(event),
            body=b"",  # there was no webhook
        )
        accepted = await accept_event(self.store, incoming, decide)
        for channel in accepted.superseded_channels:
            self.metrics.deliveries.labels(channel, DeliveryState.SUPERSEDED).inc()
        self.wake_channels(accepted.channels)
        return not accepted.is_duplicate


async def resolve_removed(publisher: AlertPublisher, prefix: str, groups: Collection[str], remark: str) -> None:
    """Resolves the open incidents of the relay's own whose group begins so, and is none of these.

    Raises StoreUnavailableError.
    """
    async for incident in iterate_open_incidents(publisher.store):
        event = incident.event
        if event is None or event.source != OWN_SOURCE or not event.group_key.startswith(prefix):
            continue
        if event.group_key not in groups:
            await publisher.resolve(incident, remark)


def build_resolve(event: Event, now: datetime, remark: str) -> Event:
    """Resolves the alerts that fire in an event or were cut off, and leaves out the resolved ones."""
    firing = [alert for alert in event.alerts if alert.status is Status.FIRING]
    alerts = tuple(
        replace(alert, status=Status.RESOLVED, ends_at=max(now, alert.starts_at)) for alert in firing or event.alerts
    )
    return replace(
        event,
        status=Status.RESOLVED,
        alerts=alerts,
        truncated_alerts=0,
        unlisted_firing=b"",
        unlisted_resolved=event.unlisted_firing,
        remark=remark,
    )


_CHECK_INTERVAL: Final = 5.0
_RESOLVE_AFTER: Final = 3600.0
_MAX_REASON: Final = 200
"""Characters of a reason, which may quote the webhook."""
_RESOLVED_REMARK: Final = "No further webhook was quarantined for an hour."


class QuarantineMonitor:
    """Publishes an alert about webhooks in quarantine, on `default_channels`."""

    def __init__(self, publisher: AlertPublisher) -> None:
        self._publisher = publisher
        self._incident_id = _build_alert([]).incident_id

    async def check(self) -> float:
        """Checks once; gives the seconds until the next check. Raises StoreUnavailableError."""
        store = self._publisher.store
        now = await store.run(lambda transaction: transaction.now)
        recent = [entry for entry in await list_entries(store) if now - entry.received_at < _RESOLVE_AFTER]
        incident = await store.read(partial(read_open_incident, incident_id=self._incident_id))
        if recent and incident is None:
            await self._publisher.fire(_build_alert(recent), self._publisher.settings.default_channels)
        elif incident is not None and not recent:
            await self._publisher.resolve(incident, _RESOLVED_REMARK)
        return _CHECK_INTERVAL


def _build_alert(recent: Sequence[QuarantineEntry]) -> SelfAlert:
    """The incident of the entries of the last hour, the newest first."""
    last = truncate(clean_line(recent[0].reason), _MAX_REASON) if recent else ""
    number = "1 webhook" if len(recent) == 1 else f"{len(recent)} webhooks"
    return SelfAlert(
        group="quarantine",
        labels={"alertname": "RelayWebhookQuarantined", "severity": "warning"},
        title=f"The relay cannot accept {number}: an alert in it may have reached nobody",
        summary=f"Quarantined within the last hour: {number}",
        description=(
            f"The reason of the last one: {last}. `GET /api/quarantine` of the relay lists them, "
            "`GET /api/quarantine/ID` gives the body of one."
        ),
    )
