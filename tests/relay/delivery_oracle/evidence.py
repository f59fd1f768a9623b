"""What the oracle judges: accepted events, stored deliveries, and the messages that reached their readers. Pure."""

from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from sqlalchemy import Row

from services.relay.outbox.tables import UNFINISHED, WAITING


class AlertState(NamedTuple):
    """The state of one alert, as a message shows it."""

    version: int
    """The number of the webhook that brought it; later webhooks of the group have higher numbers."""
    state: str
    """`firing` or `resolved`."""


Alerts = frozenset[tuple[Hashable, AlertState]]
DeliveryKey = tuple[str, str]
"""An incident on a channel."""


@dataclass(frozen=True)
class Event:
    """An accepted webhook."""

    seq: int
    id: str
    incident: str
    group: Hashable
    """What readers recognize an incident by."""
    alerts: Alerts
    channels: tuple[str, ...]
    """Each of them has to deliver it."""
    episode: int = 1

    @property
    def is_firing(self) -> bool:
        return any(what.state == "firing" for _, what in self.alerts)


@dataclass(frozen=True)
class Delivery:
    """A row of the outbox."""

    id: str
    seq: int
    event_seq: int
    first_event_seq: int
    incident: str
    channel: str
    state: str
    episode: int = 1
    is_finished: bool = True
    lease: str | None = None
    superseded_by: str | None = None
    key: str = ""
    """How its readers recognize a repeat: its id in Slack, the Message-ID of a mail, the dedup_key of a page."""
    receipts: int = 0
    unknown_outcomes: int = 0
    """How many attempts may have arrived without anybody knowing: they have no receipt, or got no answer."""

    @property
    def delivery_key(self) -> DeliveryKey:
        return self.incident, self.channel

    @property
    def is_unfinished(self) -> bool:
        return self.state in UNFINISHED

    @property
    def is_waiting(self) -> bool:
        return self.state in WAITING

    def covers(self, event_seq: int) -> bool:
        """Whether it delivers an event; a superseded delivery delivers none."""
        return self.state != "superseded" and self.first_event_seq <= event_seq <= self.event_seq


@dataclass(frozen=True)
class Message:
    """A message that reached one reader."""

    channel: str
    reader: str
    """A mailbox, or the channel itself."""
    key: str
    """As in `Delivery`."""
    group: Hashable
    alerts: Alerts
    action: str = ""
    """PagerDuty's: `trigger` or `resolve`."""
    is_marked_repeat: bool = False
    """Whether it says that it may be a repeat."""

    @property
    def number(self) -> int:
        """Of the newest webhook that it shows."""
        return max((what.version for _, what in self.alerts), default=0)


@dataclass(frozen=True)
class Channel:
    """What a channel promises its readers."""

    readers: tuple[str, ...]
    merges: bool = True
    """Whether what waits for an incident becomes one message."""
    opens_pages: bool = False
    """Whether its messages open and resolve a page."""
    is_edited: bool = False
    """Whether the first message of an episode is edited as its incident changes."""
    is_searched: bool = False
    """Whether the relay looks for a message there before it sends it again."""


@dataclass(frozen=True)
class History:
    """One run of a relay."""

    answered: Sequence[str]
    """The ids of the events that Alertmanager was told are accepted."""
    events: Sequence[Event]
    """In the order of acceptance."""
    deliveries: Sequence[Delivery]
    """In the order of their seq."""
    messages: Sequence[Message]
    """In the order of their arrival."""
    channels: Mapping[str, Channel]
    leases_lost: int = 0
    """How many leases ended during a send: each explains one repeat or late message for each reader."""
    requeued: frozenset[str] = frozenset()
    """The deliveries that a person sent again."""


def read_delivery(row: Row[Any], **more: Any) -> Delivery:
    """A row of the table; `more` are the fields that the table does not have."""
    return Delivery(
        id=row.id,
        seq=row.seq,
        event_seq=row.event_seq,
        first_event_seq=row.first_event_seq,
        incident=row.incident_id,
        channel=row.channel,
        state=row.state,
        episode=row.episode,
        is_finished=row.finished_at is not None,
        lease=row.lease,
        superseded_by=row.superseded_by,
        **more,
    )


def group_by_incident_and_channel(deliveries: Sequence[Delivery]) -> dict[DeliveryKey, list[Delivery]]:
    """The deliveries of each key in their order."""
    by_key: dict[DeliveryKey, list[Delivery]] = {}
    for delivery in sorted(deliveries, key=lambda each: each.seq):
        by_key.setdefault(delivery.delivery_key, []).append(delivery)
    return by_key


def merge_alerts(events: Sequence[Event]) -> Alerts:
    """Every alert of the events in its last state."""
    merged: dict[Hashable, AlertState] = {}
    for event in events:
        merged |= dict(event.alerts)
    return frozenset(merged.items())


def find_last_events(events: Sequence[Event], message: Message) -> Iterator[Event]:
    """Each event that can be the last one that a message shows.

    There may be several: the same webhook may have been accepted twice, with others in between, since a replica that
    was stopped accepts it late.
    """
    accepted: set[tuple[Hashable, AlertState]] = set()
    for event in events:
        accepted |= event.alerts
        if event.alerts <= message.alerts <= accepted:
            yield event


def find_last_seq(events: Sequence[Event], message: Message, since: int) -> int | None:
    """The seq of the last event that a message shows: the first from `since` on that it can be; None if none can."""
    return next((event.seq for event in find_last_events(events, message) if event.seq >= since), None)
