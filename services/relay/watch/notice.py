"""A webhook that was not accepted may be an alert that nobody hears of: so the relay tells of it itself.

What comes in is the quarantine; out goes an incident of the relay's own on the default channels, which ends when no
further webhook was put there for an hour.
"""

from collections.abc import Collection, Sequence
from functools import partial
from typing import Final

import structlog

from services.relay.channels.wording import clean_line, truncate
from services.relay.outbox import rejected
from services.relay.outbox.incidents import read_open_incident
from services.relay.outbox.rejected import QuarantineEntry
from services.relay.watch.telling import SelfAlert, AlertPublisher

_CHECK_INTERVAL: Final = 5.0
_RESOLVE_AFTER: Final = 3600.0
_MAX_REASON: Final = 200
"""Characters; it may quote what was sent."""
_RESOLVED_REMARK: Final = "No further webhook was put in quarantine for an hour."

log = structlog.get_logger(__name__)


class QuarantineMonitor:
    """Tells of webhooks in quarantine.

    Args:
        publisher: tells it.
        channels: whom.
    """

    def __init__(self, publisher: AlertPublisher, channels: Collection[str]) -> None:
        self._publisher = publisher
        self._channels = channels
        self._incident_id = _build_alert([]).incident_id

    async def check(self) -> float:
        """Looks once; gives the seconds until the next look. Raises StoreUnavailableError."""
        store = self._publisher.store
        now = await store.run(lambda transaction: transaction.now)
        recent = [entry for entry in await rejected.list_entries(store) if now - entry.received_at < _RESOLVE_AFTER]
        told = await store.read(partial(read_open_incident, incident_id=self._incident_id))
        if recent and told is None:
            await self._publisher.fire(_build_alert(recent), self._channels)
        elif told is not None and not recent:
            await self._publisher.resolve(told, _RESOLVED_REMARK)
        return _CHECK_INTERVAL


def _build_alert(recent: Sequence[QuarantineEntry]) -> SelfAlert:
    """The incident, told of what came within the last hour, the newest first."""
    last = truncate(clean_line(recent[0].reason), _MAX_REASON) if recent else ""
    number = "1 webhook was" if len(recent) == 1 else f"{len(recent)} webhooks were"
    return SelfAlert(
        group="quarantine",
        labels={"alertname": "RelayWebhookQuarantined", "severity": "warning"},
        summary=f"{number} not accepted; an alert in it may be unheard",
        description=(
            f"{number} not accepted within the last hour and put in quarantine; the last one because: {last}. "
            "`GET /api/quarantine` of the relay lists them, `GET /api/quarantine/ID` gives the body of one."
        ),
    )
