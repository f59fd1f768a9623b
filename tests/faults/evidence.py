"""What the judge looks at: what was accepted, what became of it, and what reached its readers."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from tests.faults.incidents import Alert, PublishedEvent

Alerts = frozenset[tuple[Alert, PublishedEvent]]


@dataclass(frozen=True)
class Event:
    """An accepted webhook, from the outbox."""

    seq: int
    id: str
    incident: str
    group: int
    alerts: Alerts

    @property
    def over(self) -> bool:
        """Whether the whole group is resolved."""
        return all(what.state == "resolved" for _, what in self.alerts)


@dataclass(frozen=True)
class Delivery:
    """A delivery, from the outbox."""

    id: str
    event_seq: int
    first_event_seq: int
    incident: str
    channel: str
    state: str
    key: str
    """By which its readers have to know it again: its id in Slack, the Message-ID of a mail, a page's dedup_key."""
    superseded_by: str | None = None
    taken: int = 0
    """How many receipts say that its provider took it."""
    doubts: int = 0
    """How many claims of it ended so that nobody knows whether it arrived: without a receipt, or without an answer."""


@dataclass(frozen=True)
class Said:
    """A message that reached one reader, from a stand-in."""

    channel: str
    place: str
    """A mailbox, or the channel itself."""
    key: str
    """As in `Delivery`."""
    group: int
    alerts: Alerts
    action: str = ""
    """PagerDuty's: `trigger` or `resolve`."""
    says_repeat: bool = False
    """Whether it says that it may be a repeat."""

    @property
    def number(self) -> int:
        """Of the newest webhook that it tells."""
        return max((what.version for _, what in self.alerts), default=0)


def can_end_with(events: Sequence[Event], message: Said) -> Iterator[Event]:
    """Each event that can be the last one that a message tells.

    There may be several: the same webhook may have been accepted twice, with others in between, since a replica that
    was stopped takes it late.
    """
    accepted: set[tuple[Alert, PublishedEvent]] = set()
    for event in events:
        accepted |= event.alerts
        if event.alerts <= message.alerts <= accepted:
            yield event


def last_told(events: Sequence[Event], message: Said, since: int) -> int | None:
    """The seq of the last event that a message tells: the first from `since` on that it can be; None where none can."""
    return next((event.seq for event in can_end_with(events, message) if event.seq >= since), None)
