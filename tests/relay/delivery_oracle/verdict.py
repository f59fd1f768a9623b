"""The one oracle for "nothing lost, nothing repeated". Pure.

A history comes in: what was accepted, what the outbox holds, what the readers got. Every violation goes out. The fault
suite judges whole relays with it, and the model test judges the outbox alone.
"""

from collections import Counter
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, field

from tests.relay.delivery_oracle.evidence import (
    AlertState,
    Delivery,
    Event,
    History,
    Message,
    find_last_seq,
    group_by_incident_and_channel,
)
from tests.relay.delivery_oracle.outbox_invariants import check_stored
from tests.relay.delivery_oracle.repeats import check_repeats, count_repeats


@dataclass
class Verdict:
    """What was found."""

    violations: list[str] = field(default_factory=list)
    late: list[str] = field(default_factory=list)
    """Messages that came after newer ones: allowed only where a process was stopped in the middle of a send."""
    duplicates: Counter[str] = field(default_factory=Counter)
    """As `count_repeats` counts them."""
    states: Counter[str] = field(default_factory=Counter)
    """How many deliveries ended how."""


def judge(history: History) -> Verdict:
    """Judges a relay that has nothing left to do."""
    verdict = Verdict(states=Counter(delivery.state for delivery in history.deliveries))
    stored = {event.id for event in history.events}
    lost = [event for event in history.answered if event not in stored]
    verdict.violations += [f"answered 202 and not in the outbox: {event}" for event in lost]
    verdict.violations += [f"delivery {d.id} is still {d.state}" for d in history.deliveries if d.is_unfinished]
    verdict.violations += check_stored(history.events, history.deliveries, history.channels)
    by_key = group_by_incident_and_channel(history.deliveries)
    groups: dict[Hashable, list[Event]] = {}
    for event in history.events:
        groups.setdefault(event.group, []).append(event)
    for name, channel in history.channels.items():
        for reader in channel.readers:
            received = [message for message in history.messages if message.reader == reader]
            for group, events in groups.items():
                of_group = [message for message in received if message.group == group]
                deliveries = by_key.get((events[0].incident, name), [])
                if not channel.merges:  # an old event may be sent again, long after newer ones
                    of_group.sort(key=lambda message: message.number)
                verdict.violations += _check_last_messages(reader, events, deliveries, of_group)
                if channel.merges:
                    verdict.late += _find_late(reader, events, of_group, history.requeued)
            verdict.violations += _check_origin(reader, history, received)
    readers = max(len(channel.readers) for channel in history.channels.values())
    if len(verdict.late) > history.leases_lost * readers:
        verdict.violations.append(f"{len(verdict.late)} messages came late, but {history.leases_lost} leases were lost")
    verdict.duplicates = count_repeats(history)
    verdict.violations += check_repeats(history, verdict.duplicates)
    return verdict


def _check_last_messages(
    reader: str, events: Sequence[Event], deliveries: Sequence[Delivery], received: Sequence[Message]
) -> Iterator[str]:
    """What was never shown, or was shown last as it no longer is, except what went out in a dead delivery."""
    ends = {event.seq: [each.state for each in deliveries if each.covers(event.seq)] for event in events}
    last: dict[Hashable, tuple[AlertState, int]] = {}
    for event in events:
        last |= {alert: (what, event.seq) for alert, what in event.alerts}
    for alert, (what, seq) in last.items():
        latest_states = [state for message in received for about, state in message.alerts if about == alert][-1:]
        # A delivery that died after this one was delivered may have shown an older version before.
        is_same = latest_states == [what] or (
            ends[seq][-1:] == ["dead"] and [each.state for each in latest_states] == [what.state]
        )
        if "delivered" in ends[seq] and not is_same:
            yield f"{reader}: {alert} is {what}, and was shown last as {latest_states or 'nothing'}"
    for message in received:
        if len({alert for alert, _ in message.alerts}) < len(message.alerts):
            yield f"{reader}: a message contradicts itself: {sorted(message.alerts, key=str)}"
    current = next((event for event in reversed(events) if ends[event.seq]), None)
    if current is None or ends[current.seq][-1] != "delivered":
        return
    if not received or not current.alerts <= received[-1].alerts:
        yield f"{reader}: the last message of group {current.group} does not show its current state"
    if received and received[-1].action and (received[-1].action == "trigger") is not current.is_firing:
        yield f"{reader}: the page of group {current.group} ended with {received[-1].action}"


def _find_late(
    reader: str, events: Sequence[Event], received: Sequence[Message], requeued: frozenset[str]
) -> Iterator[str]:
    """Messages that show only what is older than what an earlier message showed."""
    newest = 0
    for message in received:
        seq = find_last_seq(events, message, newest)
        if seq is None and message.key not in requeued:
            yield f"{reader}: webhook {message.number} of group {message.group} came after a newer one"
        newest = seq or newest


def _check_origin(reader: str, history: History, received: Sequence[Message]) -> Iterator[str]:
    """What none of the deliveries shows that have the message's key: it was invented, or its key was."""
    accepted = {alert for event in history.events for alert in event.alerts}
    by_key: dict[tuple[str, str], set[tuple[Hashable, AlertState]]] = {}
    for delivery in history.deliveries:
        of_incident = (event for event in history.events if event.incident == delivery.incident)
        alerts = (e.alerts for e in of_incident if delivery.first_event_seq <= e.seq <= delivery.event_seq)
        by_key.setdefault((delivery.channel, delivery.key), set()).update(*alerts)
    for message in received:
        if not (message.alerts and message.alerts <= accepted):
            unknown = sorted(message.alerts - accepted, key=str)
            yield f"{reader}: a message shows what was never accepted: {unknown}"
        elif not message.alerts <= by_key.get((message.channel, message.key), set()):
            yield f"{reader}: webhook {message.number} of group {message.group} came under the key {message.key}"
