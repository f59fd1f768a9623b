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
from services.relay.outbox.accept import Decide, Incoming, Plan, accept
from services.relay.outbox.incidents import Incident
from services.relay.outbox.known import Known
from services.relay.outbox.schema import State
from services.relay.outbox.store import Store


@dataclass(frozen=True, slots=True)
class Own:
    """An incident of the relay's own."""

    group: str
    """Tells it apart from the others, for ever."""
    labels: dict[str, str]
    summary: str
    description: str

    @property
    def incident_id(self) -> str:
        """As the outbox knows it."""
        return identity.incident_id(self.event(datetime.min.replace(tzinfo=UTC)))

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


class Teller:
    """Commits what the relay has to tell.

    Args:
        store: the outbox.
        metrics: counts the deliveries that are merged away.
        channels: those that exist.
        accepted: called with the channels that have something new, after the commit.
        route: the channels to which an event of this kind goes by the routes.
    """

    def __init__(
        self,
        store: Store,
        metrics: Metrics,
        channels: Collection[str],
        accepted: Callable[[Iterable[str]], None],
        route: Callable[[Event], Collection[str]],
    ) -> None:
        self.store = store
        self.channels = channels
        self._metrics = metrics
        self._accepted = accepted
        self._route = route

    def now(self) -> datetime:
        """By this machine's clock."""
        return datetime.fromtimestamp(self.store.clock(), UTC)

    async def begin(self, own: Own, channels: Collection[str]) -> bool:
        """Tells these channels of an incident of the relay's own; False where it goes on already.

        Raises:
            StoreUnavailableError: it is not known to be committed.
        """
        event = own.event(self.now())

        def decide(known: Known | None, now: float) -> Plan | None:
            return None if known and known.open else self._plan(event, known, now, channels)

        return await self._accept(event, decide)

    async def end(self, incident: Incident, note: str) -> bool:
        """Tells that all of an incident is over; as `follow`, with a note for the reader."""
        return incident.event is not None and await self.follow(incident, over(incident.event, self.now(), note))

    async def follow(self, incident: Incident, event: Event) -> bool:
        """Tells what follows, on every channel that its latest episode was told on; False where it has changed since.

        Where one of those is gone, it may have another name now, to which the routes lead.

        Args:
            incident: as it was read.
            event: what follows.

        Raises:
            StoreUnavailableError: it is not known to be committed.
        """

        def decide(known: Known | None, now: float) -> Plan | None:
            if known is None or known.event_id != incident.event_id:
                return None
            gone = known.open_on.difference(self.channels, known.served)
            channels = known.open_on.union(self._route(event)) if gone else known.open_on
            return self._plan(event, known, now, channels)

        return await self._accept(event, decide)

    def _plan(self, event: Event, known: Known | None, now: float, channels: Collection[str]) -> Plan | None:
        routed = tuple(sorted(set(channels).intersection(self.channels)))
        return identity.plan(
            event,
            known,
            content=identity.fingerprint(event),
            now=now,
            duplicate_window=0,  # no second Alertmanager tells of the same
            routed=routed,
            configured=self.channels,
        )

    async def _accept(self, event: Event, decide: Decide) -> bool:
        incoming = Incoming(
            event=event,
            incident_id=identity.incident_id(event),
            fingerprint=identity.fingerprint(event),
            alertname=identity.alertname(event),
            body=b"",  # there was no webhook
        )
        accepted = await accept(self.store, incoming, decide)
        for channel in accepted.superseded:
            self._metrics.ended(channel, State.SUPERSEDED)
        self._accepted(accepted.channels)
        return not accepted.duplicate


def over(event: Event, now: datetime, note: str) -> Event:
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
        note=note,
    )
