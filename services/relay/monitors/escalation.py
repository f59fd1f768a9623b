"""Gives incidents that nobody acknowledges to their next channels."""

from typing import Final

import structlog

from services.relay.acknowledgement.store import escalate_due
from services.relay.monitors.self_alerts import AlertPublisher
from services.relay.outbox.tables import DeliveryState

_CHECK_INTERVAL: Final = 5.0

log = structlog.get_logger(__name__)


class EscalationMonitor:
    """Escalates what is due.

    Args:
        publisher: of the monitors.
    """

    def __init__(self, publisher: AlertPublisher) -> None:
        self._publisher = publisher

    async def check(self) -> float:
        """Checks once; gives the seconds until the next check. Raises StoreUnavailableError."""
        publisher = self._publisher
        for done in await escalate_due(publisher.store, publisher.channels):
            if done.channels:
                log.info("incident escalated", incident_id=done.incident_id, channels=done.channels)
            for channel in done.channels:
                publisher.metrics.count_escalation(channel)
            for channel in done.superseded_channels:
                publisher.metrics.count_delivery(channel, DeliveryState.SUPERSEDED)
            if done.skipped_channels:
                log.warning(
                    "escalation skipped a channel that is not configured",
                    incident_id=done.incident_id,
                    channels=done.skipped_channels,
                    hint="correct `routes`; the incident's next event brings the new steps",
                )
            publisher.wake_channels(done.edited_channels.union(done.channels))
        return _CHECK_INTERVAL
