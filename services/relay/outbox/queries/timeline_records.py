"""What the outbox still has of one episode of an incident, as `timeline_query` reads it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple


class EventRecord(NamedTuple):
    """One accepted webhook, or one event of the relay's own."""

    seq: int
    id: str
    status: str
    accepted_at: float
    event: bytes | None
    """As it was encoded; None if it is large."""
    event_size: int
    is_own: bool
    """Whether the relay made it."""


class DeliveryRecord(NamedTuple):
    """An event on a channel."""

    seq: int
    id: str
    event_seq: int
    first_event_seq: int
    channel: str
    state: str
    attempts: int
    reason: str | None
    accepted_at: float
    oldest_accepted_at: float
    due_at: float
    finished_at: float | None
    superseded_by: str | None
    remark: str | None
    receipt: str | None
    digest_id: str | None
    named_in: str | None


class AttemptRecord(NamedTuple):
    """One try to send a delivery."""

    delivery_seq: int
    number: int
    started_at: float
    seconds: float
    reason: str
    detail: str


class ActionRecord(NamedTuple):
    """What somebody did about the incident, of the audit."""

    at: float
    who: str
    peer: str | None
    action: str
    object: str


class SilenceRecord(NamedTuple):
    """A silence that somebody requested."""

    who: str
    state: str
    requested_at: float | None
    finished_at: float | None
    began_at: float | None
    ends_at: float | None
    detail: str | None
    comment: str | None
    silence_id: str | None


class EditRecord(NamedTuple):
    """How the first message on a channel stands."""

    channel: str
    is_waiting: bool
    """Whether an edit was requested that is not made yet."""
    edited_at: float | None
    requested_at: float
    attempts: int
    reason: str | None


class EpisodeStart(NamedTuple):
    """An episode, and when it started (unix seconds)."""

    episode: int
    started_at: float


@dataclass(frozen=True, slots=True)
class EpisodeHistory:
    """One episode, as far as it is stored, with one page of its events. Times are unix seconds."""

    episode: int
    is_current: bool
    is_over: bool
    started_at: float
    pruned_up_to: float | None
    """Retention has deleted deliveries, with their events, that ended up to then, in the time of the episode; None if
    it has not."""
    first_event: EventRecord
    """The first one that is stored."""
    last_event: EventRecord
    """Of the episode, whatever the page; both with their content."""
    event_count: int
    """At most 10,000, which stands for as many or more."""
    events: Sequence[EventRecord]
    """Of the page, the oldest first."""
    event_before: EventRecord | None
    """The event before the page, to see what the first one of the page changed."""
    earlier: int | None
    """Where the page with earlier events begins; None if there is none."""
    has_later: bool
    deliveries: Sequence[DeliveryRecord]
    """Of the events of the page, in the order of acceptance."""
    attempts: Sequence[AttemptRecord]
    actions: Sequence[ActionRecord]
    silences: Sequence[SilenceRecord]
    edits: Sequence[EditRecord]
    is_cut: bool
    """Whether the page has more deliveries, attempts or actions than are read."""
    channels: Sequence[DeliveryRecord]
    """The newest delivery of the episode on each channel."""
    first_receipts: Sequence[DeliveryRecord]
    """The first delivery of the episode that each channel accepted."""
    last_receipts: Sequence[DeliveryRecord]
    """Of an episode that is over: the deliveries of its end that were accepted."""
    episodes: Sequence[EpisodeStart]
    """The other episodes whose start is known, the newest first."""

    @property
    def has_beginning(self) -> bool:
        """Whether its first event is stored."""
        return self.first_event.accepted_at <= self.started_at
