"""Which channels some replica delivers on, since configurations differ while one after the other is reloaded.

Each relay records at its start, and every few seconds from then on, on which channels it delivers. What waits for a
channel on which nobody does goes to fallback channels (see `unserved_channels`), and an event of an incident also goes
to a channel that another replica has. A channel that comes back learns what happened meanwhile.
"""

from collections.abc import Collection, Mapping, Sequence
from functools import partial
from typing import Final

from sqlalchemy import Connection, bindparam, update

from services.relay.model import Status
from services.relay.outbox.engine.batching import Transaction
from services.relay.outbox.engine.dialect import build_insert
from services.relay.outbox.engine.store import Store
from services.relay.outbox.merge import NewDelivery, enqueue_deliveries, lock_incidents
from services.relay.outbox.rows import OUTDATED_DELIVERIES, OutdatedRow, select_values
from services.relay.outbox.tables import NEW_CHANNEL, channels, deliveries, events, incidents

_REPLICA_TIMEOUT: Final = 60.0
"""Seconds after which a relay that recorded nothing no longer counts."""
_REFRESH_STEP: Final = 32
"""How many deliveries are brought up to date in one transaction."""

_delivery = deliveries.c
_SERVED_CHANNELS: Final = select_values(str, channels.c.name).where(channels.c.served_at > bindparam("since"))
_CLEAR_OTHERS: Final = (
    update(channels).where(channels.c.name.not_in(bindparam("names", expanding=True))).values(served_at=None)
)
_OUTDATED: Final = OUTDATED_DELIVERIES.where(
    _delivery.channel.in_(bindparam("channels", expanding=True)),
    _delivery.finished_at.is_(None),
    events.c.status == Status.FIRING,
    incidents.c.latest_event_seq > _delivery.event_seq,
).order_by(_delivery.seq)
_FIND_OUTDATED: Final = _OUTDATED.where(_delivery.seq > bindparam("after")).limit(_REFRESH_STEP)
_READ_OUTDATED: Final = _OUTDATED.where(_delivery.seq.in_(bindparam("seqs", expanding=True)))


async def record_served_channels(store: Store, edit_scopes: Mapping[str, str | None]) -> None:
    """Records that this relay delivers on these channels now. Raises StoreUnavailableError.

    Args:
        store: the outbox.
        edit_scopes: of each channel; None if its messages are not edited.
    """

    def commit(transaction: Transaction) -> None:
        new = build_insert(channels, transaction.connection.dialect.name)
        changes = {"served_at": new.excluded.served_at, "edit_scope": new.excluded.edit_scope}
        served = new.on_conflict_do_update(index_elements=["name"], set_=changes)
        # Sorted: two replicas that lock the same rows in different orders would wait for each other.
        rows = [
            {"name": name, **NEW_CHANNEL, "served_at": transaction.now, "edit_scope": scope}
            for name, scope in sorted(edit_scopes.items())
        ]
        transaction.connection.execute(served, rows)
        if transaction.connection.dialect.name == "sqlite":  # which no other relay uses
            transaction.connection.execute(_CLEAR_OTHERS, {"names": sorted(edit_scopes)})

    if edit_scopes:
        await store.run(commit)


def read_served_channels(connection: Connection, now: float) -> frozenset[str]:
    """The channels on which any replica delivers."""
    return frozenset(_SERVED_CHANNELS.fetch_all(connection, {"since": now - _REPLICA_TIMEOUT}))


async def refresh_outdated(store: Store, names: Collection[str]) -> None:
    """What waits on these channels with something that fires becomes the current state of its incident.

    While a channel was not configured, it got no deliveries of newer events.

    Raises:
        StoreUnavailableError: the steps before this one are done.
    """
    after = 0
    while found := await store.read(partial(_find_outdated, names=names, after=after)):
        after = found[-1].delivery.seq
        await store.run(partial(_refresh_outdated, found=found, names=names))


def _find_outdated(connection: Connection, names: Collection[str], after: int) -> list[OutdatedRow]:
    return _FIND_OUTDATED.fetch_all(connection, {"channels": sorted(names), "after": after})


def _refresh_outdated(transaction: Transaction, found: Sequence[OutdatedRow], names: Collection[str]) -> None:
    lock_incidents(transaction, {row.delivery.incident_id for row in found})
    values = {"channels": sorted(names), "seqs": [row.delivery.seq for row in found]}
    new = {
        (row.delivery.incident_id, row.delivery.channel): NewDelivery(
            row.current.latest_event_seq,
            row.delivery.first_event_seq,
            row.delivery.incident_id,
            row.current.episode,
            row.delivery.channel,
        )
        for row in reversed(_READ_OUTDATED.fetch_all(transaction.connection, values))
        if row.delivery.channel not in transaction.unmerged_channels
    }
    if new:
        enqueue_deliveries(transaction, list(new.values()))
