"""Two events of one incident → one that tells both: every alert in its last state. Pure."""

from collections.abc import Mapping
from dataclasses import replace

from services.relay.bounds import bounded
from services.relay.model import Event, digest, digests, spoken_of


def merge(untold: Event, newer: Event) -> Event:
    """The newer event, and every alert of the older one that it does not speak of, within bounds.

    So of {A and B fire}, {A is over, B fires} and {B fires} the last still tells that A is over. An alert that ended
    unnoticed, since it was silenced by then, stays as it was last told of.

    Args:
        untold: what nobody was told of.
        newer: what was accepted after it.
    """
    known = spoken_of(newer)
    others = tuple(alert for alert in untold.alerts if digest(alert.fingerprint) not in known)
    firing = digests(untold.unlisted_firing) - known
    resolved = digests(untold.unlisted_resolved) - known
    note = newer.note or untold.note
    if not (others or firing or resolved):
        return replace(newer, note=note)
    labels, annotations = newer.common_labels, newer.common_annotations
    if firing or resolved:  # of these it is known no better
        labels, annotations = _shared(labels, untold.common_labels), _shared(annotations, untold.common_annotations)
    for alert in others:
        labels, annotations = _shared(labels, alert.labels), _shared(annotations, alert.annotations)
    return bounded(
        replace(
            newer,
            alerts=newer.alerts + others,
            common_labels=labels,
            common_annotations=annotations,
            unlisted_firing=newer.unlisted_firing + b"".join(sorted(firing)),
            unlisted_resolved=newer.unlisted_resolved + b"".join(sorted(resolved)),
            note=note,
        )
    )


def _shared(one: Mapping[str, str], other: Mapping[str, str]) -> dict[str, str]:
    return {key: value for key, value in one.items() if other.get(key) == value}
