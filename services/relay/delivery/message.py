"""A claimed delivery → the message that a channel is asked to tell: its events merged into one, and enriched."""

import asyncio
from collections.abc import Mapping
from datetime import datetime
from functools import lru_cache
from typing import Final

from services.relay.delivery.enrich.links import LinkRules, links
from services.relay.delivery.merge import merge
from services.relay.model import Event, Links, Message
from services.relay.outbox.claim import Claim
from services.relay.outbox.held import told_events
from services.relay.outbox.schema import decode
from services.relay.outbox.store import Store

_ON_LOOP: Final = 16 * 1024
"""Bytes of an event up to which the work is quicker than handing it over to a thread."""


async def message(store: Store, claim: Claim, rules: LinkRules, contacts: Mapping[str, str]) -> Message:
    """The same at each attempt, so that a channel can recognise its own.

    Args:
        store: the outbox, where its events are.
        claim: which delivery.
        rules: for its links.
        contacts: how somebody of each role is reached.

    Raises:
        StoreUnavailableError: the events cannot be read.
        ValueError: the outbox holds something that is no event.
    """
    if claim.first_event == claim.last_event and len(claim.written_event) <= _ON_LOOP:
        event, found = _told(claim.written_event, claim.accepted_at, rules)
        return _message(event, found, len(claim.written_event), claim, contacts)
    told: Event | None = None
    size = 0
    async for written in told_events(store, claim):
        told, size = await asyncio.to_thread(_merged, told, written), size + len(written)
    if told is None:
        raise ValueError("the delivery tells no event")
    found = await asyncio.to_thread(_links, told, claim.accepted_at, rules)
    return _message(told, found, size, claim, contacts)


def _merged(before: Event | None, written: bytes) -> Event:
    event = decode(written)
    return event if before is None else merge(before, event)


@lru_cache(maxsize=128)  # several channels tell the same event, one soon after the other
def _told(written: bytes, accepted_at: datetime, rules: LinkRules) -> tuple[Event, tuple[Links, ...]]:
    event = decode(written)
    return event, _links(event, accepted_at, rules)


def _links(event: Event, accepted_at: datetime, rules: LinkRules) -> tuple[Links, ...]:
    return tuple(links(alert, accepted_at, rules) for alert in event.alerts)


def _message(event: Event, found: tuple[Links, ...], size: int, claim: Claim, contacts: Mapping[str, str]) -> Message:
    return Message(
        delivery_id=claim.delivery_id,
        incident_id=claim.incident_id,
        episode=claim.episode,
        event=event,
        links=found,
        accepted_at=claim.accepted_at,
        first_receipt=claim.first_receipt,
        untold=claim.untold,
        note=claim.note,
        size=size,
        contacts=contacts,
        age=claim.age,
    )
