"""Who delivers what, and when: one delivery of one incident on one channel at a time, in the order of acceptance.

A claim is a lease: it ends by itself, so that the claims of a crashed relay return. A clean stop
returns its own at once.

Times are the wall clock's, for they outlive the process, and that clock may be set back: what waits for a time that was
set in the future of now is due at once. Only this run's own leases are not: its lanes hold them and end them.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final
from uuid import uuid4

from sqlalchemy import Connection, and_, bindparam, case, exists, func, or_, select, update

from services.relay.model import Event
from services.relay.outbox.schema import State, attempts, decode, deliveries, events
from services.relay.outbox.store import Store

# Statements are built once: building one costs more than SQLite takes to run it.
_older = deliveries.alias("older")
_HEADS: Final = (
    deliveries.c.channel == bindparam("channel"),
    deliveries.c.finished_at.is_(None),
    ~exists().where(
        _older.c.channel == deliveries.c.channel,
        _older.c.incident_id == deliveries.c.incident_id,
        _older.c.finished_at.is_(None),
        _older.c.seq < deliveries.c.seq,
    ),
)
"""The unfinished deliveries of a channel that no older one of their incident stands before."""
_SLACK: Final = 10.0
"""Seconds; a clock that was set back by less only prolongs a wait by as much."""
_SET_BACK: Final = or_(
    exists().where(  # its last attempt ended after now: that is when its wait was set
        attempts.c.delivery_seq == deliveries.c.seq,
        attempts.c.number == deliveries.c.attempts,
        attempts.c.started_at + attempts.c.seconds > bindparam("now") + _SLACK,
    ),
    and_(
        deliveries.c.state == State.SENDING,
        deliveries.c.due_at > bindparam("now") + bindparam("lease_seconds") + _SLACK,
        ~deliveries.c.lease.startswith(bindparam("owner")),
    ),
)
"""What waits, or is leased, since a moment that has not come yet."""
_DUE: Final = (
    select(deliveries, events.c.event)
    .join(events, events.c.seq == deliveries.c.event_seq)
    .where(*_HEADS, or_(deliveries.c.due_at <= bindparam("now"), _SET_BACK))
    .order_by(deliveries.c.seq)
    .limit(1)
)
_TAKE: Final = (
    update(deliveries)
    .where(deliveries.c.seq == bindparam("taken"))
    .values(state=State.SENDING, lease=bindparam("lease"), due_at=bindparam("ends"), attempts=deliveries.c.attempts + 1)
)
_FIRST_RECEIPT: Final = (
    select(deliveries.c.receipt)
    .where(
        deliveries.c.incident_id == bindparam("incident"),
        deliveries.c.episode == bindparam("episode"),
        deliveries.c.channel == bindparam("channel"),
        deliveries.c.state == State.DELIVERED,
    )
    .order_by(deliveries.c.seq)
    .limit(1)
)
_NEXT_DUE: Final = select(func.min(deliveries.c.due_at)).where(*_HEADS)


@dataclass(frozen=True, slots=True)
class Claim:
    """A delivery that is ours until its lease ends."""

    delivery_id: str
    lease: str
    """Proof of this claim; a receipt is written only under it."""
    attempt: int
    """1 for the first."""
    channel: str
    incident_id: str
    episode: int
    accepted_at: datetime
    first_receipt: Mapping[str, str] | None
    """Of this episode's first delivery on this channel."""
    written_event: bytes

    def event(self) -> Event:
        """The event to tell of. Raises ValueError where it was written by something else than this program."""
        return decode(self.written_event)


async def claim(store: Store, channel: str, *, owner: str, seconds: float) -> Claim | None:
    """The oldest delivery of a channel that is due and whose predecessors of its incident are done, or None.

    Args:
        store: the outbox.
        channel: its name.
        owner: whose claim it becomes; unique to this run of a relay.
        seconds: how long the lease lasts.

    Raises:
        StoreUnavailableError: nothing was claimed.
    """
    return await store.run(lambda connection: _claim(connection, channel, owner, store.clock(), seconds))


async def next_due(store: Store, channel: str) -> float | None:
    """When the next delivery of a channel becomes due (unix seconds), or a lease ends; None where nothing waits.

    Raises:
        StoreUnavailableError: it cannot be read.
    """
    return await store.run(lambda connection: connection.execute(_NEXT_DUE, {"channel": channel}).scalar())


async def give_back(store: Store, owner: str) -> None:
    """Makes what an owner claimed and did not finish due at once, for a clean stop. Raises StoreUnavailableError."""
    back = (
        update(deliveries)
        .where(deliveries.c.lease.startswith(owner), deliveries.c.finished_at.is_(None))
        .values(
            state=case((deliveries.c.attempts > 1, State.RETRYING), else_=State.QUEUED),
            attempts=deliveries.c.attempts - 1,
            due_at=0.0,
            lease=None,
        )
    )
    await store.run(lambda connection: connection.execute(back))


def _claim(connection: Connection, channel: str, owner: str, now: float, seconds: float) -> Claim | None:
    due = connection.execute(_DUE, {"channel": channel, "now": now, "lease_seconds": seconds, "owner": owner}).first()
    if due is None:
        return None
    lease = f"{owner}/{uuid4().hex}"
    connection.execute(_TAKE, {"taken": due.seq, "lease": lease, "ends": now + seconds})
    first_receipt = connection.execute(
        _FIRST_RECEIPT, {"incident": due.incident_id, "episode": due.episode, "channel": channel}
    ).scalar()
    return Claim(
        delivery_id=due.id,
        lease=lease,
        attempt=due.attempts + 1,
        channel=channel,
        incident_id=due.incident_id,
        episode=due.episode,
        accepted_at=datetime.fromtimestamp(due.accepted_at, UTC),
        first_receipt=json.loads(first_receipt) if first_receipt else None,
        written_event=due.event,
    )
