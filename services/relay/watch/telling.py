"""Events that the relay makes itself: the beginning of an incident of its own, and what follows in one that is known.

They are accepted like a webhook. Replicas see the same at the same time, and one may stop in between: so both are
decided within the transaction, and told once.
"""

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from services.relay import identity
from services.relay.metrics import Metrics
from services.relay.model import Alert, Event, Status
from services.relay.outbox.accept import PlanEvent, IncomingEvent, DeliveryPlan, accept_event
from services.relay.outbox.incidents import Incident
from services.relay.outbox.known import IncidentState
from services.relay.outbox.schema import State
from services.relay.outbox.store import Store


@dataclass(frozen=True, slots=True)
class SelfAlert:
    """An incident of the relay's own."""

    group: str
    """Tells it apart from the others, for ever."""
    labels: dict[str, str]
    summary: str
    description: str

    @property
    def incident_id(self) -> str:
        """As the outbox knows it."""
        return identity.build_incident_id(self.event(datetime.min.replace(tzinfo=UTC)))

    def event(self, starts_at: datetime) -> Event:
        """Its beginning."""
        annotations = {"summary": self.summary, "description": self.description}
        alert = Alert(
            status=Status.FIRING,
            labels=self.labels,
            annotations=annotations,
            starts_at=starts_at,
            ends_at=None,
            generator_url="",
            fingerprint=self.group,
        )
        return Event(
            source=identity.OWN_SOURCE,
            receiver="keypulse-relay",
            group_key=self.group,
            status=alert.status,
            alerts=(alert,),
            group_labels={"alertname": self.labels["alertname"]},
            common_labels=self.labels,
            common_annotations=annotations,
            external_url="",
            truncated_alerts=0,
        )


class AlertPublisher:
    """Commits what the relay has to tell.

    Args:
        store: the outbox.
        metrics: counts the deliveries that are merged away.
        channels: those that exist.
        wake_channels: called with the channels that have something new, after the commit.
        route: the channels to which an event of this kind goes by the routes.
    """

    def __init__(
        self,
        store: Store,
        metrics: Metrics,
        channels: Collection[str],
        wake_channels: Callable[[Iterable[str]], None],
        route: Callable[[Event], Collection[str]],
    ) -> None:
        self.store = store
        self.channels = channels
        self._metrics = metrics
        self._wake_channels = wake_channels
        self._route = route

    def now(self) -> datetime:
        """By this machine's clock."""
        return datetime.fromtimestamp(self.store.clock(), UTC)

    async def fire(self, alert: SelfAlert, channels: Collection[str]) -> bool:
        """Tells these channels of an incident of the relay's own; False where it goes on already.

        Raises:
            StoreUnavailableError: it is not known to be committed.
        """
        event = alert.event(self.now())

        def decide(known: IncidentState | None, now: float) -> DeliveryPlan | None:
            return None if known and known.is_open else self._plan(event, known, now, channels)

        return await self._accept(event, decide)

    async def resolve(self, incident: Incident, remark: str) -> bool:
        """Tells that all of an incident is over; as `follow`, with a note for the reader."""
        return incident.event is not None and await self.publish(incident, build_resolve(incident.event, self.now(), remark))

    async def publish(self, incident: Incident, event: Event) -> bool:
        """Tells what follows, on every channel that its latest episode was told on; False where it has changed since.

        Where one of those is gone, it may have another name now, to which the routes lead.

        Args:
            incident: as it was read.
            event: what follows.

        Raises:
            StoreUnavailableError: it is not known to be committed.
        """

        def decide(known: IncidentState | None, now: float) -> DeliveryPlan | None:
            if known is None or known.event_id != incident.event_id:
                return None
            gone = known.open_channels.difference(self.channels, known.served_channels)
            channels = known.open_channels.union(self._route(event)) if gone else known.open_channels
            return self._plan(event, known, now, channels)

        return await self._accept(event, decide)

    def _plan(self, event: Event, state: IncidentState | None, now: float, channels: Collection[str]) -> DeliveryPlan | None:
        routed = tuple(sorted(set(channels).intersection(self.channels)))
        return identity.plan_deliveries(
            event,
            state,
            fingerprint=identity.build_fingerprint(event),
            now=now,
            duplicate_window=0,  # no second Alertmanager tells of the same
            routed_channels=routed,
            configured_channels=self.channels,
        )

    async def _accept(self, event: Event, decide: PlanEvent) -> bool:
        incoming = IncomingEvent(
            event=event,
            incident_id=identity.build_incident_id(event),
            fingerprint=identity.build_fingerprint(event),
            alertname=identity.find_alertname(event),
            body=b"",  # there was no webhook
        )
        accepted = await accept_event(self.store, incoming, decide)
        for channel in accepted.superseded_channels:
            self._metrics.count_delivery(channel, State.SUPERSEDED)
        self._wake_channels(accepted.channels)
        return not accepted.is_duplicate


def build_resolve(event: Event, now: datetime, remark: str) -> Event:
    """The end of what fires in an event, and of what was cut off; what was told resolved with it is not told again."""
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
