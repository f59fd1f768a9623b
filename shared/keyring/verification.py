"""Whether everything can be read: each data key is unwrapped, and records are opened with it. Changes nothing.

Nothing large stands in memory: data keys and records come in pages.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Final

from sqlalchemy import Connection

from shared.keyring.administration import MAX_PAGE_SIZE, Problem, VerificationResult
from shared.keyring.journal import MAX_PROBLEMS
from shared.keyring.key_table import OpenKeyring, Record, RecordsTable
from shared.keyring.model import DataKey, KeyringFingerprint
from shared.keyring.wrapping import UnwrapError
from shared.kms.quota import MAX_CONCURRENT_CALLS
from shared.process.concurrency import run_concurrently

SAMPLE_SIZE: Final = 3
"""Records of each data key in a sample."""
RECORD_QUERY_SECONDS: Final = 60.0
"""How long the database may take to count all records."""
_RECORDS_PER_PAGE: Final = 16
"""Records in memory at a time: each may be large."""


@dataclass(slots=True)
class KeyringVerifier:
    keyring: OpenKeyring
    reads_all_records: bool
    _problems: list[Problem] = field(default_factory=list)
    _foreign_problems: list[Problem] = field(default_factory=list)
    _data_keys: int = 0
    _records: int = 0

    async def verify(self, after: str | None = None) -> VerificationResult:
        """What was found, of all or of the page after that id. Raises KmsError and DatabaseError."""
        last = after or ""
        while keys := await self._read_page(last):
            last = keys[-1].id
            await run_concurrently(keys, self._unwrap, self._check_data_keys, MAX_CONCURRENT_CALLS)
            if after is not None and len(keys) == MAX_PAGE_SIZE:
                return self._build_result("", last)
        for data_key_id, error in (await self.keyring.keys.count(self.keyring.database)).unreadable.items():
            self._add_problem(data_key_id, error)
        if records := self.keyring.records:
            orphans = await self.keyring.database.read(records.count_orphans, seconds=RECORD_QUERY_SECONDS)
            for data_key_id, number in orphans.items():
                self._add_problem(data_key_id, f"{number} records need it, and it is not in the keyring")
        whole, last = KeyringFingerprint(), ""
        while keys := await self._read_page(last):
            last = keys[-1].id
            for key in keys:
                whole.add(key.id, key.fingerprint.hex())
        return self._build_result(whole.hexdigest(), None)

    async def _read_page(self, after: str) -> tuple[DataKey, ...]:
        list_page = partial(self.keyring.keys.list_page, after=after, limit=MAX_PAGE_SIZE)
        return await self.keyring.database.read(list_page)

    def _build_result(self, fingerprint: str, following: str | None) -> VerificationResult:
        return VerificationResult(
            data_keys=self._data_keys,
            records=self._records,
            problems=(*self._problems, *self._foreign_problems)[:MAX_PROBLEMS],
            fingerprint=fingerprint,
            next=following,
        )

    async def _unwrap(self, key: DataKey) -> bytes | UnwrapError:
        try:
            return await self.keyring.wrapping.unwrap(key)
        except UnwrapError as error:
            return error

    async def _check_data_keys(self, keys: Sequence[tuple[DataKey, bytes | UnwrapError]]) -> None:
        self._data_keys += len(keys)
        for key, secret in keys:
            if isinstance(secret, UnwrapError):
                self._add_problem(key.id, str(secret), foreign=secret.is_foreign)
            elif (records := self.keyring.records) and records.open_record:
                await self._check_records(records, key, secret)

    async def _check_records(self, records: RecordsTable, key: DataKey, secret: bytes) -> None:
        after, limit = "", _RECORDS_PER_PAGE if self.reads_all_records else SAMPLE_SIZE

        def some(connection: Connection) -> tuple[Record, ...]:
            return records.read_page(connection, key.id, after, limit)

        while found := await self.keyring.database.read(some):
            for record in found:
                self._check_record(records, record, secret)
            after = found[-1].id
            if not self.reads_all_records:
                break

    def _check_record(self, records: RecordsTable, record: Record, secret: bytes) -> None:
        self._records += 1
        try:
            if records.open_record:
                records.open_record(record, secret)
        except ValueError as error:
            cause = str(error) or "it is not what was stored under this id"
            self._add_problem(record.id, f"this record cannot be opened: {cause}")

    def _add_problem(self, name: str, error: str, *, foreign: bool = False) -> None:
        problems = self._foreign_problems if foreign else self._problems
        if len(problems) < MAX_PROBLEMS:
            problems.append(Problem(id=name, error=error, is_foreign=foreign))
