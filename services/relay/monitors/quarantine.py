"""An incident of the relay's own about webhooks in quarantine, because an alert in them may have reached nobody.

It goes to the default channels, and is resolved when no further webhook was quarantined for an hour.
"""

from collections.abc import Collection, Sequence
from functools import partial
from typing import Final

from services.relay.monitors.self_alerts import AlertPublisher, SelfAlert
from services.relay.outbox.incidents import read_open_incident
from services.relay.outbox.operators.quarantine import QuarantineEntry, list_entries
from services.relay.text import clean_line, truncate

_CHECK_INTERVAL: Final = 5.0
_RESOLVE_AFTER: Final = 3600.0
_MAX_REASON: Final = 200
"""Characters of a reason, which may quote the webhook."""
_RESOLVED_REMARK: Final = "No further webhook was quarantined for an hour."


class QuarantineMonitor:
    """Publishes an alert about webhooks in quarantine.

    Args:
        publisher: of the alert.
        channels: where it goes.
    """

    def __init__(self, publisher: AlertPublisher, channels: Collection[str]) -> None:
        self._publisher = publisher
        self._channels = channels
        self._incident_id = _build_alert([]).incident_id

    async def check(self) -> float:
        """Checks once; gives the seconds until the next check. Raises StoreUnavailableError."""
        store = self._publisher.store
        now = await store.run(lambda transaction: transaction.now)
        recent = [entry for entry in await list_entries(store) if now - entry.received_at < _RESOLVE_AFTER]
        incident = await store.read(partial(read_open_incident, incident_id=self._incident_id))
        if recent and incident is None:
            await self._publisher.fire(_build_alert(recent), self._channels)
        elif incident is not None and not recent:
            await self._publisher.resolve(incident, _RESOLVED_REMARK)
        return _CHECK_INTERVAL


def _build_alert(recent: Sequence[QuarantineEntry]) -> SelfAlert:
    """The incident of the entries of the last hour, the newest first."""
    last = truncate(clean_line(recent[0].reason), _MAX_REASON) if recent else ""
    number = "1 webhook" if len(recent) == 1 else f"{len(recent)} webhooks"
    return SelfAlert(
        group="quarantine",
        labels={"alertname": "RelayWebhookQuarantined", "severity": "warning"},
        title=f"The relay cannot accept {number}: an alert in it may have reached nobody",
        summary=f"Quarantined within the last hour: {number}",
        description=(
            f"The reason of the last one: {last}. `GET /api/quarantine` of the relay lists them, "
            "`GET /api/quarantine/ID` gives the body of one."
        ),
    )
