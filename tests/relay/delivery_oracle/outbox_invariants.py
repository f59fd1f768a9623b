"""Invariants of the outbox at any moment: nothing is lost, sent twice at once, or out of order. Pure."""

from collections.abc import Collection, Iterator, Mapping, Sequence

from tests.relay.delivery_oracle.evidence import Channel, Delivery, DeliveryKey, Event, group_by_incident_and_channel


def check_stored(
    events: Sequence[Event], deliveries: Sequence[Delivery], channels: Mapping[str, Channel]
) -> Iterator[str]:
    """Every violation that the tables show, whatever happens next."""
    by_id = {delivery.id: delivery for delivery in deliveries}
    for delivery in deliveries:
        yield from _check_row(delivery)
        yield from _check_heir(delivery, by_id)
    by_key = group_by_incident_and_channel(deliveries)
    for (_, channel), of_key in by_key.items():
        yield from _check_order(of_key, channels[channel].merges)
    for event in events:
        for channel in event.channels:
            covering = [each for each in by_key.get((event.incident, channel), []) if each.covers(event.seq)]
            if not covering:
                yield f"event {event.seq} has no delivery on {channel}"
            elif not channels[channel].merges and all(each.first_event_seq != each.event_seq for each in covering):
                yield f"event {event.seq} is merged on {channel}, which does not merge"


def _check_row(delivery: Delivery) -> Iterator[str]:
    if delivery.is_finished == delivery.is_unfinished:
        yield f"delivery {delivery.id} is {delivery.state}, and its time of finishing says otherwise"
    if (delivery.lease is not None) != (delivery.state == "sending"):
        yield f"delivery {delivery.id} is {delivery.state}, and its lease is {delivery.lease}"
    if delivery.superseded_by and delivery.state != "superseded":
        yield f"delivery {delivery.id} is {delivery.state}, and superseded by {delivery.superseded_by}"


def _check_heir(delivery: Delivery, by_id: Mapping[str, Delivery]) -> Iterator[str]:
    if delivery.state != "superseded":
        return
    heir = find_heir(delivery, by_id)
    if heir is None:
        yield f"delivery {delivery.id} is superseded by none of its incident and channel"
    elif not heir.first_event_seq <= delivery.first_event_seq <= delivery.event_seq <= heir.event_seq:
        yield f"delivery {delivery.id} is superseded by {heir.id}, which does not cover it"


def find_heir(delivery: Delivery, by_id: Mapping[str, Delivery]) -> Delivery | None:
    """The delivery that a superseded one ended in; None if there is none at its place."""
    passed = {delivery.id}
    heir: Delivery | None = delivery
    while heir is not None and heir.state == "superseded":
        heir = by_id.get(heir.superseded_by or "")
        if heir is None or heir.delivery_key != delivery.delivery_key or heir.id in passed:
            return None
        passed.add(heir.id)
    return heir


def _check_order(of_key: Sequence[Delivery], merges: bool) -> Iterator[str]:
    incident, channel = of_key[0].delivery_key
    sending = [delivery for delivery in of_key if delivery.state == "sending"]
    if len(sending) > 1:
        yield f"{channel}: two deliveries of {incident} are sent at once"
    for delivery in sending:
        if any(older.is_unfinished and older.seq < delivery.seq for older in of_key):
            yield f"{channel}: delivery {delivery.id} is sent before an older one"
    if merges and sum(delivery.is_waiting for delivery in of_key) > 1:
        yield f"{channel}: two deliveries of {incident} wait that can be merged"
    newest = [delivery.event_seq for delivery in of_key]
    if merges and newest != sorted(newest):
        yield f"{channel}: a later delivery of {incident} ends with an older event"


def check_stand_ins(
    delivery: Delivery, events: Sequence[Event], deliveries: Sequence[Delivery], stand_ins: Collection[str]
) -> Iterator[str]:
    """What a fallback channel lacks of a delivery that its own channel has given up."""
    by_key = group_by_incident_and_channel(deliveries)
    for name in stand_ins:
        covering = by_key.get((delivery.incident, name), [])
        for event in events:
            is_part = event.incident == delivery.incident and (
                delivery.first_event_seq <= event.seq <= delivery.event_seq
            )
            if is_part and not any(other.covers(event.seq) for other in covering):
                yield f"event {event.seq} was given up on {delivery.channel}, and {name} does not deliver it"


def check_late_send(
    delivery_key: DeliveryKey,
    message_range: tuple[int, int],
    events: Sequence[Event],
    deliveries: Sequence[Delivery],
    merges: bool,
) -> Iterator[str]:
    """Whether the current state follows a message that was sent under a lost lease."""
    incident, channel = delivery_key
    waiting = [each for each in group_by_incident_and_channel(deliveries).get(delivery_key, []) if each.is_waiting]
    current = max(event.seq for event in events if event.incident == incident)
    if not waiting or waiting[-1].event_seq != current:
        yield f"{channel}: {incident} was sent under a lost lease, and its current state does not follow"
    elif merges and waiting[-1].first_event_seq > message_range[0]:
        yield f"{channel}: {incident} was sent under a lost lease, and what it showed is not corrected"
