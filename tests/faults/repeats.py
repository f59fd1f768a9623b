"""What was told more than once, and whether anything explains it. Pure.

A repeat is explained by what nobody could help: an answer that was lost, a lease that ended in the middle of a send.
"""

from collections import Counter
from collections.abc import Iterator, Sequence

from tests.faults.evidence import Delivery, Event, Said, can_end_with, last_told

PAGES = "pagerduty"
ASKED = "slack"
"""The channel that is asked what it has before it gets something again."""


def count(events: Sequence[Event], deliveries: Sequence[Delivery], said: Sequence[Said]) -> Counter[str]:
    """Repeats by channel: what a reader sees twice; by "CHANNEL by key": what no key could spare them.

    "CHANNEL unannounced" counts those that do not say that they may be repeats.
    """
    found: Counter[str] = Counter()
    seen: set[tuple[str, str, str]] = set()
    for message in said:
        copy = (message.channel, message.place, message.key)
        if message.channel != PAGES:
            found[message.channel] += copy in seen
        if message.channel == ASKED:
            found[f"{ASKED} unannounced"] += copy in seen and not message.says_repeat
        seen.add(copy)
    for channel in {message.channel for message in said} - {ASKED}:
        known = {delivery.key for delivery in deliveries if delivery.channel == channel}
        found[f"{channel} by key"] = sum(m.channel == channel and m.key not in known for m in said)
    for of_group, pages in _by_group(events, said):
        found[f"{PAGES} by key"] += _opened_twice(of_group, pages)
    return found


def unexplained(
    events: Sequence[Event], deliveries: Sequence[Delivery], said: Sequence[Said], repeats: Counter[str], lost: int
) -> Iterator[str]:
    """Repeats that neither a lost answer nor one of `lost` leases explains; and pages that nobody was called by."""
    copies = Counter(message.key for message in said if message.channel == ASKED)
    for delivery in deliveries:
        if delivery.channel == ASKED and copies[delivery.key] > 1 + delivery.doubts:
            yield f"{ASKED}: {delivery.id} came {copies[delivery.key]} times, with {delivery.doubts} lost answers"
    for what in (f"{ASKED} unannounced", f"{PAGES} by key"):
        if repeats[what] > lost:
            yield f"{repeats[what]} repeats ({what}), but {lost} leases were lost"
    for delivery in deliveries:
        if delivery.taken > 1:
            yield f"delivery {delivery.id} has {delivery.taken} receipts"
    for of_group, pages in _by_group(events, said):
        yield from _nobody_called(of_group, pages)


def _by_group(events: Sequence[Event], said: Sequence[Said]) -> Iterator[tuple[list[Event], list[Said]]]:
    for group in sorted({event.group for event in events}):
        pages = [message for message in said if (message.channel, message.group) == (PAGES, group)]
        if pages:
            yield [event for event in events if event.group == group], pages


def _opened_twice(events: Sequence[Event], pages: Sequence[Said]) -> int:
    """How often a group's page was opened again by what is no newer than its end."""
    is_open, so_far, twice = False, 0, 0
    for page in pages:
        opens = page.action == "trigger" and not is_open
        seq = last_told(events, page, so_far + 1 if opens else so_far)
        twice += opens and seq is None
        so_far = seq or so_far
        is_open = page.action == "trigger"
    return twice


def _nobody_called(events: Sequence[Event], pages: Sequence[Said]) -> Iterator[str]:
    """PagerDuty drops a resolve where nothing is open: what fired and is over has to be triggered first."""
    is_open, so_far = False, 0
    for page in pages:
        if page.action == "resolve" and not any(event.over for event in can_end_with(events, page)):
            yield f"{PAGES}: webhook {page.number} of group {page.group} fires, and its page was resolved"
        seq = last_told(events, page, so_far)
        fired = any(so_far < event.seq <= (seq or 0) and not event.over for event in events)
        if page.action == "resolve" and not is_open and fired:
            yield f"{PAGES}: nobody was called before webhook {page.number} of group {page.group} was resolved"
        so_far = seq or so_far
        is_open = page.action == "trigger"
