"""A start with thousands of data keys: the active one is enough to write, the others are unwrapped when needed."""

import asyncio
import time
from collections.abc import AsyncIterator, Collection, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from uuid import uuid4

import pytest
from sqlalchemy import Connection

from services.backend import records as records_module
from services.backend.aes_gcm import UnwrappedKey
from services.backend.crypto_mode import KmsChecker
from services.backend.keyring import Keyring
from services.backend.local_key_file import InstanceLocalKey
from services.backend.records import Records, decrypt_record
from shared.backend_contract import CryptoMode
from shared.keyring import store
from shared.keyring.database import Database
from shared.keyring.instances import InstanceHeartbeat
from shared.keyring.model import DataKey, DataKeyStatus, WrappedKey, compute_fingerprint
from shared.keyring.store import DataKeyStore
from shared.keyring.tables import TABLES, data_keys
from shared.keyring.wrapping import KeyWrapper
from shared.kms.port import DecryptResult, KmsError
from shared.kms.quota import QuotaLimitedKey
from shared.kms.reason import Reason
from shared.sql.database_url import create_sqlite_url
from tests.conftest import Until
from tests.shared.keyring.fake_kms import FakeKms
from tests.shared.keyring.keyring import KEY, secret_of

DATA_KEYS = 3000


class SlowKms(FakeKms):
    """A KMS that takes its time for each data key, and counts."""

    def __init__(self) -> None:
        super().__init__()
        self.seconds = 0.0
        self.unwraps = 0
        self.in_progress = 0
        self.most_in_progress = 0
        self.fails: KmsError | None = None
        self.answers: Collection[str] | None = None
        """The data keys whose turn it is; all others wait for `has_time`. None: nothing waits."""
        self.has_time = asyncio.Event()

    async def decrypt(self, ciphertext: bytes, aad: bytes, *, timeout: float) -> DecryptResult:
        if b"check" not in aad:
            self.unwraps += 1
            if self.fails:
                raise self.fails
        self.in_progress += 1
        self.most_in_progress = max(self.most_in_progress, self.in_progress)
        try:
            if self.answers is not None and aad.rpartition(b"\0")[2].decode() not in self.answers:
                await self.has_time.wait()
            await asyncio.sleep(self.seconds)
            return await super().decrypt(ciphertext, aad, timeout=timeout)
        finally:
            self.in_progress -= 1


async def _key(kms: FakeKms, number: int) -> DataKey:
    name = f"k{number:05}"
    encrypted = await kms.encrypt(secret_of(name), b"keypulse data key\0" + name.encode(), timeout=1)
    wrapped = WrappedKey(encrypted.ciphertext, KEY, encrypted.version)
    status = DataKeyStatus.RETIRED if number else DataKeyStatus.ACTIVE
    return DataKey(name, status, wrapped, compute_fingerprint(secret_of(name)), datetime(2026, 11, 25, tzinfo=UTC))


def _insert(connection: Connection, keys: Sequence[DataKey]) -> None:
    rows = [
        {
            "id": key.id,
            "status": key.status.value,
            "wrapped": key.wrapped.ciphertext,
            "kek": key.wrapped.kek,
            "kek_version": key.wrapped.kek_version,
            "algorithm": key.algorithm,
            "fingerprint": key.fingerprint,
            "created_at": key.created_at.timestamp(),
        }
        for key in keys
    ]
    connection.execute(data_keys.insert(), rows)


@asynccontextmanager
async def _opened(folder: Path, kms: SlowKms, number: int) -> AsyncIterator[tuple[Keyring, Records]]:
    """A keyring with so many data keys, and a record of the last one."""
    database = await Database.open(create_sqlite_url(folder / "backend.db"), TABLES, records_module.TABLES)
    try:
        keys = [await _key(kms, each) for each in range(number)]
        await database.write_exclusively(partial(_insert, keys=keys))
        records = Records(database)
        await records.put("old", b"kept", UnwrappedKey(keys[-1].id, secret_of(keys[-1].id)))
        heartbeat = InstanceHeartbeat(database, uuid4().hex, 10.0)
        local = InstanceLocalKey(folder / "local.key", database, heartbeat)
        await local.open()
        wrapping = KeyWrapper(kms, KEY, 5.0, local)
        keyring = Keyring(
            DataKeyStore(database), local, wrapping, heartbeat, background_kms=QuotaLimitedKey(kms), clock=time.time
        )
        kms.unwraps = 0
        yield keyring, records
    finally:
        await database.close()


@asynccontextmanager
async def _started(folder: Path, kms: SlowKms, number: int) -> AsyncIterator[tuple[Keyring, Records, asyncio.Event]]:
    """The same, whose checks begin."""
    async with _opened(folder, kms, number) as (keyring, records):
        checked = asyncio.Event()
        watching = asyncio.create_task(KmsChecker(keyring).run(0.05, checked))
        try:
            yield keyring, records, checked
        finally:
            watching.cancel()
            await asyncio.gather(watching, return_exceptions=True)


async def _get(keyring: Keyring, records: Records) -> bytes:
    record = await records.find("old")
    assert record is not None
    return decrypt_record(record, await keyring.get_key(record.data_key_id))


async def test_a_start_with_3000_data_keys_writes_after_one_unwrap_and_is_never_in_env_mode(
    tmp_path: Path, until: Until
) -> None:
    kms = SlowKms()
    kms.answers = {"k00000", f"k{DATA_KEYS - 1:05}", "check"}
    async with _started(tmp_path, kms, DATA_KEYS) as (keyring, records, checked):
        async with asyncio.timeout(60):
            await checked.wait()
        assert (keyring.mode, keyring.reason) == (CryptoMode.KMS, None)
        assert kms.unwraps <= 2
        async with asyncio.timeout(60):
            assert await _get(keyring, records) == b"kept"
        assert kms.unwraps < DATA_KEYS / 10, "what a record needs is not waited for behind all others"
        kms.has_time.set()

        async def all_are_unwrapped() -> bool:
            return kms.unwraps >= DATA_KEYS

        await until(all_are_unwrapped)
        assert kms.most_in_progress <= 16
        assert (keyring.mode, keyring.reason) == (CryptoMode.KMS, None)


async def test_many_reads_of_one_data_key_share_one_unwrap(tmp_path: Path, until: Until) -> None:
    kms = SlowKms()
    async with _started(tmp_path, kms, 1) as (keyring, records, _checked):

        async def ready() -> bool:
            return keyring.is_ready

        await until(ready)
        other = await _key(kms, 1)
        await keyring._store._database.write_exclusively(lambda connection: store.insert_data_key(connection, other))
        kms.unwraps, kms.seconds = 0, 0.05
        await records.put("old", b"kept", UnwrappedKey(other.id, secret_of(other.id)))
        assert await asyncio.gather(*(_get(keyring, records) for _ in range(20))) == [b"kept"] * 20
        assert kms.unwraps == 1


async def test_kms_that_fails_while_the_others_are_unwrapped_changes_no_mode_and_they_are_retried(
    tmp_path: Path, until: Until
) -> None:
    kms = SlowKms()
    kms.seconds = 0.05
    async with _started(tmp_path, kms, 50) as (keyring, records, _checked):

        async def ready() -> bool:
            return keyring.is_ready

        async def has_retried() -> bool:
            return kms.unwraps >= tries

        await until(ready)
        kms.fails = KmsError(Reason.UNAVAILABLE, "not now")
        tries = kms.unwraps + 20
        await until(has_retried)
        assert keyring.mode is CryptoMode.KMS
        kms.fails = None

        async def all_are_unwrapped() -> bool:
            return kms.unwraps >= tries + 50

        tries = 0
        await until(all_are_unwrapped)
        assert await _get(keyring, records) == b"kept"


async def test_what_kms_refuses_is_tried_a_few_at_a_time_and_all_of_it_once_kms_no_longer_does(tmp_path: Path) -> None:
    kms = SlowKms()
    async with _opened(tmp_path, kms, 200) as (keyring, _records):
        checker = KmsChecker(keyring)

        async def count_checks_until(left: int) -> int:
            for checks in range(1, 10):
                await checker.check()
                await keyring.unwrap_remaining()
                if len(keyring.unwrap_errors) == left:
                    return checks
            pytest.fail(f"still {len(keyring.unwrap_errors)} data keys are not unwrapped")

        kms.primary, kms.disabled = 2, {1}
        database = keyring._store._database
        broken = data_keys.c.id.between("k00001", "k00020")  # the version is not to blame for these
        spoil = data_keys.update().where(broken).values(wrapped=data_keys.c.wrapped + b"?")
        await database.write_exclusively(lambda connection: connection.execute(spoil))
        assert await count_checks_until(200) == 1
        before = kms.unwraps
        for _ in range(5):
            await count_checks_until(200)
        assert 0 < kms.unwraps - before <= 5 * 8
        kms.disabled = set()
        assert await count_checks_until(20) <= 5
        right = await _key(kms, 7)
        restored = data_keys.update().where(data_keys.c.id == right.id)
        columns = {"wrapped": right.wrapped.ciphertext, "kek_version": right.wrapped.kek_version}
        await database.write_exclusively(lambda connection: connection.execute(restored.values(**columns)))
        assert await count_checks_until(19) <= 3
