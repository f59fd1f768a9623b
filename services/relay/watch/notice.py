"""A webhook that was not accepted may be an alert that nobody hears of: so the relay tells of it itself.

What comes in is the quarantine; out goes an incident of the relay's own on the default channels, which ends when no
further webhook was put there for an hour.
"""

from collections.abc import Collection, Sequence
from functools import partial
from typing import Final

import structlog

from services.relay.channels.wording import one_line, shorten
from services.relay.outbox import rejected
from services.relay.outbox.incidents import open_incident
from services.relay.outbox.rejected import Kept
from services.relay.watch.telling import Own, Teller

_LOOK_SECONDS: Final = 5.0
_QUIET_SECONDS: Final = 3600.0
_REASON_LIMIT: Final = 200
"""Characters; it may quote what was sent."""
_QUIET: Final = "No further webhook was put in quarantine for an hour."

log = structlog.get_logger(__name__)


class Notice:
    """Tells of webhooks in quarantine.

    Args:
        teller: tells it.
        channels: whom.
    """

    def __init__(self, teller: Teller, channels: Collection[str]) -> None:
        self._teller = teller
        self._channels = channels
        self._incident_id = _incident([]).incident_id

    async def look(self) -> float:
        """Looks once; gives the seconds until the next look. Raises StoreUnavailableError."""
        store = self._teller.store
        now = await store.run(lambda transaction: transaction.now)
        recent = [entry for entry in await rejected.kept(store) if now - entry.received_at < _QUIET_SECONDS]
        told = await store.read(partial(open_incident, incident_id=self._incident_id))
        if recent and told is None:
            await self._teller.begin(_incident(recent), self._channels)
        elif told is not None and not recent:
            await self._teller.end(told, _QUIET)
        return _LOOK_SECONDS


def _incident(recent: Sequence[Kept]) -> Own:
    """The incident, told of what came within the last hour, the newest first."""
    last = shorten(one_line(recent[0].reason), _REASON_LIMIT) if recent else ""
    number = "1 webhook was" if len(recent) == 1 else f"{len(recent)} webhooks were"
    return Own(
        group="quarantine",
        labels={"alertname": "RelayWebhookQuarantined", "severity": "warning"},
        summary=f"{number} not accepted; an alert in it may be unheard",
        description=(
            f"{number} not accepted within the last hour and put in quarantine; the last one because: {last}. "
            "`GET /api/quarantine` of the relay lists them, `GET /api/quarantine/ID` gives the body of one."
        ),
    )
