"""Whether the first message of each episode shows at the end how the episode stands, or ended, and no other is stale.

Pure.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence

from tests.relay.delivery_oracle.evidence import Channel, Delivery, Event, Message


def check_edits(
    events: Sequence[Event],
    deliveries: Sequence[Delivery],
    latest: Sequence[Message],
    channels: Mapping[str, Channel],
    given_up: Collection[tuple[str, int, str]] = (),
) -> Iterator[str]:
    """Everything that is wrong with edited messages once nothing is left to do.

    Args:
        events: every accepted one.
        deliveries: the outbox.
        latest: what each message shows now.
        channels: what they promise.
        given_up: incident, episode and channel of each message that could not be edited any more.
    """
    by_seq = {event.seq: event for event in events}
    episodes: dict[tuple[str, int, str], list[Delivery]] = {}
    for delivery in sorted(deliveries, key=lambda each: each.seq):
        if channels[delivery.channel].is_edited:
            episodes.setdefault((delivery.incident, delivery.episode, delivery.channel), []).append(delivery)
    for key, of_episode in episodes.items():
        first = next((each for each in of_episode if each.state == "delivered"), None)
        if first is None or key in given_up:
            continue
        last = by_seq[max(each.event_seq for each in of_episode)]
        found = [each.alerts for each in latest if each.channel == first.channel and each.key == first.key]
        # A repeat of it, after a lost answer or lease, may be there beside it.
        if not any(last.alerts <= alerts for alerts in found):
            yield f"{first.channel}: the first message of {key[:2]} shows {found}, at last were {last.alerts}"


def find_stale(
    events: Sequence[Event],
    deliveries: Sequence[Delivery],
    roots: Sequence[Message],
    given_up: Collection[tuple[str, int, str]] = (),
) -> Iterator[str]:
    """Messages outside of threads that do not show how their episode stands, or ended: nobody edits them any more.

    Args:
        events: every accepted one.
        deliveries: the outbox.
        roots: what these messages show now.
        given_up: likewise.
    """
    episode_of = {each.event_seq: (each.incident, each.episode) for each in deliveries}
    last_of = {episode: seq for seq, episode in sorted(episode_of.items())}
    by_seq = {event.seq: event for event in events}
    for root in roots:
        of_group = (event for event in reversed(events) if event.group == root.group and event.seq in episode_of)
        newest = next((event for event in of_group if root.number in {what.version for _, what in event.alerts}), None)
        if newest is None:
            yield f"{root.channel}: nobody knows what a message shows: {sorted(root.alerts, key=str)}"
            continue
        episode = episode_of[newest.seq]
        last = by_seq[last_of[episode]]
        if not last.alerts <= root.alerts and (*episode, root.channel) not in given_up:
            current, expected = (sorted(alerts, key=str) for alerts in (root.alerts, last.alerts))
            yield f"{root.channel}: a message of {root.group} is stale: it shows {current}, at last were {expected}"
