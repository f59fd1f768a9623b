"""Data keys that only a lost local key unwraps: which they are, what they cost, and giving them up for good.

Nothing else can be given up here. What is given up is put aside in the database, should the file turn up after all; an
instance that still holds the data key in memory would put it back, and may have the file: none other may be alive.
"""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import datetime

import structlog

from services.backend.records import RECORDS
from shared.keyring import local
from shared.keyring.administration import RefusedError
from shared.keyring.database import Database
from shared.keyring.model import DataKey
from shared.keyring.wrapping import UnwrapError, Wrapping

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class LostKey:
    """One of them."""

    id: str
    created_at: datetime
    records: int
    """That need it, and cannot be read."""
    why: str


class LostKeys:
    """Those of one keyring. Every method raises DatabaseError.

    Args:
        database: the keyring's, and that of the records.
        wrapping: knows the local key, where there is one.
        instance: names this one among those of the service.
        show: has the service read the keyring again.
    """

    def __init__(
        self, database: Database, wrapping: Wrapping, instance: str, show: Callable[[], Awaitable[None]]
    ) -> None:
        self._database = database
        self._wrapping = wrapping
        self._instance = instance
        self._show = show

    async def all(self) -> list[LostKey]:
        """The first thousand, with how many records each takes along."""
        return [lost for _, lost in await self._found()]

    async def give_up(self, data_key_ids: Sequence[str], records: int) -> int:
        """How many were given up.

        Args:
            data_key_ids: each by its name.
            records: how many need them: whoever gives them up has to know.

        Raises:
            RefusedError: one of them is not lost, the number is another, or another instance is alive: it may have the
                local key, or hold the data key and write by it. Nothing was changed.
        """
        found = {lost.id: (key, lost) for key, lost in await self._found()}
        for data_key_id in data_key_ids:
            if data_key_id not in found:
                raise RefusedError(
                    f"data key {data_key_id} is not lost: only those can be given up that no key unwraps"
                )
        needed = sum(found[data_key_id][1].records for data_key_id in set(data_key_ids))
        if needed != records:
            raise RefusedError(f"{needed} records need them, not {records}; confirm that number if you mean it")
        keys = [found[data_key_id][0] for data_key_id in dict.fromkeys(data_key_ids)]
        number = await self._database.change(
            lambda connection: local.give_up(connection, self._database.now(connection), self._instance, keys)
        )
        log.warning("data keys were given up", data_keys=[key.id for key in keys], records=records)
        await self._show()
        return number

    async def _found(self) -> list[tuple[DataKey, LostKey]]:
        found = []
        for key in await self._database.read(local.wrapped):
            try:
                await self._wrapping.unwrap(key)
            except UnwrapError as error:
                found.append((key, LostKey(key.id, key.created_at, await self._records(key.id), str(error))))
        return found

    async def _records(self, data_key_id: str) -> int:
        return await self._database.read(lambda connection: RECORDS.count_of(connection, data_key_id))
