"""A claimed delivery → what goes out: its events merged into one."""

import asyncio
from functools import partial

from services.relay.delivery.merge import merge
from services.relay.event_json import decode, encode
from services.relay.model import Event
from services.relay.outbox.claim import Claim
from services.relay.outbox.held import told_events
from services.relay.outbox.same_group import needed_by
from services.relay.outbox.store import Store
from services.relay.sending.outgoing import Outgoing


async def outgoing(store: Store, claim: Claim, *, ends: float, lease_ends: float) -> Outgoing:
    """One try of it.

    Args:
        store: the outbox, where its events are.
        claim: which delivery.
        ends: when the try is cancelled at the latest, by the event loop's clock.
        lease_ends: until when nobody else claims the delivery, by the same clock.

    Raises:
        StoreUnavailableError: the events cannot be read.
        TimeoutError: they could not be read in time.
        ValueError: the outbox holds something that is no event.
    """
    written, size = claim.written_event, len(claim.written_event)
    if claim.first_event != claim.last_event:
        async with asyncio.timeout_at(ends):
            written, size = await _merged(store, claim)
    keep_open = False
    if claim.others:
        needed = partial(needed_by, others=claim.others, now=claim.accepted_at.timestamp() + claim.age)
        async with asyncio.timeout_at(ends):
            keep_open = await store.read(needed)
    return Outgoing(
        channel=claim.channel,
        delivery_id=claim.delivery_id,
        incident_id=claim.incident_id,
        episode=claim.episode,
        accepted_at=claim.accepted_at,
        written_event=written,
        size=size,
        first_receipt=claim.first_receipt,
        untold=claim.untold,
        note=claim.note,
        age=claim.age,
        progress=claim.progress,
        maybe_sent=claim.maybe_sent,
        ends=ends,
        lease_ends=lease_ends,
        keep_open=keep_open,
    )


async def _merged(store: Store, claim: Claim) -> tuple[bytes, int]:
    told: Event | None = None
    size = 0
    async for written in told_events(store, claim):
        told, size = await asyncio.to_thread(_with, told, written), size + len(written)
    if told is None:
        raise ValueError("the delivery tells no event")
    return await asyncio.to_thread(encode, told), size


def _with(before: Event | None, written: bytes) -> Event:
    event = decode(written)
    return event if before is None else merge(before, event)
