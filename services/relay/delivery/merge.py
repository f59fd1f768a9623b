"""Two events of one incident → one that tells both: every alert in its last state. Pure."""

from collections.abc import Mapping
from dataclasses import replace

from services.relay.model import Event


def merge(untold: Event, newer: Event) -> Event:
    """The newer event, and every alert of the older one that it does not speak of.

    So of {A and B fire}, {A is over, B fires} and {B fires} the last still tells that A is over. An alert that ended
    unnoticed, since it was silenced by then, stays as it was last told of.

    Args:
        untold: what nobody was told of.
        newer: what was accepted after it.
    """
    known = {alert.fingerprint for alert in newer.alerts}
    others = tuple(alert for alert in untold.alerts if alert.fingerprint not in known)
    if not others:
        return replace(newer, note=newer.note or untold.note)
    labels, annotations = newer.common_labels, newer.common_annotations
    for alert in others:
        labels, annotations = _shared(labels, alert.labels), _shared(annotations, alert.annotations)
    return replace(
        newer,
        alerts=newer.alerts + others,
        common_labels=labels,
        common_annotations=annotations,
        note=newer.note or untold.note,
    )


def _shared(one: Mapping[str, str], other: Mapping[str, str]) -> dict[str, str]:
    return {key: value for key, value in one.items() if other.get(key) == value}
