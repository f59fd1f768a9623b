"""When each watchdog was last seen, by the database's clock and for all replicas; and whether the outbox drains.

A heartbeat comes in as the name of its watchdog, out goes how long each has been silent. What is remembered of a
watchdog outlives the relay, so that a restart forgets no absence.
"""

from collections.abc import Collection, Mapping
from typing import Final

from sqlalchemy import Connection, bindparam, func, literal_column, select, update

from services.relay.outbox.dialect import insert_new
from services.relay.outbox.schema import deliveries, watchdogs
from services.relay.outbox.store import Store
from services.relay.outbox.together import Transaction

_of = deliveries.c
_DELIVERED: Final = (
    select(_of.seq)
    # In the words of the index `deliveries_delivered`: there may be a hundred thousand of them.
    .where(_of.state == literal_column("'delivered'"))
    .where(_of.channel == bindparam("on"), _of.finished_at >= bindparam("since"))
    .limit(1)
)
_SLACK: Final = 10.0
"""Seconds; a clock that was set back by less only prolongs a wait by as much."""


async def seen(store: Store, names: Collection[str]) -> None:
    """Commits that a heartbeat of each came just now. Raises StoreUnavailableError."""

    def commit(transaction: Transaction) -> None:
        new = insert_new(watchdogs, transaction.connection.dialect.name)
        # Transactions of several replicas may be committed in another order than they began.
        later = new.on_conflict_do_update(
            index_elements=["name"],
            set_={"seen_at": new.excluded.seen_at},
            where=watchdogs.c.seen_at < new.excluded.seen_at,
        )
        transaction.connection.execute(later, _rows(names, transaction.now))

    if names:
        await store.run(commit)


def silent_for(transaction: Transaction, names: Collection[str]) -> Mapping[str, float]:
    """For how many seconds each watchdog has been silent. One that was never seen is awaited from now on."""
    connection, now = transaction.connection, transaction.now
    if not names:
        return {}
    connection.execute(insert_new(watchdogs, connection.dialect.name).on_conflict_do_nothing(), _rows(names, now))
    # Seen in the future: the clock was set back since, and would hide an absence until it is there again.
    future = update(watchdogs).where(watchdogs.c.name.in_(names), watchdogs.c.seen_at > now + _SLACK)
    connection.execute(future.values(seen_at=now))
    return {name: max(0.0, now - seen_at) for name, seen_at in last_seen(connection).items() if name in names}


def last_seen(connection: Connection) -> dict[str, float]:
    """When each was seen last, or first waited for, in unix seconds; also those that are no longer configured."""
    return {row.name: row.seen_at for row in connection.execute(select(watchdogs.c.name, watchdogs.c.seen_at))}


def drains(transaction: Transaction, channels: Collection[str], *, within: float, longest: float) -> bool:
    """Whether nobody waits too long on any of these channels; the alert RelayOutboxStuck judges by the same.

    Args:
        transaction: the one under way.
        channels: what waits for another one is waited for by nobody.
        within: seconds; what is older is too old where nothing was delivered on its channel within them.
        longest: seconds; what is older is too old even while others are delivered.
    """
    oldest = (
        select(_of.channel, func.min(_of.waits_since))
        .where(_of.finished_at.is_(None), _of.channel.in_(channels))
        .group_by(_of.channel)
    )
    now = transaction.now
    old = [(channel, now - since) for channel, since in transaction.connection.execute(oldest) if now - since > within]
    return all(age <= longest and _delivers(transaction, channel, within) for channel, age in old)


def _delivers(transaction: Transaction, channel: str, within: float) -> bool:
    asked = {"on": channel, "since": transaction.now - within}
    return transaction.connection.execute(_DELIVERED, asked).first() is not None


def _rows(names: Collection[str], now: float) -> list[dict[str, object]]:
    # Sorted: two replicas that lock the same rows in different orders would wait for each other.
    return [{"name": name, "seen_at": now} for name in sorted(names)]
