"""Whether a claim that the outbox gives is the right one to send. Pure."""

from collections.abc import Iterator, Sequence

from services.relay.model import Claim
from tests.relay.delivery_oracle.evidence import Delivery, Event, Message


def check_claim(
    claim: Claim,
    events: Sequence[Event],
    deliveries: Sequence[Delivery],
    messages: Sequence[Message],
    *,
    merges: bool,
    progress: str | None = None,
    is_leased_elsewhere: bool = False,
) -> Iterator[str]:
    """Everything that is wrong with a claim that was just given.

    Args:
        claim: itself.
        events: every accepted one.
        deliveries: the outbox after the claim.
        messages: what arrived before.
        merges: whether the channel merges.
        progress: what the channel stored as `done` for this delivery.
        is_leased_elsewhere: whether the lease of an earlier claim of its incident and channel still holds.
    """
    task = claim.task
    name = f"claim of {task.delivery_id}"
    row = next((each for each in deliveries if each.id == task.delivery_id), None)
    if row is None or (row.state, row.lease) != ("sending", claim.lease_id):
        yield f"{name} is not in the outbox"
    if is_leased_elsewhere:
        yield f"{name}: another holds a lease of its incident and channel"
    of_key = [each for each in deliveries if each.delivery_key == (task.incident_id, task.channel)]
    newest = max((each.event_seq for each in of_key if each.state != "dead"), default=0)
    if merges and task.last_event_seq != newest:
        yield f"{name} is stale: it ends with event {task.last_event_seq}, the newest is {newest}"
    of_incident = [each for each in events if each.incident == task.incident_id]
    last = next(each for each in of_incident if each.seq == task.last_event_seq)
    if task.episode != last.episode:
        yield f"{name} is of episode {task.episode}, its event of {last.episode}"
    if task.progress.get("done") != progress:
        yield f"{name} has the progress {task.progress.get('done')}, stored was {progress}"
    if not task.maybe_sent and any((each.channel, each.key) == (task.channel, task.delivery_id) for each in messages):
        yield f"{name}: an earlier attempt arrived, and it does not say so"
    of_episode = [each for each in of_key if each.episode == task.episode]
    has_delivered = any(each.state == "delivered" for each in of_episode)
    if (task.first_receipt is not None) != has_delivered:
        yield f"{name}: its episode {'has' if has_delivered else 'lacks'} a receipt, the claim says otherwise"
    has_fired = any(
        event.is_firing and each.first_event_seq <= event.seq <= each.event_seq
        for each in of_episode
        for event in of_incident
    )
    if task.firing_undelivered != (has_fired and not has_delivered and not last.is_firing):
        yield f"{name}: firing_undelivered is {task.firing_undelivered}: a resolve must never be shown alone"
