"""The report of a period: the figures of its incidents and deliveries, and since when the outbox has them."""

from collections.abc import Collection
from typing import NamedTuple

from sqlalchemy import Connection

from services.relay.outbox.prune_marks import PrunedKind, read_pruned
from services.relay.outbox.queries.delivery_figures import (
    ChannelFigures,
    DeadGroup,
    Period,
    RefusedGroup,
    read_channels,
    read_dead,
    read_refused,
)
from services.relay.outbox.queries.incident_figures import IncidentFigures, read_incidents
from services.relay.outbox.queries.slow_deliveries import SlowDelivery, read_slowest


class Report(NamedTuple):
    """What happened in a period, as far as it is stored. Times are unix seconds."""

    period: Period
    complete_since: float | None
    """Retention has deleted what is older; None where it has deleted nothing of the period."""
    incidents: IncidentFigures
    channels: list[ChannelFigures]
    slowest: list[SlowDelivery]
    dead: list[DeadGroup]
    refused: list[RefusedGroup]
    is_refused_minimum: bool
    """Whether more webhooks were refused in the period than the quarantine still has."""


def read_report(connection: Connection, period: Period, channels: Collection[str]) -> Report:
    """The report of a period, for `Store.read`.

    Args:
        connection: to read with.
        period: of the report.
        channels: the configured names; each is listed, be it without a delivery.
    """
    dead = read_dead(connection, period)
    marks = read_pruned(connection)
    deleted_up_to = max((at for kind, at in marks.items() if kind is not PrunedKind.QUARANTINE), default=0.0)
    return Report(
        period,
        deleted_up_to if deleted_up_to >= period.since else None,
        read_incidents(connection, period),
        read_channels(connection, period, channels, dead),
        read_slowest(connection, period),
        dead,
        read_refused(connection, period),
        is_refused_minimum=marks.get(PrunedKind.QUARANTINE, 0.0) >= period.since,
    )
