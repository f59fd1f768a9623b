"""Whether the provider of a channel still has to get the acknowledgement of an incident.

The first message after an acknowledgement carries it to the provider, and no later one repeats it: somebody may have
withdrawn it there. Whether that was done is in the receipts of the episode, so a crash or a failed attempt loses none.
Unlike the rest that a message says of its incident, this is no ornament: where it cannot be read, the attempt fails.
"""

import json
from datetime import UTC, datetime
from typing import Final, NamedTuple

from sqlalchemy import Connection, bindparam, select

from services.relay.model import DeliveryTask
from services.relay.outbox.rows import RowQuery, select_columns, select_values
from services.relay.outbox.tables import DeliveryState, deliveries, incidents

ACKNOWLEDGED: Final = "acknowledged"
"""The key in a receipt with the acknowledgement that the provider got."""


class ProviderAcknowledgement(NamedTuple):
    """What a delivery has to do of an acknowledgement."""

    acknowledgement: str = ""
    """The one that the provider still has to get, named by its time; empty if there is none."""
    is_repeat: bool = False
    """Whether the channel accepted all events of the delivery before, so that nothing else is new."""


class _AcceptedRow(NamedTuple):
    """What a channel accepted of an episode."""

    event_seq: int
    receipt: str | None


_delivery = deliveries.c
_ACKNOWLEDGED_AT: Final = select_values(float, incidents.c.acknowledged_at).where(
    incidents.c.id == bindparam("incident"),
    incidents.c.episode == bindparam("episode"),
    incidents.c.acknowledged_at.is_not(None),
)
_ACCEPTED: Final = RowQuery(_AcceptedRow, select(*select_columns(_AcceptedRow, _delivery))).where(
    _delivery.incident_id == bindparam("incident"),
    _delivery.episode == bindparam("episode"),
    _delivery.channel == bindparam("channel"),
    _delivery.state.concat("") == DeliveryState.DELIVERED,  # so that `deliveries_of_episode` is used
)


def read_provider_acknowledgement(connection: Connection, task: DeliveryTask) -> ProviderAcknowledgement:
    """For a delivery on a channel whose provider knows acknowledgements."""
    values = {"incident": task.incident_id, "episode": task.episode}
    acknowledged_at = _ACKNOWLEDGED_AT.fetch_first(connection, values)
    if acknowledged_at is None:
        return ProviderAcknowledgement()
    name = datetime.fromtimestamp(acknowledged_at, UTC).isoformat()
    accepted = _ACCEPTED.fetch_all(connection, {**values, "channel": task.channel})
    if any(json.loads(row.receipt or "{}").get(ACKNOWLEDGED) == name for row in accepted):
        return ProviderAcknowledgement()
    return ProviderAcknowledgement(name, is_repeat=any(row.event_seq >= task.last_event_seq for row in accepted))
