"""What the holder of a claim asks of the outbox: the events to tell, to keep progress, to take the claim back."""

import json
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from functools import partial
from typing import Final

from sqlalchemy import Connection, Row, bindparam, case, func, select, update

from services.relay.model import DeliveryTask
from services.relay.outbox.claim import MAX_CLAIM_BYTES
from services.relay.outbox.engine.batching import Transaction
from services.relay.outbox.engine.store import Store
from services.relay.outbox.merge import RetryState, lock_incidents, merge_into_successor
from services.relay.outbox.tables import State, clean_for_database, deliveries, events

_delivery = deliveries.c
_READ_EVENT_SIZES: Final = (
    select(events.c.seq, func.length(events.c.event).label("size"))
    .where(events.c.incident_id == bindparam("incident"), events.c.seq.between(bindparam("first"), bindparam("last")))
    .order_by(events.c.seq)
)
_READ_EVENTS: Final = (
    select(events.c.event).where(events.c.seq.in_(bindparam("wanted", expanding=True))).order_by(events.c.seq)
)
_owned = (_delivery.lease.startswith(bindparam("owner")), _delivery.finished_at.is_(None))
_OWNED_INCIDENTS: Final = select(_delivery.incident_id).where(*_owned)
_LOCK_OWNED: Final = (
    select(
        _delivery.seq,
        _delivery.channel,
        _delivery.incident_id,
        _delivery.first_event_seq,
        _delivery.attempts,
        _delivery.reason,
        _delivery.oldest_accepted_at,
        _delivery.remark,
    )
    .add_columns(_delivery.fallback_up_to, _delivery.maybe_delivered_up_to)
    .where(*_owned)
    .order_by(_delivery.seq)
    .with_for_update()
)
_RELEASE: Final = (
    update(deliveries)
    .where(*_owned)
    .values(
        state=case((_delivery.attempts > 1, State.RETRYING), else_=State.QUEUED),
        attempts=_delivery.attempts - 1,
        due_at=bindparam("now"),
        due_set_at=bindparam("now"),
        lease=None,
        maybe_sent=1,
    )
)


async def read_merged_events(store: Store, task: DeliveryTask) -> AsyncIterator[bytes]:
    """The events that a delivery tells, as they were written, in their order. Raises StoreUnavailableError."""
    if task.first_event_seq == task.last_event_seq:
        yield task.event_json
        return
    which = {"incident": task.incident_id, "first": task.first_event_seq, "last": task.last_event_seq}
    for page in _split_pages(await store.read(lambda connection: connection.execute(_READ_EVENT_SIZES, which).all())):
        for written in await store.read(partial(_read_events, page)):
            yield written


def _split_pages(events_of: Sequence[Row[int, int]]) -> Iterator[list[int]]:
    """Events that are read together: as many as their size allows, so that memory is bounded."""
    page: list[int] = []
    size = 0
    for seq, length in events_of:
        if page and size + length > MAX_CLAIM_BYTES:
            yield page
            page, size = [], 0
        page.append(seq)
        size += length
    yield page


def _read_events(wanted: list[int], connection: Connection) -> Sequence[bytes]:
    return connection.execute(_READ_EVENTS, {"wanted": wanted}).scalars().all()


async def save_progress(store: Store, task: DeliveryTask, progress: Mapping[str, str]) -> bool:
    """Commits what a channel has done of a delivery already. False where the lease was lost, and nothing is kept.

    Raises:
        StoreUnavailableError: it is not known to be committed.
    """
    kept = (
        update(deliveries)
        .where(_delivery.id == task.delivery_id, _delivery.lease == task.lease_id)
        .values(progress=clean_for_database(json.dumps(dict(progress))))
    )
    return await store.run(lambda transaction: transaction.connection.execute(kept).rowcount == 1)


async def release_leases(store: Store, lease_owner: str) -> None:
    """Makes what an owner claimed and did not finish due at once, for a clean stop. Raises StoreUnavailableError."""
    await store.run(lambda transaction: _release_leases(transaction, lease_owner))


def _release_leases(transaction: Transaction, lease_owner: str) -> None:
    connection = transaction.connection
    lock_incidents(transaction, set(connection.execute(_OWNED_INCIDENTS, {"owner": lease_owner}).scalars()))
    for row in connection.execute(_LOCK_OWNED, {"owner": lease_owner}).all():
        merge_into_successor(transaction, row, RetryState(row.attempts - 1, transaction.now, row.reason))
    connection.execute(_RELEASE, {"owner": lease_owner, "now": transaction.now})
