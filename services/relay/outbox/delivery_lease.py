"""What a worker does under the lease of a delivery: read its events, save progress, release it at a stop."""

import json
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from functools import partial
from typing import Final

from sqlalchemy import Connection, bindparam, case, or_, update

from services.relay.model import DeliveryTask
from services.relay.outbox.due_deliveries import MAX_CLAIM_BYTES
from services.relay.outbox.engine.batching import Transaction
from services.relay.outbox.engine.store import Store
from services.relay.outbox.merge import RetryState, lock_incidents, merge_into_successor
from services.relay.outbox.rows import DELIVERIES, EVENT_SIZES, EVENTS, EventSizeRow, select_values
from services.relay.outbox.tables import DeliveryState, clean_for_database, deliveries, events

_delivery = deliveries.c
_READ_EVENT_SIZES: Final = EVENT_SIZES.where(
    events.c.incident_id == bindparam("incident"), events.c.seq.between(bindparam("first"), bindparam("last"))
).order_by(events.c.seq)
_READ_EVENTS: Final = EVENTS.where(events.c.seq.in_(bindparam("seqs", expanding=True))).order_by(events.c.seq)
_owned = (_delivery.lease.startswith(bindparam("owner")), _delivery.finished_at.is_(None))
_OWNED_INCIDENTS: Final = select_values(str, _delivery.incident_id).where(*_owned)
_LOCK_OWNED: Final = DELIVERIES.where(*_owned).order_by(_delivery.seq).for_update()
_RELEASE: Final = (
    update(deliveries)
    .where(*_owned)
    .values(
        state=case((_delivery.attempts > 1, DeliveryState.RETRYING), else_=DeliveryState.QUEUED),
        attempts=_delivery.attempts - 1,
        due_at=bindparam("now"),
        due_set_at=bindparam("now"),
        lease=None,
        maybe_sent=1,
    )
)


async def read_merged_events(store: Store, task: DeliveryTask) -> AsyncIterator[bytes]:
    """The events of a delivery, as they were encoded, in their order. Raises StoreUnavailableError."""
    if task.first_event_seq == task.last_event_seq and task.event_json:
        yield task.event_json
        return
    for page in _split_pages(await store.read(partial(_read_event_sizes, task))):
        for event_json in await store.read(partial(_read_events, page)):
            yield event_json


async def save_progress(store: Store, task: DeliveryTask, progress: Mapping[str, str]) -> bool:
    """Commits what a channel has done of a delivery or of a digest. False if the lease was lost, and nothing is saved.

    Raises:
        StoreUnavailableError: it is not known to be committed.
    """
    saved = (
        update(deliveries)
        .where(_delivery.lease == task.lease_id)
        .where(or_(_delivery.id == task.delivery_id, _delivery.digest_id == task.delivery_id))
        .values(progress=clean_for_database(json.dumps(dict(progress))))
    )
    return await store.run(lambda transaction: transaction.connection.execute(saved).rowcount > 0)


async def release_leases(store: Store, lease_owner: str) -> None:
    """Makes what an owner claimed and did not finish due at once, for a clean stop. Raises StoreUnavailableError."""
    await store.run(partial(_release_leases, lease_owner=lease_owner))


def _read_event_sizes(task: DeliveryTask, connection: Connection) -> list[EventSizeRow]:
    values = {"incident": task.incident_id, "first": task.first_event_seq, "last": task.last_event_seq}
    return _READ_EVENT_SIZES.fetch_all(connection, values)


def _split_pages(sizes: Sequence[EventSizeRow]) -> Iterator[list[int]]:
    """The seqs of events that are read in one query: as many as their size allows, so that memory is bounded."""
    page: list[int] = []
    page_size = 0
    for row in sizes:
        if page and page_size + row.event_size > MAX_CLAIM_BYTES:
            yield page
            page, page_size = [], 0
        page.append(row.seq)
        page_size += row.event_size
    yield page


def _read_events(seqs: list[int], connection: Connection) -> list[bytes]:
    return [row.event for row in _READ_EVENTS.fetch_all(connection, {"seqs": seqs})]


def _release_leases(transaction: Transaction, lease_owner: str) -> None:
    connection = transaction.connection
    lock_incidents(transaction, set(_OWNED_INCIDENTS.fetch_all(connection, {"owner": lease_owner})))
    for row in _LOCK_OWNED.fetch_all(connection, {"owner": lease_owner}):
        merge_into_successor(transaction, row, RetryState(row.attempts - 1, transaction.now, row.reason))
    connection.execute(_RELEASE, {"owner": lease_owner, "now": transaction.now})
