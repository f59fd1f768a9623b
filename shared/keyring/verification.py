"""Whether everything can be read: each data key is unwrapped, and records are opened with it. Changes nothing.

Nothing large stands in memory: data keys and records come in pages.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Final

from sqlalchemy import Connection

from shared.keyring import store
from shared.keyring.administration import Problem, Verification
from shared.keyring.database import Database
from shared.keyring.journal import SHOWN
from shared.keyring.model import DataKey, FingerprintOfAll
from shared.keyring.records import Record, RecordsTable
from shared.keyring.together import together
from shared.keyring.wrapping import UnwrapError, Wrapping

SAMPLE: Final = 3
"""Records of each data key in a sample."""
COUNT_SECONDS: Final = 60.0
"""How long the database may take to look at all records."""
_RECORDS: Final = 16
"""Records in memory at a time: each may be large."""


@dataclass(slots=True)
class Inspection:
    """One look at everything."""

    database: Database
    wrapping: Wrapping
    records: RecordsTable | None
    full: bool
    _problems: list[Problem] = field(default_factory=list)
    _foreign: list[Problem] = field(default_factory=list)
    _data_keys: int = 0
    _records: int = 0

    async def result(self, after: str | None = None) -> Verification:
        """What was found, of all or of the page after that id. Raises KmsError and DatabaseError."""
        last = after or ""
        while keys := await self._page(last):
            last = keys[-1].id
            await together(keys, self._secret, self._look)
            if after is not None and len(keys) == store.PAGE:
                return self._found("", last)
        for data_key_id, why in (await self.database.read(store.unreadable)).items():
            self._tell(data_key_id, why)
        if self.records:
            lost = await self.database.read(self.records.without_key, seconds=COUNT_SECONDS)
            for data_key_id, number in lost.items():
                self._tell(data_key_id, f"{number} records need it, and it is not in the keyring")
        return self._found(await self._fingerprint(), None)

    async def _fingerprint(self) -> str:
        whole, last = FingerprintOfAll(), ""
        while keys := await self._page(last):
            last = keys[-1].id
            whole.add(keys)
        return whole.hexdigest()

    async def _page(self, after: str) -> tuple[DataKey, ...]:
        return await self.database.read(partial(store.page, after=after, limit=store.PAGE))

    def _found(self, fingerprint: str, following: str | None) -> Verification:
        return Verification(
            data_keys=self._data_keys,
            records=self._records,
            problems=(*self._problems, *self._foreign)[:SHOWN],
            fingerprint=fingerprint,
            next=following,
        )

    async def _secret(self, key: DataKey) -> bytes | UnwrapError:
        try:
            return await self.wrapping.unwrap(key)
        except UnwrapError as error:
            return error

    async def _look(self, keys: Sequence[tuple[DataKey, bytes | UnwrapError]]) -> None:
        self._data_keys += len(keys)
        for key, secret in keys:
            if isinstance(secret, UnwrapError):
                self._tell(key.id, str(secret), foreign=secret.foreign)
            elif self.records and self.records.opening:
                await self._open(self.records, key, secret)

    async def _open(self, records: RecordsTable, key: DataKey, secret: bytes) -> None:
        after, limit = "", _RECORDS if self.full else SAMPLE

        def some(connection: Connection) -> tuple[Record, ...]:
            return records.page(connection, key.id, after, limit)

        while found := await self.database.read(some):
            for record in found:
                self._check(records, record, secret)
            after = found[-1].id
            if not self.full:
                break

    def _check(self, records: RecordsTable, record: Record, secret: bytes) -> None:
        self._records += 1
        try:
            if records.opening:
                records.opening(record, secret)
        except ValueError as error:
            why = str(error) or "it is not what was stored under this id"
            self._tell(record.id, f"this record cannot be opened: {why}")

    def _tell(self, name: str, why: str, *, foreign: bool = False) -> None:
        known = self._foreign if foreign else self._problems
        if len(known) < SHOWN:
            known.append(Problem(id=name, why=why, foreign=foreign))
