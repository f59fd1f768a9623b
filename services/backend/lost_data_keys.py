"""Data keys that only a lost local key unwraps: lists them with their records, and abandons them for good.

No other data key can be abandoned. The rows of abandoned ones stay in a table of their own, in case the file is found.
An instance that still has the data key in memory would store it again, and may have the file: no other instance may be
alive.
"""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import partial

import structlog

from services.backend.records import RECORDS_TABLE
from shared.keyring.administration import RefusedError
from shared.keyring.database import Database
from shared.keyring.instances import abandon_data_keys, list_locally_wrapped_keys
from shared.keyring.model import DataKey
from shared.keyring.wrapping import KeyWrapper, UnwrapError

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class LostDataKey:
    id: str
    created_at: datetime
    record_count: int
    """That need it, and cannot be read."""
    error: str


class LostDataKeys:
    """The lost data keys of one keyring, seen by the service's `instance`. Every method raises DatabaseError."""

    def __init__(
        self, database: Database, wrapping: KeyWrapper, instance: str, reload_keyring: Callable[[], Awaitable[None]]
    ) -> None:
        self._database = database
        self._wrapping = wrapping
        self._instance = instance
        self._show = reload_keyring

    async def list_lost(self) -> list[LostDataKey]:
        """The first thousand, with how many records each takes along."""
        return [lost for _, lost in await self._find_lost()]

    async def abandon(self, data_key_ids: Sequence[str], confirmed_record_count: int) -> int:
        """Abandons them, and returns how many; the caller has to know how many records need them.

        Raises RefusedError, and nothing was changed, if one of them is not lost, the number is another, or another
        instance is alive: it may have the local key, or hold the data key and write by it.
        """
        found = {lost.id: (key, lost) for key, lost in await self._find_lost()}
        for data_key_id in data_key_ids:
            if data_key_id not in found:
                raise RefusedError(
                    f"data key {data_key_id} is not lost: only data keys that no key unwraps can be abandoned"
                )
        record_count = sum(found[data_key_id][1].record_count for data_key_id in set(data_key_ids))
        if record_count != confirmed_record_count:
            raise RefusedError(
                f"{record_count} records need them, not {confirmed_record_count}", "confirm that number if you mean it"
            )
        keys = [found[data_key_id][0] for data_key_id in dict.fromkeys(data_key_ids)]
        number = await self._database.write_exclusively(
            lambda connection: abandon_data_keys(
                connection, self._database.read_clock(connection), self._instance, keys
            )
        )
        log.warning("data keys abandoned", data_keys=[key.id for key in keys], records=confirmed_record_count)
        await self._show()
        return number

    async def _find_lost(self) -> list[tuple[DataKey, LostDataKey]]:
        found = []
        for key in await self._database.read(list_locally_wrapped_keys):
            try:
                await self._wrapping.unwrap(key)
            except UnwrapError as error:
                count = partial(RECORDS_TABLE.count_by_data_key, data_key_id=key.id)
                records = await self._database.read(count)
                found.append((key, LostDataKey(key.id, key.created_at, records, str(error))))
        return found
