"""When a webhook was last accepted, heartbeats included, and how many are in quarantine; by any replica."""

from typing import Final, NamedTuple

from sqlalchemy import Connection, func, select

from services.relay.outbox.rows import RowQuery
from services.relay.outbox.tables import events, quarantine, watchdogs

_NEWEST: Final = 100
"""Events that are searched for one that came as a webhook: an incident of the relay's own has none."""


class WebhookTimes(NamedTuple):
    """What is known of the webhooks that came."""

    accepted_at: float | None
    """Unix seconds, by the database's clock; None where none has come, or retention left none."""
    quarantined: int


def _read_time(at: float | None) -> float | None:
    return at


_newest = (
    select(events.c.accepted_at, func.length(events.c.body).label("size"))
    .order_by(events.c.seq.desc())
    .limit(_NEWEST)
    .subquery()
)
_ACCEPTED: Final = RowQuery(_read_time, select(func.max(_newest.c.accepted_at)).where(_newest.c.size > 0))
_HEARTBEAT: Final = RowQuery(_read_time, select(func.max(watchdogs.c.heartbeat_at)))
_QUARANTINED: Final = RowQuery(int, select(func.count()).select_from(quarantine))


def read_webhook_times(connection: Connection) -> WebhookTimes:
    """For `Store.read`."""
    accepted = [_ACCEPTED.fetch_one(connection), _HEARTBEAT.fetch_one(connection)]
    newest = max((at for at in accepted if at is not None), default=None)
    return WebhookTimes(newest, _QUARANTINED.fetch_one(connection))
