"""What a claim knows of its incidents beside their events: acknowledgement, escalation, and what the provider knows.

On a channel whose provider knows acknowledgements, the first message after an acknowledgement carries it there, and no
later one repeats it: somebody may have taken it back at the provider. Whether that was done is in the receipts of the
episode, so that it survives a crash, and an attempt that failed.
"""

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Final, NamedTuple

from sqlalchemy import Connection, bindparam, or_, select

from services.relay.model import IncidentContext
from services.relay.outbox.rows import DueRow, RowQuery, select_columns
from services.relay.outbox.tables import DeliveryState, deliveries, incidents

ACKNOWLEDGED: Final = "acknowledged"
"""The key in a receipt whose value is the time of the acknowledgement that the provider got, as ISO 8601."""


class ClaimedIncident(NamedTuple):
    """What there is to know of the incident of a claimed delivery."""

    context: IncidentContext = IncidentContext()
    acknowledges: bool = False
    """Whether the provider still has to get the acknowledgement."""
    is_repeat: bool = False
    """Whether the channel accepted all events of the delivery before; known of acknowledged incidents only."""


class _EpisodeRow(NamedTuple):
    """Acknowledgement and escalation of the current episode."""

    id: str
    episode: int
    acknowledged_by: str | None
    acknowledged_at: float | None
    escalated_to: str | None
    escalated_at: float | None


class _DeliveredRow(NamedTuple):
    """What a channel accepted of an episode."""

    incident_id: str
    episode: int
    event_seq: int
    receipt: str | None


_delivery = deliveries.c
_READ_EPISODES: Final = RowQuery(_EpisodeRow, select(*select_columns(_EpisodeRow, incidents.c))).where(
    incidents.c.id.in_(bindparam("incidents", expanding=True)),
    or_(incidents.c.acknowledged_at.is_not(None), incidents.c.escalated_at.is_not(None)),
)
_READ_DELIVERED: Final = RowQuery(_DeliveredRow, select(*select_columns(_DeliveredRow, _delivery))).where(
    _delivery.incident_id.in_(bindparam("incidents", expanding=True)),
    _delivery.episode.in_(bindparam("episodes", expanding=True)),
    _delivery.channel == bindparam("channel"),
    _delivery.state.concat("") == DeliveryState.DELIVERED,  # so that `deliveries_of_episode` is used
)


def read_claimed_incidents(
    connection: Connection, channel: str, due: Sequence[DueRow], *, acknowledges: bool
) -> Mapping[str, ClaimedIncident]:
    """By the id of the delivery; those of which there is nothing to know are missing.

    Args:
        connection: to read with.
        channel: that claims.
        due: its deliveries.
        acknowledges: whether its provider knows acknowledgements.
    """
    ids = [row.delivery.incident_id for row in due]
    episodes = {(row.id, row.episode): row for row in _READ_EPISODES.fetch_all(connection, {"incidents": ids})}
    if not episodes:
        return {}
    accepted: dict[tuple[str, int], list[_DeliveredRow]] = {}
    if acknowledges:
        values = {
            "incidents": [incident for incident, _ in episodes],
            "episodes": [episode for _, episode in episodes],
            "channel": channel,
        }
        for row in _READ_DELIVERED.fetch_all(connection, values):
            accepted.setdefault((row.incident_id, row.episode), []).append(row)
    found = {}
    for each in due:
        of_episode = each.delivery.incident_id, each.delivery.episode
        episode = episodes.get(of_episode)
        if episode is not None:
            found[each.delivery.id] = _build(episode, each, accepted.get(of_episode, ()), acknowledges=acknowledges)
    return found


def _build(
    episode: _EpisodeRow, due: DueRow, accepted: Sequence[_DeliveredRow], *, acknowledges: bool
) -> ClaimedIncident:
    context = IncidentContext(
        acknowledged_by=episode.acknowledged_by or "",
        acknowledged_at=_to_time(episode.acknowledged_at),
        escalated_to=tuple(json.loads(episode.escalated_to or "[]")),
        escalated_at=_to_time(episode.escalated_at),
    )
    if not acknowledges or context.acknowledged_at is None:
        return ClaimedIncident(context)
    sent = context.acknowledged_at.isoformat()
    return ClaimedIncident(
        context,
        acknowledges=all(json.loads(row.receipt or "{}").get(ACKNOWLEDGED) != sent for row in accepted),
        is_repeat=any(row.event_seq >= due.delivery.event_seq for row in accepted),
    )


def _to_time(seconds: float | None) -> datetime | None:
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC)
