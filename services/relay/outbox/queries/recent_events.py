"""The webhooks that were accepted last, for people who choose one. No query changes the outbox, or waits for a lock."""

from functools import partial
from typing import Final, NamedTuple

from sqlalchemy import Connection, bindparam, func, select

from services.relay.outbox.engine.store import Store
from services.relay.outbox.rows import RowQuery, select_values
from services.relay.outbox.tables import events

_MAX_READ: Final = 100
"""The newest events that are looked at: those of the relay's own have no webhook, and some are too large."""


class RecentEvent(NamedTuple):
    """A webhook that was accepted."""

    id: str
    receiver: str
    alertname: str
    status: str
    accepted_at: float
    """Unix seconds."""


_newest = select(events.c.seq).order_by(events.c.seq.desc()).limit(_MAX_READ).scalar_subquery()
_fits = func.length(events.c.body).between(1, bindparam("max_bytes"))
_RECENT: Final = (
    RowQuery(
        RecentEvent,
        select(events.c.id, events.c.receiver, events.c.alertname, events.c.status, events.c.accepted_at),
    )
    .where(events.c.seq.in_(_newest), _fits)
    .order_by(events.c.seq.desc())
    .limit(bindparam("most"))
)
_BODY: Final = select_values(bytes, events.c.body).where(events.c.id == bindparam("event"), _fits)


async def list_recent_events(store: Store, limit: int, max_bytes: int) -> list[RecentEvent]:
    """The last webhooks that have at most `max_bytes`, the newest first. Raises StoreUnavailableError."""
    return await store.read(partial(_RECENT.fetch_all, values={"most": limit, "max_bytes": max_bytes}))


async def read_webhook(store: Store, event_id: str, max_bytes: int) -> bytes | None:
    """The webhook of an event as it came; None if there is none, or a larger one. Raises StoreUnavailableError."""

    def read(connection: Connection) -> bytes | None:
        return _BODY.fetch_first(connection, {"event": event_id, "max_bytes": max_bytes})

    return await store.read(read)
