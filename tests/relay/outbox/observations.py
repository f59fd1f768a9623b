"""What an observer of the outbox notes: what was accepted, who holds which claim, and what arrived."""

from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

from services.relay.model import Claim, Status
from tests.relay.delivery_oracle.evidence import (
    Alerts,
    AlertState,
    Channel,
    Delivery,
    DeliveryKey,
    Event,
    History,
    Message,
    merge_alerts,
)

AlertStatuses = dict[str, Status]
"""Of a webhook's alerts, by name."""
Deliveries = Mapping[str, Delivery]
"""By their id, in the order of their seq."""
CHANNELS: Final = {
    "slack": Channel(("slack",)),
    "mail": Channel(("mail",)),
    "log": Channel(("log",), merges=False),
}


@dataclass
class OwnedClaim:
    """A claim and who has it."""

    claim: Claim
    owner: str
    until: float
    """When its holder stops, by a clock that nobody sets."""
    exclusive_until: float
    """Until when nobody else may get it, by the same clock; earlier only where the outbox ended all leases."""
    arrived: bool = False
    digest: Claim | None = None
    """The message of several deliveries that it is in."""
    is_named_only: bool = False
    """Whether that only names it."""

    @property
    def delivery_key(self) -> DeliveryKey:
        return self.claim.task.incident_id, self.claim.task.channel


@dataclass
class Observations:
    events: dict[int, Event] = field(default_factory=dict)
    live: dict[DeliveryKey, OwnedClaim] = field(default_factory=dict)
    """The latest claim of each key, where it was not ended."""
    messages: list[Message] = field(default_factory=list)
    sent_after_lease: int = 0
    """How many messages arrived from a claim that was no longer the latest of its key."""
    progress: dict[str, str] = field(default_factory=dict)
    """Of each delivery."""
    requeued: set[str] = field(default_factory=set)
    sent_alone: set[str] = field(default_factory=set)
    """The deliveries that arrived as a message of their own."""
    digests: dict[str, dict[tuple[str, int], int]] = field(default_factory=dict)
    """Of each digest that arrived: the event that it shows of each incident and episode."""

    def accept(
        self,
        seq: int,
        event_id: str,
        incident: str,
        alerts: AlertStatuses,
        channels: tuple[str, ...],
        episode: int,
    ) -> None:
        states = frozenset((name, AlertState(seq, status.value)) for name, status in alerts.items())
        self.events[seq] = Event(seq, event_id, incident, incident, states, channels, episode)

    def repeat(self, seq: int, channels: tuple[str, ...]) -> None:
        """The event goes to further channels."""
        event = self.events[seq]
        self.events[seq] = replace(event, channels=(*event.channels, *channels))

    def latest_seq(self, incident: str) -> int:
        return max((event.seq for event in self.events.values() if event.incident == incident), default=0)

    def latest_event(self, incident: str) -> Event:
        return self.events[self.latest_seq(incident)]

    def alerts_of(self, claim: Claim) -> Alerts:
        """Every alert of the events that it delivers, in its last state."""
        return merge_alerts(
            [
                event
                for event in self.events.values()
                if event.incident == claim.task.incident_id
                and claim.task.first_event_seq <= event.seq <= claim.task.last_event_seq
            ]
        )

    def statuses_of(self, claim: Claim) -> dict[Hashable, str]:
        return {alert: what.state for alert, what in self.alerts_of(claim)}

    def arrive(self, owned: OwnedClaim) -> None:
        if owned.arrived:
            return
        owned.arrived = True
        if owned.digest is not None:  # one that arrived before is found, and stays as it is until it is edited
            states = self.digests.setdefault(owned.digest.task.delivery_id, {})
            states.setdefault((owned.claim.task.incident_id, owned.claim.task.episode), owned.claim.task.last_event_seq)
        else:
            self.sent_alone.add(owned.claim.task.delivery_id)
        if owned.is_named_only:  # its own message is still to come
            return
        self.sent_after_lease += self.live.get(owned.delivery_key) is not owned
        incident, channel = owned.delivery_key
        self.messages.append(
            Message(
                channel,
                channel,
                owned.claim.task.delivery_id,
                incident,
                self.alerts_of(owned.claim),
                is_marked_repeat=owned.claim.task.maybe_sent,
            )
        )

    def history(self, deliveries: Sequence[Delivery]) -> History:
        events = list(self.events.values())
        return History(
            [event.id for event in events],
            sorted(events, key=lambda event: event.seq),
            deliveries,
            self.messages,
            CHANNELS,
            self.sent_after_lease,
            frozenset(self.requeued),
        )


def count_superseded(before: Deliveries, after: Deliveries) -> Counter[str]:
    """How many deliveries of each channel were merged away between the two."""
    return Counter(
        row.channel
        for row in after.values()
        if row.state == "superseded" and (row.id not in before or before[row.id].state != "superseded")
    )
