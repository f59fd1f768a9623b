"""The instances of a service: which are alive, which pending data keys each holds unwrapped, and their local key.

Each instance writes its row at each of its checks. A new data key becomes active only once all of them hold it, so that
every other instance can read what one encrypts by it, also while KMS is out. All of them have the same local key, whose
fingerprint the database knows: with two, one lost disk would take half of the records. Another one replaces it only if
nothing needs it and no other instance is alive.
"""

import asyncio
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

from sqlalchemy import Connection, literal, select

from shared.keyring import store
from shared.keyring.administration import MAX_PAGE_SIZE, RefusedError
from shared.keyring.database import Database
from shared.keyring.model import LOCAL_KEK, DataKey
from shared.keyring.store import OtherLocalKeyError, read_local_key_fingerprint
from shared.keyring.tables import abandoned_data_keys, data_keys, instances, local_key
from shared.sql.rows import select_rows

_MISSED_INTERVALS: Final = 3
"""Of an instance's checks without a row of it: then it is gone."""
_MIN_LIVENESS_SECONDS: Final = 10.0
"""However short its interval is: a busy machine is late."""
_MAX_WAIT_SECONDS: Final = 120.0
"""Far from the five minutes after which a driver of the rotator gives a call up."""
_POLL_SECONDS: Final = 0.2
_ROW_RETENTION_SECONDS: Final = 86400.0
_KEPT_COLUMNS: Final = [column.name for column in abandoned_data_keys.c if column.name in data_keys.c]
"""Of a data key that is abandoned."""


class _InstanceRow(NamedTuple):
    id: str
    last_seen_at: float
    interval: float
    unwrapped_keys: str


_INSTANCES: Final = select_rows(_InstanceRow, instances.c)


@dataclass(frozen=True, slots=True)
class InstanceHeartbeat:
    """The row of one instance. Every method raises DatabaseError."""

    database: Database
    instance: str
    """Names one process, to the database and to people."""
    interval: float
    """Seconds from one heartbeat to the next."""

    async def send(self, pending: Collection[str], encryptions: Mapping[str, int]) -> None:
        """Says that the instance is alive, and holds these data keys of status pending; at least each `interval`.

        `encryptions` are those since the last heartbeat, by data key.
        """

        def write(connection: Connection) -> None:
            self.write_row(connection, self.database.read_clock(connection), pending)
            for data_key_id, number in sorted(encryptions.items()):  # else two instances may lock each other out
                counted = {"encryptions": data_keys.c.encryptions + number}
                connection.execute(data_keys.update().where(data_keys.c.id == data_key_id).values(counted))

        await self.database.write(write)

    def write_row(self, connection: Connection, now: float, pending: Collection[str]) -> None:
        """The same in a transaction of the caller's."""
        old = (instances.c.id == self.instance) | (instances.c.last_seen_at < now - _ROW_RETENTION_SECONDS)
        connection.execute(instances.delete().where(old))
        values = {"id": self.instance, "interval": self.interval, "unwrapped_keys": " ".join(pending)}
        connection.execute(instances.insert().values(last_seen_at=now, **values))

    async def remove(self) -> None:
        own = instances.c.id == self.instance
        await self.database.write(lambda connection: connection.execute(instances.delete().where(own)))


async def wait_for_all_instances(database: Database, data_key_id: str) -> None:
    """Returns once every instance that is alive holds the pending data key.

    Raises RefusedError if one does not after three of its intervals, or two minutes if those are longer.
    """
    started_at = asyncio.get_running_loop().time()
    while lacking := await database.read(
        lambda connection: _find_lacking_instances(connection, database.read_clock(connection), data_key_id)
    ):
        name, alive = lacking[0]
        if asyncio.get_running_loop().time() - started_at > min(alive, _MAX_WAIT_SECONDS):
            more = f" and {len(lacking) - 1} more" if len(lacking) > 1 else ""
            raise RefusedError(
                f"{name}{more} of the service's instances cannot use the new data key {data_key_id} yet, so it was not "
                "made active",
                "see in its log whether KMS answers it, or stop it, then resume",
            )
        await asyncio.sleep(_POLL_SECONDS)


def are_others_alive(connection: Connection, now: float, instance: str) -> bool:
    """Whether another instance than this one is alive."""
    others = _INSTANCES.where(instances.c.id != instance).fetch_all(connection)
    return any(abs(now - row.last_seen_at) <= _get_liveness_seconds(row) for row in others)


def _get_liveness_seconds(row: _InstanceRow) -> float:
    return max(_MISSED_INTERVALS * row.interval, _MIN_LIVENESS_SECONDS)


def _find_lacking_instances(connection: Connection, now: float, data_key_id: str) -> list[tuple[str, float]]:
    """The instances that are alive and do not hold it, and for how many seconds each is taken to be alive."""
    found = []
    for row in _INSTANCES.order_by(instances.c.id).fetch_all(connection):
        alive = _get_liveness_seconds(row)
        if abs(now - row.last_seen_at) <= alive and data_key_id not in row.unwrapped_keys.split():
            found.append((row.id, alive))
    return found


def list_locally_wrapped_keys(connection: Connection, limit: int = MAX_PAGE_SIZE) -> tuple[DataKey, ...]:
    """The first data keys that a local key wraps."""
    return store.list_data_keys(connection, "", limit, data_keys.c.kek == LOCAL_KEK)


def may_replace_local_key(connection: Connection, now: float, instance: str) -> bool:
    """Whether a new local key may replace the known one: no data key and no other instance needs that."""
    fingerprint_in_use = read_local_key_fingerprint(connection)
    return not list_locally_wrapped_keys(connection, 1) and (
        fingerprint_in_use is None or not are_others_alive(connection, now, instance)
    )


def register_local_key(connection: Connection, now: float, heartbeat: InstanceHeartbeat, fingerprint: bytes) -> None:
    """Stores the fingerprint of an instance's local key, which is alive from then on. Raises OtherLocalKeyError."""
    registered = read_local_key_fingerprint(connection)
    if registered not in (None, fingerprint) and not may_replace_local_key(connection, now, heartbeat.instance):
        raise OtherLocalKeyError
    connection.execute(local_key.delete())
    connection.execute(local_key.insert().values(singleton=1, fingerprint=fingerprint))
    heartbeat.write_row(connection, now, ())


def abandon_data_keys(connection: Connection, now: float, instance: str, keys: Sequence[DataKey]) -> int:
    """Puts data keys aside, and returns how many: one that is no longer wrapped as in `keys` stays.

    Raises RefusedError if another instance than `instance` is alive: it may have the local key, or write by a data key.
    """
    if are_others_alive(connection, now, instance):
        raise RefusedError(
            "another instance of the service is alive, and may have the local key",
            "put its file back from there, or stop all other instances. One that was killed counts as alive for three "
            "of its check intervals, at least 10 seconds",
        )
    return sum(_abandon_data_key(connection, now, key) for key in keys)


def _abandon_data_key(connection: Connection, now: float, key: DataKey) -> bool:
    condition = (data_keys.c.id == key.id) & (data_keys.c.wrapped == key.wrapped.ciphertext)
    if connection.execute(select(data_keys.c.id).where(condition)).first() is None:
        return False
    connection.execute(abandoned_data_keys.delete().where(abandoned_data_keys.c.id == key.id))
    stored = select(*(data_keys.c[name] for name in _KEPT_COLUMNS), literal(now)).where(condition)
    connection.execute(abandoned_data_keys.insert().from_select([*_KEPT_COLUMNS, "abandoned_at"], stored))
    connection.execute(data_keys.delete().where(condition))
    return True
