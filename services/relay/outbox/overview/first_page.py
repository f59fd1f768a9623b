"""All that the first page of the console reads of the outbox, as of one moment."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from sqlalchemy import Connection

from services.relay.outbox.channel_state.channel_overviews import ChannelOverview, read_channel_overviews
from services.relay.outbox.engine.dialect import read_clock
from services.relay.outbox.overview.open_incidents import OpenIncidents, read_open_incidents
from services.relay.outbox.overview.webhook_times import WebhookTimes, read_webhook_times
from services.relay.outbox.watchdog_silence import read_heartbeats, read_last_seen


@dataclass(frozen=True, slots=True)
class Overview:
    """The state of the relay. Times are unix seconds by the database's clock."""

    now: float
    channels: Sequence[ChannelOverview]
    incidents: OpenIncidents
    webhooks: WebhookTimes
    heartbeats: Mapping[str, float | None]
    """The last heartbeat of each watchdog; None before the first."""
    heartbeats_awaited: Mapping[str, float]
    """The same, or since when one is awaited."""


EMPTY_OVERVIEW: Final = Overview(0.0, (), OpenIncidents((), {}, {}), WebhookTimes(None, 0), {}, {})
"""Before the outbox could be read."""


def read_overview(
    connection: Connection, clock: Callable[[], float], channels: Sequence[str], max_incidents: int
) -> Overview:
    """For `Store.read`.

    Args:
        connection: of a read.
        clock: unix seconds, by this machine.
        channels: the configured names.
        max_incidents: how many open incidents are read at most.
    """
    now = read_clock(connection, clock)
    return Overview(
        now,
        read_channel_overviews(connection, channels, now),
        read_open_incidents(connection, now, max_incidents),
        read_webhook_times(connection),
        read_heartbeats(connection),
        read_last_seen(connection),
    )
