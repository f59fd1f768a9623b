"""The four states of a part, the worst first; each has a colour and a shape of its own on a page."""

from collections.abc import Iterable
from enum import StrEnum


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
