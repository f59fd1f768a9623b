"""What the holder of a claim asks of the outbox: the events to tell, to keep progress, to take the claim back."""

import json
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from functools import partial
from typing import Final

from sqlalchemy import Connection, Row, bindparam, case, func, select, update

from services.relay.outbox.claim import LARGE, Claim
from services.relay.outbox.enqueue import Waits, merge_into_successor
from services.relay.outbox.lock import lock
from services.relay.outbox.schema import State, deliveries, events, plain
from services.relay.outbox.store import Store
from services.relay.outbox.together import Transaction

_of = deliveries.c
_MERGED: Final = (
    select(events.c.seq, func.length(events.c.event).label("size"))
    .where(events.c.incident_id == bindparam("incident"), events.c.seq.between(bindparam("first"), bindparam("last")))
    .order_by(events.c.seq)
)
_EVENTS: Final = (
    select(events.c.event).where(events.c.seq.in_(bindparam("wanted", expanding=True))).order_by(events.c.seq)
)
_whose = (_of.lease.startswith(bindparam("owner")), _of.finished_at.is_(None))
_WHOSE: Final = select(_of.incident_id).where(*_whose)
_HELD: Final = (
    select(_of.seq, _of.channel, _of.incident_id, _of.first_event, _of.attempts, _of.reason, _of.waits_since, _of.note)
    .add_columns(_of.fell_back, _of.maybe_told)
    .where(*_whose)
    .order_by(_of.seq)
    .with_for_update()
)
_GIVE_BACK: Final = (
    update(deliveries)
    .where(*_whose)
    .values(
        state=case((_of.attempts > 1, State.RETRYING), else_=State.QUEUED),
        attempts=_of.attempts - 1,
        due_at=bindparam("now"),
        set_at=bindparam("now"),
        lease=None,
        maybe_sent=1,
    )
)


async def told_events(store: Store, claim: Claim) -> AsyncIterator[bytes]:
    """The events that a delivery tells, as they were written, in their order. Raises StoreUnavailableError."""
    if claim.first_event == claim.last_event:
        yield claim.written_event
        return
    which = {"incident": claim.incident_id, "first": claim.first_event, "last": claim.last_event}
    for page in _pages(await store.read(lambda connection: connection.execute(_MERGED, which).all())):
        for written in await store.read(partial(_read, page)):
            yield written


def _pages(events_of: Sequence[Row[int, int]]) -> Iterator[list[int]]:
    """Events that are read together: as many as their size allows, so that memory is bounded."""
    page: list[int] = []
    size = 0
    for seq, length in events_of:
        if page and size + length > LARGE:
            yield page
            page, size = [], 0
        page.append(seq)
        size += length
    yield page


def _read(wanted: list[int], connection: Connection) -> Sequence[bytes]:
    return connection.execute(_EVENTS, {"wanted": wanted}).scalars().all()


async def keep(store: Store, claim: Claim, progress: Mapping[str, str]) -> bool:
    """Commits what a channel has done of a delivery already. False where the lease was lost, and nothing is kept.

    Raises:
        StoreUnavailableError: it is not known to be committed.
    """
    kept = (
        update(deliveries)
        .where(_of.id == claim.delivery_id, _of.lease == claim.lease)
        .values(progress=plain(json.dumps(dict(progress))))
    )
    return await store.run(lambda transaction: transaction.connection.execute(kept).rowcount == 1)


async def give_back(store: Store, owner: str) -> None:
    """Makes what an owner claimed and did not finish due at once, for a clean stop. Raises StoreUnavailableError."""
    await store.run(lambda transaction: _give_back(transaction, owner))


def _give_back(transaction: Transaction, owner: str) -> None:
    connection = transaction.connection
    lock(transaction, set(connection.execute(_WHOSE, {"owner": owner}).scalars()))
    for row in connection.execute(_HELD, {"owner": owner}).all():
        merge_into_successor(transaction, row, Waits(row.attempts - 1, transaction.now, row.reason))
    connection.execute(_GIVE_BACK, {"owner": owner, "now": transaction.now})
