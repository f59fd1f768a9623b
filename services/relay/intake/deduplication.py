"""Which incident an event belongs to, whether it was told before, and what follows. Pure."""

import hashlib
import json
from collections.abc import Collection, Sequence
from typing import Final

from services.relay.model import Event, Status, collect_digests, compute_digest, decode_event
from services.relay.outbox.accept import DeliveryPlan
from services.relay.outbox.incidents import IncidentState

OWN_SOURCE: Final = "keypulse"
"""Of every incident of the relay's own; no sender may use it."""
_PEER_TIMEOUT: Final = 20.0
"""Seconds. The second Alertmanager waits for its `peer_timeout`, 15 s by default, before it sends the same."""


def build_incident_id(event: Event) -> str:
    """The same for every event of a group, for ever: a hash of source, receiver and groupKey."""
    return _hash_json([event.source, event.receiver, event.group_key])


def build_fingerprint(event: Event) -> str:
    """Equal for two events that tell the same: a hash of what they say."""
    return f"{hash_alerts(event):064x}"


def hash_alerts(event: Event) -> int:
    """A hash of fingerprint, status and start of each alert, in any order: parts of an event add up to the whole.

    The end is no part of it, nor is anything else: the twins of an HA pair may differ there.
    """
    alerts = {(alert.fingerprint, alert.status.value, alert.starts_at.isoformat()) for alert in event.alerts}
    return sum(int(_hash_json(alert), 16) for alert in alerts) % 2**256


def find_alertname(event: Event) -> str:
    """What a person calls it; empty where the alerts of the group have several names and none is its own."""
    return event.group_labels.get("alertname") or event.common_labels.get("alertname", "")


def plan_deliveries(
    event: Event,
    state: IncidentState | None,
    *,
    fingerprint: str,
    now: float,
    duplicate_window: float,
    routed_channels: Sequence[str],
    configured_channels: Collection[str],
) -> DeliveryPlan | None:
    """What to do with an event; None where it is no news: a repeat of the incident's latest one, or a late twin.

    Args:
        event: what came in.
        state: what the outbox holds of its incident.
        fingerprint: the event's `build_fingerprint`, from before it was bounded.
        now: unix seconds.
        duplicate_window: seconds within which an equal event is taken for the other Alertmanager's of an HA pair.
        routed_channels: the channels that the routes name.
        configured_channels: the channels that exist here; those of other replicas are known.
    """
    if state is None:
        return DeliveryPlan(
            1, is_open=_is_open_after(event, was_open=True), channels=tuple(dict.fromkeys(routed_channels))
        )
    # A clock that was set back must not turn the next hours' repeats into duplicates: hence the distance.
    just_now = abs(now - state.accepted_at) < duplicate_window
    # Where the relay told the end itself, Alertmanager's own is no news, however late it comes.
    told_by_us = state.is_latest_own and not state.is_open
    if (just_now or told_by_us) and fingerprint == state.fingerprint and not state.has_dead_delivery:
        return None
    if _is_late_twin(event, state, fingerprint, now=now, duplicate_window=duplicate_window):
        return None
    begins = event.status is Status.FIRING and not state.is_open
    there = state.served_channels.union(configured_channels)
    also = sorted(state.open_channels & there) if state.is_open else []
    return DeliveryPlan(
        state.episode + begins,
        is_open=_is_open_after(event, was_open=state.is_open),
        channels=tuple(dict.fromkeys([*routed_channels, *also])),
        unconfigured_channels=tuple(sorted(state.open_channels.difference(configured_channels)))
        if state.is_open
        else (),
    )


def _is_late_twin(event: Event, state: IncidentState, fingerprint: str, *, now: float, duplicate_window: float) -> bool:
    """Whether the other Alertmanager of an HA pair sends an older state after a newer one was accepted.

    It equals an event before the latest one that was accepted within the window; and of each of its alerts the latest
    event says the same, or tells of a later start, or leaves out its end and tells what began since. So whatever it is,
    it has nothing to tell. A firing after a resolve is news, for a sender may keep the start of what fires again; but
    not where its like came seconds ago and it lacks what fires by the latest event: a newer state would have that, if
    only as its end.
    """
    ages = [abs(now - earlier.accepted_at) for earlier in state.earlier_events if fingerprint == earlier.fingerprint]
    age = min(ages, default=duplicate_window)
    if age >= duplicate_window or state.latest_event_json is None or state.has_dead_delivery:
        return False
    if event.status is Status.FIRING and not state.is_open:
        return False
    latest = decode_event(state.latest_event_json)
    lacks = _misses_firing_alerts(event, latest)
    older = age < _PEER_TIMEOUT and lacks
    newest = {alert.fingerprint: alert for alert in latest.alerts}
    for alert in event.alerts:
        newer = newest.get(alert.fingerprint)
        if newer is None and alert.status is Status.RESOLVED and lacks:
            continue  # its end was told, and a newer state would not leave out what began since
        if newer is None or newer.starts_at < alert.starts_at:
            return False
        ended = older and newer.status is Status.RESOLVED
        if newer.starts_at == alert.starts_at and newer.status is not alert.status and not ended:
            return False
    return True


def _misses_firing_alerts(event: Event, latest: Event) -> bool:
    spoken = collect_digests(event)
    firing = (compute_digest(alert.fingerprint) for alert in latest.alerts if alert.status is Status.FIRING)
    return not event.truncated_alerts and not spoken.issuperset(firing)


def _is_open_after(event: Event, *, was_open: bool) -> bool:
    """Whether the incident is open after this event, given whether it was before."""
    if event.status is Status.FIRING:
        return True
    # Alertmanager computes the status of a truncated group on the alerts that were left in it: it says nothing.
    return was_open if event.truncated_alerts else False


def _hash_json(value: object) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()
