"""Limits the size of an event, whatever its webhook contains. Pure.

The outbox stores the limited event beside the whole webhook, so that merging, comparing and delivering never need more
than about a megabyte for one event. No channel would show what is cut off: each has narrower limits.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Final

from services.relay.model import Alert, Event, Status, compute_digest

MAX_TEXT: Final = 16_384
"""Characters of one text."""
MAX_PAIRS: Final = 65_536
"""Characters of one alert's labels, or annotations."""
MAX_ALERTS_SIZE: Final = 524_288
"""Characters of all alerts that are listed; at least one is."""
_MAX_URL: Final = 8_192
"""Characters of an address; a longer one is no link for anybody."""
_ALERT_OVERHEAD: Final = 200
"""What an alert has beside its texts, as if it were characters."""
_IMPORTANT_KEYS: Final = frozenset(
    {"alertname", "env", "service", "severity", "title", "summary", "description", "runbook_url", "dashboard_url"}
)


def limit_size(event: Event) -> Event:
    """The event with as many of its alerts as fit; of the others it keeps digests, which count.

    Where not all fit, those that fire are listed before those that are over, and critical ones before others.
    """
    alerts = tuple(map(_limit_alert, event.alerts))
    if sum(map(_measure_alert, alerts)) <= MAX_ALERTS_SIZE:
        return _build_limited(event, alerts, {})
    by_urgency = sorted(
        alerts, key=lambda alert: (alert.status is Status.RESOLVED, alert.labels.get("severity") != "critical")
    )
    size_left, fit = MAX_ALERTS_SIZE, 0
    for alert in by_urgency:
        size_left -= _measure_alert(alert)
        if size_left < 0 and fit:
            break
        fit += 1
    unlisted: dict[Status, list[bytes]] = {Status.FIRING: [], Status.RESOLVED: []}
    for alert in by_urgency[fit:]:
        unlisted[alert.status].append(compute_digest(alert.fingerprint))
    return _build_limited(event, tuple(by_urgency[:fit]), {status: b"".join(each) for status, each in unlisted.items()})


def _build_limited(event: Event, alerts: tuple[Alert, ...], unlisted_digests: Mapping[Status, bytes]) -> Event:
    return replace(
        event,
        alerts=alerts,
        group_labels=_limit_pairs(event.group_labels),
        common_labels=_limit_pairs(event.common_labels),
        common_annotations=_limit_pairs(event.common_annotations),
        external_url=_limit_url(event.external_url),
        unlisted_firing=event.unlisted_firing + unlisted_digests.get(Status.FIRING, b""),
        unlisted_resolved=event.unlisted_resolved + unlisted_digests.get(Status.RESOLVED, b""),
    )


def _limit_alert(alert: Alert) -> Alert:
    if _measure_alert(alert) <= MAX_TEXT:  # as almost always: then none of its parts is over its bound
        return alert
    return replace(
        alert,
        labels=_limit_pairs(alert.labels),
        annotations=_limit_pairs(alert.annotations),
        generator_url=_limit_url(alert.generator_url),
    )


def _measure_alert(alert: Alert) -> int:
    return _ALERT_OVERHEAD + len(alert.generator_url) + _measure_pairs(alert.labels) + _measure_pairs(alert.annotations)


def _measure_pairs(pairs: Mapping[str, str]) -> int:
    return sum(map(len, pairs)) + sum(map(len, pairs.values()))


def _limit_pairs(pairs: Mapping[str, str]) -> Mapping[str, str]:
    if _measure_pairs(pairs) <= MAX_TEXT:
        return pairs
    limited: dict[str, str] = {}
    size_left = MAX_PAIRS
    for key in sorted(pairs, key=lambda key: key not in _IMPORTANT_KEYS):
        size_left -= min(len(key), MAX_TEXT) + min(len(pairs[key]), MAX_TEXT)
        if size_left < 0:
            break
        limited[_truncate(key)] = _truncate(pairs[key])
    return limited


def _truncate(text: str) -> str:
    return text if len(text) <= MAX_TEXT else text[: MAX_TEXT - 1] + "…"


def _limit_url(url: str) -> str:
    return url if len(url) <= _MAX_URL else ""
