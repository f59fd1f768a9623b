"""A claimed task → the message that a channel sends; and two events of one incident → one event. Pure."""

import asyncio
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime, tzinfo
from functools import lru_cache

from services.relay.delivery.digest import build_digest_message
from services.relay.delivery.links import LinkRules, build_incident_url, build_links, remove_foreign_links
from services.relay.event_size import limit_size
from services.relay.model import (
    Button,
    DeliveryTask,
    Event,
    Links,
    Message,
    collect_digests,
    compute_digest,
    decode_event,
    split_digests,
)
from shared.process.concurrency import LARGE_BYTES, run_in_thread_if_large


def merge_events(older: Event, newer: Event) -> Event:
    """The newer event with each alert of the older one that it lacks, limited in size.

    So of {A and B fire}, {A is resolved, B fires} and {B fires} the last still contains that A is resolved. An alert
    that was resolved while it was silenced stays as Alertmanager sent it last.

    Args:
        older: not delivered.
        newer: accepted after it.
    """
    newer_digests = collect_digests(newer)
    others = tuple(alert for alert in older.alerts if compute_digest(alert.fingerprint) not in newer_digests)
    firing = split_digests(older.unlisted_firing) - newer_digests
    resolved = split_digests(older.unlisted_resolved) - newer_digests
    remark = newer.remark or older.remark
    if not (others or firing or resolved):
        return replace(newer, remark=remark)
    labels, annotations = newer.common_labels, newer.common_annotations
    if firing or resolved:  # of these it is known no better
        labels, annotations = _intersect(labels, older.common_labels), _intersect(annotations, older.common_annotations)
    for alert in others:
        labels, annotations = _intersect(labels, alert.labels), _intersect(annotations, alert.annotations)
    return limit_size(
        replace(
            newer,
            alerts=newer.alerts + others,
            common_labels=labels,
            common_annotations=annotations,
            unlisted_firing=newer.unlisted_firing + b"".join(sorted(firing)),
            unlisted_resolved=newer.unlisted_resolved + b"".join(sorted(resolved)),
            remark=remark,
        )
    )


def _intersect(one: Mapping[str, str], other: Mapping[str, str]) -> dict[str, str]:
    return {key: value for key, value in one.items() if other.get(key) == value}


async def build_message(
    task: DeliveryTask,
    link_rules: LinkRules,
    contacts: Mapping[str, str],
    zone: tzinfo = UTC,
    buttons: tuple[Button, ...] = (),
) -> Message:
    """The message of a task; the same at each attempt, so that a channel can find what it sent.

    Args:
        task: with its merged event.
        link_rules: for its links.
        contacts: the address of each role.
        zone: the readers' time zone.
        buttons: what readers can press.

    Raises:
        ValueError: the outbox holds something that is no event.
    """
    if task.members:
        return await asyncio.to_thread(build_digest_message, task, link_rules)
    arguments = task.event_json, task.accepted_at, link_rules
    size = len(task.event_json)
    enrich = _enrich_event if size > LARGE_BYTES else _enrich_event_cached
    event, found = await run_in_thread_if_large(size, lambda: enrich(*arguments))
    incident_url = build_incident_url(task, link_rules)
    return Message(task, event, found, contacts, zone=zone, buttons=buttons, incident_url=incident_url)


def _enrich_event(event_json: bytes, accepted_at: datetime, rules: LinkRules) -> tuple[Event, tuple[Links, ...]]:
    event = remove_foreign_links(decode_event(event_json), rules)
    return event, tuple(build_links(alert, accepted_at, rules) for alert in event.alerts)


_enrich_event_cached = lru_cache(maxsize=128)(_enrich_event)
"""Several channels send the same event, one soon after the other."""
