"""Whether the relay kept its promises. Pure.

What was answered, what stands in the outbox and what the providers hold come in; every violation goes out.
"""

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from tests.faults import repeats
from tests.faults.evidence import Delivery, Event, Said, last_told
from tests.faults.incidents import Alert, PublishedEvent

FINAL = ("delivered", "superseded", "dead")


@dataclass
class Verdict:
    """What was found."""

    violations: list[str] = field(default_factory=list)
    late: list[str] = field(default_factory=list)
    """Messages that came after newer ones: allowed only where a process was stopped in the middle of a send."""
    duplicates: Counter[str] = field(default_factory=Counter)
    """As `repeats.count` counts them."""
    states: Counter[str] = field(default_factory=Counter)
    """How many deliveries ended how."""


def judge(
    answered: Collection[str],
    events: Sequence[Event],
    deliveries: Sequence[Delivery],
    said: Sequence[Said],
    places: Mapping[str, Sequence[str]],
    lost: int = 0,
) -> Verdict:
    """Everything that is wrong.

    Args:
        answered: the ids of the events that Alertmanager was told are accepted.
        events: in the order of acceptance.
        deliveries: in the order of their seq.
        said: in the order of arrival.
        places: by channel: who reads it. Every event goes to every channel.
        lost: how many leases the relays lost, by their own count.
    """
    verdict = Verdict(states=Counter(delivery.state for delivery in deliveries))
    known = {event.id for event in events}
    verdict.violations += [f"answered 202 and not in the outbox: {event}" for event in answered if event not in known]
    verdict.violations += _endings(deliveries)
    for channel, readers in places.items():
        ends = {event.seq: _end(event, channel, deliveries) for event in events}
        verdict.violations += [
            f"event {seq} has no delivery on {channel} that tells it" for seq, end in ends.items() if end is None
        ]
        dead = {seq for seq, end in ends.items() if end is not None and end.state == "dead"}
        for place in readers:
            for group in sorted({event.group for event in events}):
                of_group = [event for event in events if event.group == group]
                heard = [message for message in said if message.place == place and message.group == group]
                verdict.violations += _untold(place, of_group, heard, dead)
                verdict.late += _late(place, of_group, heard)
            verdict.violations += _not_ours(place, events, deliveries, said)
    if len(verdict.late) > lost * max(map(len, places.values())):
        verdict.violations.append(f"{len(verdict.late)} messages came late, but {lost} leases were lost")
    verdict.duplicates = repeats.count(events, deliveries, said)
    verdict.violations += repeats.unexplained(events, deliveries, said, verdict.duplicates, lost)
    return verdict


def _endings(deliveries: Sequence[Delivery]) -> Iterator[str]:
    by_id = {delivery.id: delivery for delivery in deliveries}
    for delivery in deliveries:
        if delivery.state not in FINAL:
            yield f"delivery {delivery.id} is still {delivery.state}"
        if delivery.state == "superseded":
            heir = by_id.get(delivery.superseded_by or "")
            if heir is None or (heir.incident, heir.channel) != (delivery.incident, delivery.channel):
                yield f"delivery {delivery.id} is superseded by none of its incident and channel"
        elif delivery.superseded_by:
            yield f"delivery {delivery.id} is {delivery.state}, and superseded by {delivery.superseded_by}"


def _end(event: Event, channel: str, deliveries: Sequence[Delivery]) -> Delivery | None:
    """The delivery that tells the event on this channel, in the end; None where there is none."""
    return next(
        (
            delivery
            for delivery in deliveries
            if (delivery.incident, delivery.channel) == (event.incident, channel)
            and delivery.first_event_seq <= event.seq <= delivery.event_seq
            and delivery.state in ("delivered", "dead")
        ),
        None,
    )


def _untold(place: str, events: Sequence[Event], heard: Sequence[Said], dead: Collection[int]) -> Iterator[str]:
    """What was never told, or was told last as it no longer is, except what went out in a dead delivery."""
    last: dict[Alert, tuple[PublishedEvent, int]] = {}
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
        seq = last_told(events, message, so_far)
        if seq is None:
            yield f"{place}: webhook {message.number} of group {message.group} came after a newer one"
        so_far = seq or so_far


def _not_ours(
    place: str, events: Sequence[Event], deliveries: Sequence[Delivery], said: Sequence[Said]
) -> Iterator[str]:
    """What none of the deliveries tells that have the message's key: it was made up, or its key was."""
    accepted = {about for event in events for about in event.alerts}
    tells: dict[tuple[str, str], set[tuple[Alert, PublishedEvent]]] = {}
    for delivery in deliveries:
        of = (event for event in events if event.incident == delivery.incident)
        alerts = (e.alerts for e in of if delivery.first_event_seq <= e.seq <= delivery.event_seq)
        tells.setdefault((delivery.channel, delivery.key), set()).update(*alerts)
    for message in said:
        if message.place != place:
            continue
        if not (message.alerts and message.alerts <= accepted):
            yield f"{place}: a message tells what was never accepted: {sorted(message.alerts - accepted)}"
        elif not message.alerts <= tells.get((message.channel, message.key), set()):
            yield f"{place}: webhook {message.number} of group {message.group} came under the key {message.key}"
