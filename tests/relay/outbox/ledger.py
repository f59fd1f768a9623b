"""What anybody who watches the outbox from outside knows, and what its tables must then say.

It notes what was accepted for which channel, who holds what, and what arrived. What the outbox does inside (which rows
it makes, when it merges) it does not foretell: `agree` looks at the tables and says what must hold, whatever happened.
"""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Row

from services.relay.model import DeliveryTask, Status
from services.relay.outbox.tables import UNFINISHED, WAITING, State

Place = tuple[str, str]
"""An incident on a channel."""
Rows = Mapping[str, Row[Any]]
"""Of the deliveries, by their id."""
Alerts = dict[str, Status]


@dataclass(frozen=True)
class Known:
    """An event that was accepted."""

    seq: int
    incident: str
    alerts: Alerts
    episode: int
    channels: tuple[str, ...]


@dataclass
class Held:
    """A claim in the hand of its owner."""

    claim: DeliveryTask
    owner: str
    until: float
    """When its holder stops, by a clock that nobody sets."""
    exclusive_until: float
    """Until when nobody else may get it, by the same clock; earlier only where the outbox ended all leases."""
    arrived: bool = False

    @property
    def place(self) -> Place:
        return self.claim.incident_id, self.claim.channel


@dataclass
class Ledger:
    merging: frozenset[str]
    events: dict[int, Known] = field(default_factory=dict)
    live: dict[Place, Held] = field(default_factory=dict)
    """The latest claim of each place, where it was not ended."""
    messages: dict[Place, list[DeliveryTask]] = field(default_factory=lambda: defaultdict(list))
    """What arrived."""
    kept: dict[str, str] = field(default_factory=dict)
    """The progress of each delivery."""

    def of(self, incident: str) -> list[Known]:
        return [event for event in self.events.values() if event.incident == incident]

    def current(self, incident: str) -> int:
        """Its latest event."""
        return max((event.seq for event in self.of(incident)), default=0)

    def folded(self, claim: DeliveryTask) -> Alerts:
        """Every alert of the events that it tells, in its last state."""
        told: Alerts = {}
        for event in self.of(claim.incident_id):
            if claim.first_event_seq <= event.seq <= claim.last_event_seq:
                told |= event.alerts
        return told

    def arrive(self, held: Held) -> None:
        if not held.arrived:
            held.arrived = True
            self.messages[held.place].append(held.claim)

    def agree(self, rows: Rows) -> None:
        """Raises AssertionError where something was lost, is told twice at once, or in the wrong order."""
        places = by_place(rows)
        for place, of_place in places.items():
            self._agree_at(place, of_place)
        for row in rows.values():
            assert (row.finished_at is None) == (row.state in UNFINISHED)
            assert (row.lease is not None) == (row.state == State.SENDING)
            if row.state == State.SUPERSEDED:
                teller = told_by(rows, row)
                assert (teller.incident_id, teller.channel) == (row.incident_id, row.channel)
                assert teller.first_event_seq <= row.first_event_seq <= row.event_seq <= teller.event_seq
        for event in self.events.values():
            for channel in event.channels:
                of_place = places.get((event.incident, channel), [])
                told = [row for row in of_place if covers(row, event.seq)]
                assert told, f"event {event.seq} is lost on {channel}"
                assert channel in self.merging or any(row.first_event_seq == row.event_seq for row in told), "merged"

    def _agree_at(self, place: Place, rows: Sequence[Row[Any]]) -> None:
        sending = [row for row in rows if row.state == State.SENDING]
        assert len(sending) <= 1, "two are sent at once"
        for row in sending:
            assert not any(older.finished_at is None and older.seq < row.seq for older in rows), "not in their order"
        if place[1] in self.merging:
            assert sum(row.state in WAITING for row in rows) <= 1, "two wait, though they can be merged"
            told = [row.event_seq for row in rows]
            assert told == sorted(told), "what is told later is older"

    def claimed(self, claim: DeliveryTask, rows: Rows) -> None:
        """A claim that was just given is the right one."""
        row, place = rows[claim.delivery_id], (claim.incident_id, claim.channel)
        of_place = by_place(rows)[place]
        assert row.state == State.SENDING
        assert row.lease == claim.lease_id
        if claim.channel in self.merging:
            newest = max(other.event_seq for other in of_place if other.state != State.DEAD)
            assert claim.last_event_seq == newest, "it is stale"
        event = self.events[claim.last_event_seq]
        assert claim.episode == event.episode
        assert claim.progress.get("done") == self.kept.get(claim.delivery_id)
        arrived = any(other.delivery_id == claim.delivery_id for other in self.messages[place])
        assert claim.maybe_sent or not arrived, "an earlier attempt arrived, and it does not say so"
        told = any(other.state == State.DELIVERED and other.episode == claim.episode for other in of_place)
        assert (claim.first_receipt is not None) == told
        told_of = [other for other in of_place if other.episode == claim.episode]
        fired = any(
            is_firing(known) and other.first_event_seq <= known.seq <= other.event_seq
            for other in told_of
            for known in self.of(claim.incident_id)
        )
        assert claim.firing_undelivered == (fired and not told and not is_firing(event))

    def settled(self, rows: Rows) -> None:
        """Nothing is left to do: what each channel was told last is how things stand."""
        assert not any(row.state in UNFINISHED for row in rows.values())
        for (incident, channel), of_place in by_place(rows).items():
            messages = self.messages[incident, channel]
            if channel not in self.merging:  # what is told of each event by itself may be told again, much later
                messages = sorted(messages, key=lambda claim: claim.last_event_seq)
            elif of_place[-1].state == State.DELIVERED:
                assert messages[-1].last_event_seq == of_place[-1].event_seq, (
                    "the last message is not the current state"
                )
            shown: Alerts = {}
            for claim in messages:
                shown |= self.folded(claim)
            for event in self.of(incident):
                told = any(row.state == State.DELIVERED and covers(row, event.seq) for row in of_place)
                later = [other for other in self.of(incident) if other.seq > event.seq]
                for alert, status in event.alerts.items():
                    if told and not any(alert in other.alerts for other in later):
                        assert shown[alert] == status, f"{channel} shows {alert} of {incident} as it no longer is"


def is_firing(event: Known) -> bool:
    return Status.FIRING in event.alerts.values()


def by_place(rows: Rows) -> dict[Place, list[Row[Any]]]:
    """The deliveries of each place in their order."""
    places: dict[Place, list[Row[Any]]] = defaultdict(list)
    for row in sorted(rows.values(), key=lambda row: int(row.seq)):
        places[row.incident_id, row.channel].append(row)
    return places


def covers(row: Row[Any], event: int) -> bool:
    """Whether an event is told with a delivery, and not with another one instead."""
    return bool(row.state != State.SUPERSEDED and row.first_event_seq <= event <= row.event_seq)


def told_by(rows: Rows, row: Row[Any]) -> Row[Any]:
    """The delivery that a superseded one ended in."""
    while row.state == State.SUPERSEDED:
        row = rows[row.superseded_by]
    return row


def superseded(before: Rows, after: Rows) -> Counter[str]:
    """How many deliveries of each channel were merged away between the two."""
    return Counter(
        row.channel
        for row in after.values()
        if row.state == State.SUPERSEDED and (row.id not in before or before[row.id].state != State.SUPERSEDED)
    )
