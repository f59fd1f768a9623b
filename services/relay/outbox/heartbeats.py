"""When each watchdog was last seen, by the database's clock and for all replicas.

A silence is counted across restarts: a relay that is restarted again and again must notice it, too. Of the time in
which no relay could receive a heartbeat a few seconds are counted, and after more of it than `expect_every` the count
starts again.
"""

from collections.abc import Collection, Mapping
from typing import Final, NamedTuple

from sqlalchemy import Connection, bindparam, select, update

from services.relay.outbox.database import build_insert
from services.relay.outbox.store import Store, Transaction
from services.relay.outbox.tables import CLOCK_TOLERANCE, watchdogs
from shared.sql.rows import select_rows, select_tuples


class _WatchdogRow(NamedTuple):
    name: str
    last_seen_at: float
    silent_seconds: float
    counted_at: float


_WATCHDOGS: Final = select_rows(_WatchdogRow, watchdogs.c)
_HEARTBEATS: Final = select_tuples(tuple[str, float | None], select(watchdogs.c.name, watchdogs.c.heartbeat_at))
_LOCK_WATCHDOGS: Final = (
    _WATCHDOGS.where(watchdogs.c.name.in_(bindparam("names", expanding=True))).order_by(watchdogs.c.name).for_update()
)
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
                "heartbeat_at": new.excluded.last_seen_at,
            },
            where=watchdogs.c.last_seen_at < new.excluded.last_seen_at,
        )
        rows = [{**row, "heartbeat_at": transaction.now} for row in _build_rows(names, transaction.now)]
        transaction.connection.execute(later, rows)

    if names:
        await store.run(commit)


def count_silence(transaction: Transaction, expected: Mapping[str, float], uptime: float) -> Mapping[str, Silence]:
    """Counts how long each watchdog has been silent. One that was never seen is expected from now on.

    `expected` has the seconds after which a watchdog is absent; `uptime` are the seconds for which this relay could
    receive heartbeats since it counted last.
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
    silences = {}
    for row in _LOCK_WATCHDOGS.fetch_all(connection, {"names": list(expected)}):
        counted = _compute_silence(row, now, expected[row.name], uptime)
        connection.execute(_UPDATE_SILENCE, {"watchdog": row.name, "seconds": counted, "now": now})
        silences[row.name] = Silence(counted, max(0.0, now - row.last_seen_at))
    return silences


def _compute_silence(row: _WatchdogRow, now: float, expect_every: float, uptime: float) -> float:
    passed = max(0.0, now - row.counted_at)
    # How long a relay ran after it counted last is not known: it may have been killed before the next time.
    receiving_seconds = min(passed, uptime + _RESTART_ALLOWANCE)
    if passed - receiving_seconds > expect_every:
        return min(passed, uptime)
    return row.silent_seconds + receiving_seconds


def read_last_seen(connection: Connection) -> dict[str, float]:
    """When each was last seen, or first awaited, in unix seconds."""
    return {row.name: row.last_seen_at for row in _WATCHDOGS.fetch_all(connection)}


def read_heartbeats(connection: Connection) -> dict[str, float | None]:
    """When the last heartbeat of each came, in unix seconds; None before the first."""
    return dict(_HEARTBEATS.fetch_all(connection))


def _build_rows(names: Collection[str], now: float) -> list[dict[str, object]]:
    # Sorted: two replicas that lock the same rows in different orders would wait for each other.
    return [{"name": name, "last_seen_at": now, "silent_seconds": 0.0, "counted_at": now} for name in sorted(names)]
