"""The keys by which a reader's program knows a message again, computed from what was accepted. Pure.

They are promises: whatever becomes of the relay's code, a repeat of what went out before an upgrade has to be known by
them. So they are computed here by the promise, and not by that code.
"""

import hashlib
from collections.abc import Iterable


def dedup_key(group_key: str) -> str:
    """PagerDuty's, of a webhook that names no source: the same as Alertmanager's own.

    https://github.com/prometheus/alertmanager/blob/main/notify/util.go (`Key.Hash`)
    """
    return hashlib.sha256(group_key.encode()).hexdigest()


def message_id(delivery_id: str, recipients: Iterable[str], domain: str) -> str:
    """A mail's: one for each delivery and set of recipients, at the sender's domain."""
    named = "\n".join([delivery_id, *sorted(recipients)])
    return f"<{hashlib.sha256(named.encode()).hexdigest()[:40]}@{domain}>"
