"""A claimed delivery → what goes out: its events merged into one."""

import asyncio
from functools import partial

from services.relay.delivery.merge import merge_events
from services.relay.event_json import decode_event, encode_event
from services.relay.model import Event
from services.relay.outbox.claim import DeliveryTask
from services.relay.outbox.held import read_merged_events
from services.relay.outbox.same_group import is_dedup_key_in_use
from services.relay.outbox.store import Store
from services.relay.sending.outgoing import DeliveryTask as Outgoing


async def prepare_task(store: Store, task: DeliveryTask, *, attempt_ends: float, lease_ends: float) -> Outgoing:
    """One try of it.

    Args:
        store: the outbox, where its events are.
        task: which delivery.
        attempt_ends: when the try is cancelled at the latest, by the event loop's clock.
        lease_ends: until when nobody else claims the delivery, by the same clock.

    Raises:
        StoreUnavailableError: the events cannot be read.
        TimeoutError: they could not be read in time.
        ValueError: the outbox holds something that is no event.
    """
    written, size = task.event_json, len(task.event_json)
    if task.first_event_seq != task.last_event_seq:
        async with asyncio.timeout_at(attempt_ends):
            written, size = await _merge_events(store, task)
    keep_open = False
    if task.open_group_incidents:
        needed = partial(is_dedup_key_in_use, incident_ids=task.open_group_incidents, now=task.accepted_at.timestamp() + task.age)
        async with asyncio.timeout_at(attempt_ends):
            keep_open = await store.read(needed)
    return Outgoing(
        channel=task.channel,
        delivery_id=task.delivery_id,
        incident_id=task.incident_id,
        episode=task.episode,
        accepted_at=task.accepted_at,
        event_json=written,
        events_size=size,
        first_receipt=task.first_receipt,
        firing_undelivered=task.firing_undelivered,
        remark=task.remark,
        age=task.age,
        progress=task.progress,
        maybe_sent=task.maybe_sent,
        attempt_ends=attempt_ends,
        lease_ends=lease_ends,
        keep_open=keep_open,
    )


async def _merge_events(store: Store, task: DeliveryTask) -> tuple[bytes, int]:
    told: Event | None = None
    size = 0
    async for written in read_merged_events(store, task):
        told, size = await asyncio.to_thread(_merge_json, told, written), size + len(written)
    if told is None:
        raise ValueError("the delivery tells no event")
    return await asyncio.to_thread(encode_event, told), size


def _merge_json(merged: Event | None, event_json: bytes) -> Event:
    event = decode_event(event_json)
    return event if merged is None else merge_events(merged, event)
