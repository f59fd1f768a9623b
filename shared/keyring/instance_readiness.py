"""Which instances of a service are alive, and which pending data keys each of them holds unwrapped.

Each writes its row at each of its checks. A new data key becomes active only once all of them hold it: a record that
one instance encrypts by it can then be read at every other, though KMS be out.
"""

import asyncio
from collections.abc import Collection
from dataclasses import dataclass
from typing import Final

from sqlalchemy import Connection

from shared.keyring.administration import RefusedError
from shared.keyring.database import Database
from shared.keyring.tables import InstanceRow, fetch, instances, select_rows

_MISSED_INTERVALS: Final = 3
"""Of an instance's checks without a row of it: then it is gone."""
_MIN_LIVENESS_SECONDS: Final = 10.0
"""However short its interval is: a busy machine is late."""
_MAX_WAIT_SECONDS: Final = 120.0
"""Far from the five minutes after which a driver of the rotator gives a call up."""
_POLL_SECONDS: Final = 0.2
_ROW_RETENTION_SECONDS: Final = 86400.0


@dataclass(frozen=True, slots=True)
class InstanceHeartbeat:
    """One instance's row. Every method raises DatabaseError."""

    database: Database
    instance: str
    """Names one process, to the database and to people."""
    interval: float
    """Seconds from one heartbeat to the next."""

    async def send(self, pending: Collection[str]) -> None:
        """Says that it is alive, and holds these data keys of status pending; each `interval` at least."""
        await self.database.write(
            lambda connection: self.write_row(connection, self.database.read_clock(connection), pending)
        )

    def write_row(self, connection: Connection, now: float, pending: Collection[str]) -> None:
        """Says so in a transaction of the caller's."""
        old = (instances.c.id == self.instance) | (instances.c.last_seen_at < now - _ROW_RETENTION_SECONDS)
        connection.execute(instances.delete().where(old))
        values = {"id": self.instance, "interval": self.interval, "unwrapped_keys": " ".join(pending)}
        connection.execute(instances.insert().values(last_seen_at=now, **values))

    async def remove(self) -> None:
        """Nobody waits for it any more."""
        own = instances.c.id == self.instance
        await self.database.write(lambda connection: connection.execute(instances.delete().where(own)))


async def wait_for_all_instances(database: Database, data_key_id: str) -> None:
    """Returns once every instance that is alive holds the pending data key.

    Raises:
        RefusedError: one does not, after three of its intervals, or two minutes if those are longer.
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
    others = fetch(connection, select_rows(instances, InstanceRow).where(instances.c.id != instance), InstanceRow)
    return any(abs(now - row.last_seen_at) <= _get_liveness_seconds(row) for row in others)


def _get_liveness_seconds(row: InstanceRow) -> float:
    """Seconds after its last heartbeat in which an instance counts as alive."""
    return max(_MISSED_INTERVALS * float(row.interval), _MIN_LIVENESS_SECONDS)


def _find_lacking_instances(connection: Connection, now: float, data_key_id: str) -> list[tuple[str, float]]:
    """The instances that are alive and do not hold it, and for how many seconds each is taken to be alive."""
    found = []
    for row in fetch(connection, select_rows(instances, InstanceRow).order_by(instances.c.id), InstanceRow):
        alive = _get_liveness_seconds(row)
        if abs(now - row.last_seen_at) <= alive and data_key_id not in row.unwrapped_keys.split():
            found.append((row.id, alive))
    return found
