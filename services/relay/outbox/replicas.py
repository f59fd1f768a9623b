"""Which channels some replica delivers on, since configurations differ while one after the other is reloaded.

Each relay says at its start, and every few seconds from then on, on which channels it delivers. What waits for a
channel on which nobody does is left to others (see `fallback`), and what comes for an incident goes to a channel that
another replica has, too. A channel that comes back learns what happened meanwhile.
"""

from collections.abc import Collection, Sequence
from functools import partial
from typing import Any, Final

from sqlalchemy import Connection, Row, bindparam, select, update

from services.relay.model import Status
from services.relay.outbox.engine.batching import Transaction
from services.relay.outbox.engine.dialect import build_insert
from services.relay.outbox.engine.store import Store
from services.relay.outbox.merge import NewDelivery, enqueue_deliveries, lock_incidents
from services.relay.outbox.tables import channels, deliveries, events, incidents

_REPLICA_TIMEOUT: Final = 60.0
"""Seconds after which a relay that said nothing is there no more."""
_REFRESH_STEP: Final = 32
"""How many deliveries are brought up to date in one transaction."""

_delivery = deliveries.c
_SERVED_CHANNELS: Final = select(channels.c.name).where(channels.c.served_at > bindparam("since"))
_CLEAR_OTHERS: Final = (
    update(channels).where(channels.c.name.not_in(bindparam("names", expanding=True))).values(served_at=None)
)
_OUTDATED: Final = (
    select(
        _delivery.seq,
        _delivery.channel,
        _delivery.incident_id,
        _delivery.first_event_seq,
        incidents.c.episode,
        incidents.c.latest_event_seq,
    )
    .join(incidents, incidents.c.id == _delivery.incident_id)
    .join(events, events.c.seq == _delivery.event_seq)
    .where(_delivery.channel.in_(bindparam("channels", expanding=True)), _delivery.finished_at.is_(None))
    .where(events.c.status == Status.FIRING, incidents.c.latest_event_seq > _delivery.event_seq)
    .order_by(_delivery.seq)
)
_FIND_OUTDATED: Final = _OUTDATED.where(_delivery.seq > bindparam("after")).limit(_REFRESH_STEP)
_LOCKED_OUTDATED: Final = _OUTDATED.where(_delivery.seq.in_(bindparam("seqs", expanding=True)))


async def record_served_channels(store: Store, names: Collection[str]) -> None:
    """Says that this relay delivers on these channels now. Raises StoreUnavailableError."""

    def commit(transaction: Transaction) -> None:
        new = build_insert(channels, transaction.connection.dialect.name)
        served = new.on_conflict_do_update(index_elements=["name"], set_={"served_at": new.excluded.served_at})
        untouched = {"paused_until": 0.0, "paused_set_at": 0.0, "next_token_at": 0.0, "failures": 0, "is_down": 0}
        # Sorted: two replicas that lock the same rows in different orders would wait for each other.
        rows = [{"name": name, **untouched, "served_at": transaction.now} for name in sorted(names)]
        transaction.connection.execute(served, rows)
        if transaction.connection.dialect.name == "sqlite":  # which no other relay uses
            transaction.connection.execute(_CLEAR_OTHERS, {"names": sorted(names)})

    if names:
        await store.run(commit)


def read_served_channels(connection: Connection, now: float) -> frozenset[str]:
    """The channels on which a relay delivers, be it another replica."""
    return frozenset(connection.execute(_SERVED_CHANNELS, {"since": now - _REPLICA_TIMEOUT}).scalars())


async def refresh_outdated(store: Store, names: Collection[str]) -> None:
    """What waits on these channels with something that fires tells how its incident stands now.

    While a channel was not configured, it was not told of what came.

    Raises:
        StoreUnavailableError: the steps before this one are done.
    """
    after = 0
    while True:
        found = await store.read(partial(_find_outdated, names=names, after=after))
        if not found:
            return
        after = found[-1].seq
        await store.run(partial(_refresh_outdated, found=found, names=names))


def _find_outdated(connection: Connection, names: Collection[str], after: int) -> Sequence[Row[*tuple[Any, ...]]]:
    return connection.execute(_FIND_OUTDATED, {"channels": sorted(names), "after": after}).all()


def _refresh_outdated(transaction: Transaction, found: Sequence[Row[*tuple[Any, ...]]], names: Collection[str]) -> None:
    lock_incidents(transaction, {row.incident_id for row in found})
    asked = {"channels": sorted(names), "seqs": [row.seq for row in found]}
    news = {
        (row.incident_id, row.channel): NewDelivery(
            row.latest_event_seq, row.first_event_seq, row.incident_id, row.episode, row.channel
        )
        for row in reversed(transaction.connection.execute(_LOCKED_OUTDATED, asked).all())
        if row.channel not in transaction.unmerged_channels
    }
    if news:
        enqueue_deliveries(transaction, list(news.values()))
