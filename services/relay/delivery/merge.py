"""Two events of one incident → one that tells both: every alert in its last state. Pure."""

from collections.abc import Mapping
from dataclasses import replace

from services.relay.bounds import limit_size
from services.relay.model import Event, compute_digest, split_digests, collect_digests


def merge_events(older: Event, newer: Event) -> Event:
    """The newer event, and every alert of the older one that it does not speak of, within bounds.

    So of {A and B fire}, {A is over, B fires} and {B fires} the last still tells that A is over. An alert that ended
    unnoticed, since it was silenced by then, stays as it was last told of.

    Args:
        older: what nobody was told of.
        newer: what was accepted after it.
    """
    known = collect_digests(newer)
    others = tuple(alert for alert in older.alerts if compute_digest(alert.fingerprint) not in known)
    firing = split_digests(older.unlisted_firing) - known
    resolved = split_digests(older.unlisted_resolved) - known
    note = newer.remark or older.remark
    if not (others or firing or resolved):
        return replace(newer, remark=note)
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
            remark=note,
        )
    )


def _intersect(one: Mapping[str, str], other: Mapping[str, str]) -> dict[str, str]:
    return {key: value for key, value in one.items() if other.get(key) == value}
