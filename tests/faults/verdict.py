"""Whether the relay kept its promises. Pure.

What was answered, what stands in the outbox and what the providers hold come in; every violation goes out.
"""

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from tests.faults.incidents import Alert, Told

Alerts = frozenset[tuple[Alert, Told]]
FINAL = ("delivered", "superseded", "dead")


@dataclass(frozen=True)
class Event:
    """An accepted webhook, from the outbox."""

    seq: int
    id: str
    incident: str
    group: int
    alerts: Alerts

    @property
    def number(self) -> int:
        """Of the webhook within its group."""
        return _number(self.alerts)

    @property
    def over(self) -> bool:
        """Whether the whole group is resolved."""
        return all(what.state == "resolved" for _, what in self.alerts)


@dataclass(frozen=True)
class Delivery:
    """A delivery, from the outbox."""

    id: str
    event_seq: int
    first_event: int
    incident: str
    channel: str
    state: str
    attempts: int = 0
    superseded_by: str | None = None
    key: str | None = None
    """By which a reader knows it again, from a mail's receipt: its Message-ID."""


@dataclass(frozen=True)
class Said:
    """A message that reached one reader, from a stand-in."""

    channel: str
    place: str
    """A mailbox, or the channel itself."""
    key: str
    """By which a reader knows it again: the delivery's id in Slack, the Message-ID in mail, the dedup_key of a page."""
    group: int
    alerts: Alerts
    action: str = ""
    """PagerDuty's: `trigger` or `resolve`."""

    @property
    def number(self) -> int:
        """Of the newest webhook that it tells."""
        return _number(self.alerts)


@dataclass
class Verdict:
    """What was found."""

    violations: list[str] = field(default_factory=list)
    late: list[str] = field(default_factory=list)
    """Messages that came after newer ones: allowed only where a process was stopped in the middle of a send."""
    duplicates: Counter[str] = field(default_factory=Counter)
    """By channel: messages that a reader sees twice; by "CHANNEL by key": those that its key could not prevent."""
    states: Counter[str] = field(default_factory=Counter)
    """How many deliveries ended how."""


def judge(
    answered: Collection[str],
    events: Sequence[Event],
    deliveries: Sequence[Delivery],
    said: Sequence[Said],
    places: Mapping[str, Sequence[str]],
) -> Verdict:
    """Everything that is wrong.

    Args:
        answered: the ids of the events that Alertmanager was told are accepted.
        events: in the order of acceptance.
        deliveries: in the order of their seq.
        said: in the order of arrival.
        places: by channel: who reads it. Every event goes to every channel.
    """
    verdict = Verdict(states=Counter(delivery.state for delivery in deliveries))
    known = {event.id for event in events}
    verdict.violations += [f"answered 202 and not in the outbox: {event}" for event in answered if event not in known]
    verdict.violations += _endings(deliveries)
    for channel, readers in places.items():
        ends = {event.seq: _end(event, channel, deliveries) for event in events}
        lost = [
            f"event {event.seq} has no delivery on {channel} that tells it" for event in events if not ends[event.seq]
        ]
        verdict.violations += lost
        dead = {seq for seq, end in ends.items() if end is not None and end.state == "dead"}
        for place in readers:
            for group in sorted({event.group for event in events}):
                of_group = [event for event in events if event.group == group]
                heard = [message for message in said if message.place == place and message.group == group]
                verdict.violations += _untold(place, of_group, heard, dead)
                verdict.late += _late(place, of_group, heard)
            verdict.violations += _not_ours(place, events, said)
    _count_duplicates(verdict.duplicates, events, deliveries, said)
    return verdict


def _number(alerts: Alerts) -> int:
    return max((what.version for _, what in alerts), default=0)


def _endings(deliveries: Sequence[Delivery]) -> Iterator[str]:
    by_id = {delivery.id: delivery for delivery in deliveries}
    for delivery in deliveries:
        if delivery.state not in FINAL:
            yield f"delivery {delivery.id} is still {delivery.state}"
        if delivery.state == "superseded":
            heir = by_id.get(delivery.superseded_by or "")
            if heir is None or (heir.incident, heir.channel) != (delivery.incident, delivery.channel):
                yield f"delivery {delivery.id} is superseded by none of its incident and channel"


def _end(event: Event, channel: str, deliveries: Sequence[Delivery]) -> Delivery | None:
    """The delivery that tells the event on this channel, in the end; None where there is none."""
    return next(
        (
            delivery
            for delivery in deliveries
            if (delivery.incident, delivery.channel) == (event.incident, channel)
            and delivery.first_event <= event.seq <= delivery.event_seq
            and delivery.state in ("delivered", "dead")
        ),
        None,
    )


def _untold(place: str, events: Sequence[Event], heard: Sequence[Said], dead: Collection[int]) -> Iterator[str]:
    """What was never told, or was told last as it no longer is, except what went out in a dead delivery."""
    last: dict[Alert, tuple[Told, int]] = {}
    for event in events:
        last |= {alert: (what, event.seq) for alert, what in event.alerts}
    for alert, (what, seq) in last.items():
        heard_of_it = [says for message in heard for about, says in message.alerts if about == alert]
        if seq not in dead and heard_of_it[-1:] != [what]:
            yield f"{place}: {alert} is {what}, and was told last as {heard_of_it[-1:] or 'nothing'}"
    if events[-1].seq in dead:
        return
    if not heard or not events[-1].alerts <= heard[-1].alerts:
        yield f"{place}: the last message of group {events[-1].group} does not tell its current state"
    if heard and heard[-1].action and (heard[-1].action == "resolve") is not events[-1].over:
        yield f"{place}: the page of group {events[-1].group} ended with {heard[-1].action}"
    for message in heard:
        if len({alert for alert, _ in message.alerts}) < len(message.alerts):
            yield f"{place}: a message contradicts itself: {sorted(message.alerts)}"


def _late(place: str, events: Sequence[Event], heard: Sequence[Said]) -> Iterator[str]:
    """Messages that tell only what is older than what an earlier message told."""
    so_far = 0
    for message in heard:
        seq = _last_told(events, message, so_far)
        if seq is None:
            yield f"{place}: webhook {message.number} of group {message.group} came after a newer one"
        so_far = seq or so_far


def _last_told(events: Sequence[Event], message: Said, since: int) -> int | None:
    """The seq of the last event that a message tells: the first from `since` on that it can be; None where none can.

    The same webhook may have been accepted twice, with others in between: a replica that was stopped takes it late.
    """
    accepted: set[tuple[Alert, Told]] = set()
    for event in events:
        accepted |= event.alerts
        if event.seq >= since and event.alerts <= message.alerts <= accepted:
            return event.seq
    return None


def _not_ours(place: str, events: Sequence[Event], said: Sequence[Said]) -> Iterator[str]:
    accepted = {about for event in events for about in event.alerts}
    for message in said:
        if message.place == place and not (message.alerts and message.alerts <= accepted):
            yield f"{place}: a message tells what was never accepted: {sorted(message.alerts - accepted)}"


def _count_duplicates(
    duplicates: Counter[str], events: Sequence[Event], deliveries: Sequence[Delivery], said: Sequence[Said]
) -> None:
    pages = [message for message in said if message.action]
    copies = Counter((message.channel, message.place, message.key) for message in said if not message.action)
    for (channel, _, _), count in copies.items():
        duplicates[channel] += count - 1
    for channel in {message.channel for message in pages}:
        for group in {event.group for event in events}:
            of_group = [page for page in pages if (page.channel, page.group) == (channel, group)]
            duplicates[f"{channel} by key"] += _opened_twice([e for e in events if e.group == group], of_group)
    for channel in {delivery.channel for delivery in deliveries if delivery.key}:
        mine = [delivery for delivery in deliveries if delivery.channel == channel]
        keys = {message.key for message in said if message.channel == channel}
        # A message whose answer was lost has its key in no receipt; its delivery was then merged, or is dead.
        unseen = sum(delivery.attempts > 0 and delivery.state != "delivered" for delivery in mine)
        without_receipt = keys - {delivery.key for delivery in mine}
        duplicates[f"{channel} by key"] += max(0, len(without_receipt) - unseen)


def _opened_twice(events: Sequence[Event], pages: Sequence[Said]) -> int:
    """How often a group's page was opened again by what is no newer than its end."""
    is_open, so_far, twice = False, 0, 0
    for page in pages:
        opens = page.action == "trigger" and not is_open
        seq = _last_told(events, page, so_far + 1 if opens else so_far)
        twice += opens and seq is None
        so_far = seq or so_far
        is_open = page.action == "trigger"
    return twice
