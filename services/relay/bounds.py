"""An event → the same event within bounds, whatever its webhook held. Pure.

The outbox keeps this beside the webhook, which it keeps whole. So whoever delivers, merges or compares events never
holds more than about a megabyte of one. What is cut off here no channel would show: each has narrower limits.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Final

from services.relay.model import Alert, Event, Status, digest

TEXT: Final = 16_384
"""Characters of one text."""
PAIRS: Final = 65_536
"""Characters of one alert's labels, or annotations."""
LISTED: Final = 524_288
"""Characters of all alerts that are listed; at least one is."""
_URL: Final = 8_192
"""Characters of an address; a longer one is no link for anybody."""
_FRAME: Final = 200
"""What an alert has beside its texts, as if it were characters."""
_FIRST: Final = frozenset(
    {"alertname", "env", "service", "severity", "title", "summary", "description", "runbook_url", "dashboard_url"}
)


def bounded(event: Event) -> Event:
    """The event with as many of its alerts as fit; of the others it keeps digests, which count.

    Where not all fit, those that fire are listed before those that are over, and critical ones before others.
    """
    alerts = tuple(map(_alert, event.alerts))
    if sum(map(_size, alerts)) <= LISTED:
        return _framed(event, alerts, {})
    by_urgency = sorted(
        alerts, key=lambda alert: (alert.status is Status.RESOLVED, alert.labels.get("severity") != "critical")
    )
    left, fit = LISTED, 0
    for alert in by_urgency:
        left -= _size(alert)
        if left < 0 and fit:
            break
        fit += 1
    unlisted: dict[Status, list[bytes]] = {Status.FIRING: [], Status.RESOLVED: []}
    for alert in by_urgency[fit:]:
        unlisted[alert.status].append(digest(alert.fingerprint))
    return _framed(event, tuple(by_urgency[:fit]), {status: b"".join(each) for status, each in unlisted.items()})


def _framed(event: Event, alerts: tuple[Alert, ...], unlisted: Mapping[Status, bytes]) -> Event:
    return replace(
        event,
        alerts=alerts,
        group_labels=_pairs(event.group_labels),
        common_labels=_pairs(event.common_labels),
        common_annotations=_pairs(event.common_annotations),
        external_url=_address(event.external_url),
        unlisted_firing=event.unlisted_firing + unlisted.get(Status.FIRING, b""),
        unlisted_resolved=event.unlisted_resolved + unlisted.get(Status.RESOLVED, b""),
    )


def _alert(alert: Alert) -> Alert:
    if _size(alert) <= TEXT:  # as almost always: then none of its parts is over its bound
        return alert
    return replace(
        alert,
        labels=_pairs(alert.labels),
        annotations=_pairs(alert.annotations),
        generator_url=_address(alert.generator_url),
    )


def _size(alert: Alert) -> int:
    return _FRAME + len(alert.generator_url) + _length(alert.labels) + _length(alert.annotations)


def _length(pairs: Mapping[str, str]) -> int:
    return sum(map(len, pairs)) + sum(map(len, pairs.values()))


def _pairs(pairs: Mapping[str, str]) -> Mapping[str, str]:
    if _length(pairs) <= TEXT:
        return pairs
    kept: dict[str, str] = {}
    left = PAIRS
    for key in sorted(pairs, key=lambda key: key not in _FIRST):
        left -= min(len(key), TEXT) + min(len(pairs[key]), TEXT)
        if left < 0:
            break
        kept[_cut(key)] = _cut(pairs[key])
    return kept


def _cut(text: str) -> str:
    return text if len(text) <= TEXT else text[: TEXT - 1] + "…"


def _address(url: str) -> str:
    return url if len(url) <= _URL else ""
