"""The four states of a part, the worst first; each has a colour and a shape of its own on a page."""

from collections.abc import Iterable, Mapping
from enum import StrEnum
from typing import Final

from services.relay.outbox.tables import DeliveryState


class HealthStatus(StrEnum):
    """The worst first; the value is the CSS class."""

    FAILING = "failing"
    DEGRADED = "degraded"
    UNKNOWN = "unknown"
    HEALTHY = "healthy"


def find_worst(statuses: Iterable[HealthStatus]) -> HealthStatus:
    """The worst of them; unknown if there is none."""
    order = list(HealthStatus)
    return min(statuses, key=order.index, default=HealthStatus.UNKNOWN)


DELIVERY_LIGHTS: Final[Mapping[DeliveryState, HealthStatus]] = {
    DeliveryState.DELIVERED: HealthStatus.HEALTHY,
    DeliveryState.RETRYING: HealthStatus.DEGRADED,
    DeliveryState.DEAD: HealthStatus.FAILING,
}
"""The light of a delivery's state; unknown for the others."""
