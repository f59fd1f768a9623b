"""What goes out → the message that a channel is asked to tell: its event read and enriched."""

import asyncio
from collections.abc import Mapping
from datetime import datetime
from functools import lru_cache
from typing import Final

from services.relay.event_json import decode_event
from services.relay.model import Event, Links, Message
from services.relay.sending.enrich.links import LinkRules, build_links, remove_foreign_links
from services.relay.sending.outgoing import DeliveryTask

_THREAD_ABOVE: Final = 16 * 1024
"""Bytes of an event up to which the work is quicker than handing it over to a thread."""


async def build_message(task: DeliveryTask, link_rules: LinkRules, contacts: Mapping[str, str]) -> Message:
    """The same at each attempt, so that a channel can recognise its own.

    Args:
        task: what goes out.
        link_rules: for its links.
        contacts: how somebody of each role is reached.

    Raises:
        ValueError: the outbox holds something that is no event.
    """
    told = task.event_json, task.accepted_at, link_rules
    event, found = _enrich_event_cached(*told) if len(task.event_json) <= _THREAD_ABOVE else await asyncio.to_thread(_enrich_event, *told)
    return Message(
        delivery_id=task.delivery_id,
        incident_id=task.incident_id,
        episode=task.episode,
        event=event,
        links=found,
        accepted_at=task.accepted_at,
        first_receipt=task.first_receipt,
        firing_undelivered=task.firing_undelivered,
        remark=task.remark,
        events_size=task.events_size,
        contacts=contacts,
        age=task.age,
        keep_open=task.keep_open,
    )


def _enrich_event(event_json: bytes, accepted_at: datetime, rules: LinkRules) -> tuple[Event, tuple[Links, ...]]:
    event = remove_foreign_links(decode_event(event_json), rules)
    return event, tuple(build_links(alert, accepted_at, rules) for alert in event.alerts)


_enrich_event_cached = lru_cache(maxsize=128)(_enrich_event)
"""Several channels tell the same event, one soon after the other."""
