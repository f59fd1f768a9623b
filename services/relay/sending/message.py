"""What goes out → the message that a channel is asked to tell: its event read and enriched."""

import asyncio
from collections.abc import Mapping
from datetime import datetime
from functools import lru_cache
from typing import Final

from services.relay.event_json import decode
from services.relay.model import Event, Links, Message
from services.relay.sending.enrich.links import LinkRules, links, narrowed
from services.relay.sending.outgoing import Outgoing

_ON_LOOP: Final = 16 * 1024
"""Bytes of an event up to which the work is quicker than handing it over to a thread."""


async def message(outgoing: Outgoing, rules: LinkRules, contacts: Mapping[str, str]) -> Message:
    """The same at each attempt, so that a channel can recognise its own.

    Args:
        outgoing: what goes out.
        rules: for its links.
        contacts: how somebody of each role is reached.

    Raises:
        ValueError: the outbox holds something that is no event.
    """
    told = outgoing.written_event, outgoing.accepted_at, rules
    event, found = _told(*told) if len(outgoing.written_event) <= _ON_LOOP else await asyncio.to_thread(_read, *told)
    return Message(
        delivery_id=outgoing.delivery_id,
        incident_id=outgoing.incident_id,
        episode=outgoing.episode,
        event=event,
        links=found,
        accepted_at=outgoing.accepted_at,
        first_receipt=outgoing.first_receipt,
        untold=outgoing.untold,
        note=outgoing.note,
        size=outgoing.size,
        contacts=contacts,
        age=outgoing.age,
        keep_open=outgoing.keep_open,
    )


def _read(written: bytes, accepted_at: datetime, rules: LinkRules) -> tuple[Event, tuple[Links, ...]]:
    event = narrowed(decode(written), rules)
    return event, tuple(links(alert, accepted_at, rules) for alert in event.alerts)


_told = lru_cache(maxsize=128)(_read)
"""Several channels tell the same event, one soon after the other."""
