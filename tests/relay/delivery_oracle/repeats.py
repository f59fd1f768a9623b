"""What readers got more than once, and whether anything explains it. Pure.

Two things explain a repeat: an answer that was lost, and a lease that ended during a send.
"""

from collections import Counter
from collections.abc import Iterator, Sequence

from tests.relay.delivery_oracle.evidence import Event, History, Message, find_last_events, find_last_seq


def count_repeats(history: History) -> Counter[str]:
    """Repeats by channel: what a reader sees twice; by "CHANNEL by key": what no key could prevent.

    "CHANNEL unannounced" counts those that do not say that they may be repeats.
    """
    found: Counter[str] = Counter()
    arrived: set[tuple[str, str, str]] = set()
    for message in history.messages:
        channel, copy = history.channels[message.channel], (message.channel, message.reader, message.key)
        if not channel.opens_pages:
            found[message.channel] += copy in arrived
        if channel.is_searched:
            found[f"{message.channel} unannounced"] += copy in arrived and not message.is_marked_repeat
        arrived.add(copy)
    for name, channel in history.channels.items():
        if not channel.is_searched and any(message.channel == name for message in history.messages):
            keys = {delivery.key for delivery in history.deliveries if delivery.channel == name}
            found[f"{name} by key"] = sum(m.channel == name and m.key not in keys for m in history.messages)
    for name, of_group, pages in _pages_by_group(history):
        found[f"{name} by key"] += _count_reopened(of_group, pages)
    return found


def check_repeats(history: History, repeats: Counter[str]) -> Iterator[str]:
    """Repeats that nothing explains; pages that were resolved and never opened."""
    copies = Counter((message.channel, message.reader, message.key) for message in history.messages)
    for delivery in history.deliveries:
        channel = history.channels[delivery.channel]
        for reader in channel.readers if channel.is_searched else ():
            times = copies[delivery.channel, reader, delivery.key]
            if times > 1 + delivery.unknown_outcomes:
                yield f"{reader}: {delivery.id} came {times} times, with {delivery.unknown_outcomes} lost answers"
        if delivery.receipts > 1:
            yield f"delivery {delivery.id} has {delivery.receipts} receipts"
    for name, channel in history.channels.items():
        what = f"{name} unannounced" if channel.is_searched else f"{name} by key"
        if (channel.is_searched or channel.opens_pages) and repeats[what] > history.leases_lost:
            yield f"{repeats[what]} repeats ({what}), but {history.leases_lost} leases were lost"
    for name, of_group, pages in _pages_by_group(history):
        yield from _check_opened(name, of_group, pages)


def _pages_by_group(history: History) -> Iterator[tuple[str, list[Event], list[Message]]]:
    for name, channel in history.channels.items():
        for group in dict.fromkeys(event.group for event in history.events):
            pages = [each for each in history.messages if (each.channel, each.group) == (name, group)]
            if channel.opens_pages and pages:
                yield name, [event for event in history.events if event.group == group], pages


def _count_reopened(events: Sequence[Event], pages: Sequence[Message]) -> int:
    """How often a group's page was opened again by something no newer than its end."""
    is_open, newest, count = False, 0, 0
    for page in pages:
        opens = page.action == "trigger" and not is_open
        seq = find_last_seq(events, page, newest + 1 if opens else newest)
        count += opens and seq is None
        newest = seq or newest
        is_open = page.action == "trigger"
    return count


def _check_opened(name: str, events: Sequence[Event], pages: Sequence[Message]) -> Iterator[str]:
    """PagerDuty drops a resolve if nothing is open: what fired and is over has to be triggered first."""
    is_open, newest = False, 0
    for page in pages:
        if page.action == "resolve" and all(event.is_firing for event in find_last_events(events, page)):
            yield f"{name}: webhook {page.number} of group {page.group} fires, and its page was resolved"
        seq = find_last_seq(events, page, newest)
        fired = any(newest < event.seq <= (seq or 0) and event.is_firing for event in events)
        if page.action == "resolve" and not is_open and fired:
            yield f"{name}: nobody was called before webhook {page.number} of group {page.group} was resolved"
        newest = seq or newest
        is_open = page.action == "trigger"
