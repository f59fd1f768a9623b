"""A start with thousands of data keys: the active one is enough to write, the others are unwrapped when needed."""

import asyncio
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import pytest

from services.backend.aes_gcm import UnwrappedKey
from shared.backend_contract import CryptoMode
from shared.keyring import store
from shared.keyring.model import DataKey, DataKeyStatus, WrappedKey, compute_fingerprint
from shared.keyring.tables import data_keys
from shared.kms.gcp.profile import GCP_PROFILE
from shared.kms.port import DecryptResult, KmsError
from shared.kms.reason import Reason
from tests.backend.conftest import Backend, Open
from tests.conftest import Until
from tests.shared.keyring.fake_kms import FakeKms
from tests.shared.keyring.keyring import KEY, insert_rows, secret_of

DATA_KEYS = 3000


class SlowKms(FakeKms):
    """A KMS that takes its time for each data key, and counts. Its quota is not what a test waits for."""

    profile = replace(GCP_PROFILE, calls_per_minute={"": 600_000})

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


@asynccontextmanager
async def _opened(folder: Path, kms: SlowKms, number: int, open_backend: Open) -> AsyncIterator[Backend]:
    """A backend with so many data keys, and a record of the last one."""
    async with open_backend(folder, kms) as backend:
        keys = [await _key(kms, each) for each in range(number)]
        await backend.store._database.write_exclusively(partial(insert_rows, keys=keys))
        await backend.records.put("old", b"kept", UnwrappedKey(keys[-1].id, secret_of(keys[-1].id)))
        kms.unwraps = 0
        yield backend


@asynccontextmanager
async def _started(
    folder: Path, kms: SlowKms, number: int, open_backend: Open
) -> AsyncIterator[tuple[Backend, asyncio.Event]]:
    """The same, whose checks begin."""
    async with _opened(folder, kms, number, open_backend) as backend:
        checked = asyncio.Event()
        watching = asyncio.create_task(backend.checker.run(0.05, checked))
        try:
            yield backend, checked
        finally:
            watching.cancel()
            await asyncio.gather(watching, return_exceptions=True)


async def test_a_start_with_3000_data_keys_writes_after_one_unwrap_and_is_never_in_env_mode(
    tmp_path: Path, until: Until, open_backend: Open
) -> None:
    kms = SlowKms()
    kms.answers = {"k00000", f"k{DATA_KEYS - 1:05}", "check"}
    async with _started(tmp_path, kms, DATA_KEYS, open_backend) as (backend, checked):
        async with asyncio.timeout(60):
            await checked.wait()
        assert (backend.keyring.mode, backend.keyring.reason) == (CryptoMode.KMS, None)
        assert kms.unwraps <= 2
        async with asyncio.timeout(60):
            assert await backend.get("old") == b"kept"
        assert kms.unwraps < DATA_KEYS / 10, "what a record needs is not waited for behind all others"
        kms.has_time.set()

        async def all_are_unwrapped() -> bool:
            return kms.unwraps >= DATA_KEYS

        await until(all_are_unwrapped)
        assert kms.most_in_progress <= 16
        assert (backend.keyring.mode, backend.keyring.reason) == (CryptoMode.KMS, None)


async def test_many_reads_of_one_data_key_share_one_unwrap(tmp_path: Path, until: Until, open_backend: Open) -> None:
    kms = SlowKms()
    async with _started(tmp_path, kms, 1, open_backend) as (backend, _):

        async def ready() -> bool:
            return backend.keyring.is_ready

        await until(ready)
        other = await _key(kms, 1)
        kms.unwraps, kms.seconds = 0, 0.05
        await backend.store._database.write_exclusively(lambda connection: store.insert_data_key(connection, other))
        await backend.records.put("old", b"kept", UnwrappedKey(other.id, secret_of(other.id)))
        assert await asyncio.gather(*(backend.get("old") for _ in range(20))) == [b"kept"] * 20
        assert kms.unwraps == 1


async def test_kms_that_fails_while_the_others_are_unwrapped_changes_no_mode_and_they_are_retried(
    tmp_path: Path, until: Until, open_backend: Open
) -> None:
    kms = SlowKms()
    kms.seconds = 0.05
    async with _started(tmp_path, kms, 50, open_backend) as (backend, _):

        async def ready() -> bool:
            return backend.keyring.is_ready

        async def has_retried() -> bool:
            return kms.unwraps >= tries

        await until(ready)
        kms.fails = KmsError(Reason.UNAVAILABLE, "not now")
        tries = kms.unwraps + 20
        await until(has_retried)
        assert backend.keyring.mode is CryptoMode.KMS
        kms.fails = None

        async def all_are_unwrapped() -> bool:
            return kms.unwraps >= tries + 50

        tries = 0
        await until(all_are_unwrapped)
        assert await backend.get("old") == b"kept"


async def test_what_kms_refuses_is_tried_a_few_at_a_time_and_all_of_it_once_kms_no_longer_does(
    tmp_path: Path, open_backend: Open
) -> None:
    kms = SlowKms()
    async with _opened(tmp_path, kms, 200, open_backend) as backend:
        keyring = backend.keyring

        async def count_checks_until(left: int) -> int:
            for checks in range(1, 10):
                await backend.check()
                if len(keyring.unwrap_errors) == left:
                    return checks
            pytest.fail(f"still {len(keyring.unwrap_errors)} data keys are not unwrapped")

        kms.primary, kms.disabled = 2, {1}
        database = backend.store._database
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
