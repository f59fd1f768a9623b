"""Which incident a message in Slack belongs to: a press counts only on a message that the relay has sent.

A message is there, and can be pressed, before all that belongs into its thread is: then its delivery has no receipt
yet, and its progress says where it is.
"""

import json
from typing import Final, NamedTuple

from sqlalchemy import Connection, bindparam, or_, select

from services.relay.outbox.rows import RowQuery
from services.relay.outbox.tables import deliveries

_delivery = deliveries.c


class SentMessage(NamedTuple):
    """A message of an incident."""

    channel: str
    """The relay's channel that sent it."""
    episode: int
    """Of the delivery: the message may have been edited into the next one's since."""


class _MessageRow(NamedTuple):
    """A delivery that may have sent a message."""

    channel: str
    episode: int
    receipt: str | None
    progress: str | None


_MESSAGES: Final = RowQuery(
    _MessageRow, select(_delivery.channel, _delivery.episode, _delivery.receipt, _delivery.progress)
).where(
    _delivery.incident_id == bindparam("incident"),
    or_(
        _delivery.receipt.like(bindparam("pattern"), escape="\\"),
        _delivery.progress.like(bindparam("pattern"), escape="\\"),
    ),
)


def find_message(connection: Connection, incident_id: str, slack_channel: str, ts: str) -> SentMessage | None:
    """The message of an incident with this `ts` in this channel of Slack; None if the relay knows of none."""
    if not ts.replace(".", "").isdecimal():
        return None
    for row in _MESSAGES.fetch_all(connection, {"incident": incident_id, "pattern": f"%{ts}%"}):
        locations = [json.loads(each or "{}") for each in (row.receipt, row.progress)]
        if any((location.get("channel"), location.get("ts")) == (slack_channel, ts) for location in locations):
            return SentMessage(row.channel, row.episode)
    return None
