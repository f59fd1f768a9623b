"""When each watchdog was last seen, by the database's clock and for all replicas; and whether the outbox drains.

A heartbeat comes in as the name of its watchdog, out goes how long each has been silent. What is counted of a silence
outlives the relay: one that is restarted again and again must notice it, too. Of the time in which no relay could
receive a heartbeat a few seconds are counted, and after more of it than `expect_every` the count begins anew.
"""

from collections.abc import Collection, Mapping
from typing import Any, Final, NamedTuple

from sqlalchemy import Connection, Row, bindparam, func, literal_column, select, update

from services.relay.outbox.engine.batching import Transaction
from services.relay.outbox.engine.dialect import build_insert
from services.relay.outbox.engine.store import Store
from services.relay.outbox.tables import deliveries, watchdogs

_delivery = deliveries.c
_FIND_DELIVERED: Final = (
    select(_delivery.seq)
    # In the words of the index `deliveries_delivered`: there may be a hundred thousand of them.
    .where(_delivery.state == literal_column("'delivered'"))
    .where(_delivery.channel == bindparam("on"), _delivery.finished_at >= bindparam("since"))
    .limit(1)
)
CLOCK_TOLERANCE: Final = 10.0
"""Seconds; a clock that was set back by less only prolongs a wait by as much."""
_RESTART_ALLOWANCE: Final = 10.0
"""Seconds before a start that count as silence, too: Alertmanager sends again what was refused for so long."""
_UPDATE_SILENCE: Final = (
    update(watchdogs)
    .where(watchdogs.c.name == bindparam("watchdog"))
    .values(silent_seconds=bindparam("seconds"), counted_at=bindparam("now"))
)


class Silence(NamedTuple):
    """How long a watchdog has been silent, in seconds."""

    observed: float
    """While a relay could have received a heartbeat."""
    since_last: float
    """By the clock, since the last one."""


async def record_heartbeats(store: Store, names: Collection[str]) -> None:
    """Commits that a heartbeat of each came just now. Raises StoreUnavailableError."""

    def commit(transaction: Transaction) -> None:
        new = build_insert(watchdogs, transaction.connection.dialect.name)
        # Transactions of several replicas may be committed in another order than they began.
        later = new.on_conflict_do_update(
            index_elements=["name"],
            set_={
                "last_seen_at": new.excluded.last_seen_at,
                "silent_seconds": 0.0,
                "counted_at": new.excluded.last_seen_at,
            },
            where=watchdogs.c.last_seen_at < new.excluded.last_seen_at,
        )
        transaction.connection.execute(later, _build_rows(names, transaction.now))

    if names:
        await store.run(commit)


def count_silence(transaction: Transaction, expected: Mapping[str, float], uptime: float) -> Mapping[str, Silence]:
    """Counts how long each watchdog has been silent. One that was never seen is awaited from now on.

    Args:
        transaction: the one under way.
        expected: for each watchdog, after how many seconds it is absent.
        uptime: seconds for which this relay has been able to receive heartbeats since it counted last.
    """
    connection, now = transaction.connection, transaction.now
    if not expected:
        return {}
    connection.execute(
        build_insert(watchdogs, connection.dialect.name).on_conflict_do_nothing(), _build_rows(expected, now)
    )
    # Seen in the future: the clock was set back since, and would hide an absence until it is there again.
    future = update(watchdogs).where(watchdogs.c.name.in_(expected), watchdogs.c.last_seen_at > now + CLOCK_TOLERANCE)
    connection.execute(future.values(last_seen_at=now))
    rows = select(watchdogs).where(watchdogs.c.name.in_(expected)).order_by(watchdogs.c.name).with_for_update()
    silences = {}
    for row in connection.execute(rows).all():
        counted = _compute_silence(row, now, expected[row.name], uptime)
        connection.execute(_UPDATE_SILENCE, {"watchdog": row.name, "seconds": counted, "now": now})
        silences[row.name] = Silence(counted, max(0.0, now - row.last_seen_at))
    return silences


def _compute_silence(row: Row[*tuple[Any, ...]], now: float, expect_every: float, uptime: float) -> float:
    passed: float = max(0.0, now - row.counted_at)
    # What a relay was there for after its last look nobody knows: it may have been killed before the next one.
    able = min(passed, uptime + _RESTART_ALLOWANCE)
    if passed - able > expect_every:
        return min(passed, uptime)
    return float(row.silent_seconds) + able


def read_last_seen(connection: Connection) -> dict[str, float]:
    """When each was seen last, or first waited for, in unix seconds; also those that are no longer configured."""
    return {
        row.name: row.last_seen_at for row in connection.execute(select(watchdogs.c.name, watchdogs.c.last_seen_at))
    }


def is_draining(transaction: Transaction, channels: Collection[str], *, within: float, max_age: float) -> bool:
    """Whether nobody waits too long on any of these channels; the alert RelayOutboxStuck judges by the same.

    Args:
        transaction: the one under way.
        channels: what waits for another one is waited for by nobody.
        within: seconds; what is older is too old where nothing was delivered on its channel within them.
        max_age: seconds; what is older is too old even while others are delivered.
    """
    oldest = (
        select(_delivery.channel, func.min(_delivery.oldest_accepted_at))
        .where(_delivery.finished_at.is_(None), _delivery.channel.in_(channels))
        .group_by(_delivery.channel)
    )
    now = transaction.now
    old = [(channel, now - since) for channel, since in transaction.connection.execute(oldest) if now - since > within]
    return all(age <= max_age and _has_delivered(transaction, channel, within) for channel, age in old)


def _has_delivered(transaction: Transaction, channel: str, within: float) -> bool:
    asked = {"on": channel, "since": transaction.now - within}
    return transaction.connection.execute(_FIND_DELIVERED, asked).first() is not None


def _build_rows(names: Collection[str], now: float) -> list[dict[str, object]]:
    # Sorted: two replicas that lock the same rows in different orders would wait for each other.
    return [{"name": name, "last_seen_at": now, "silent_seconds": 0.0, "counted_at": now} for name in sorted(names)]
