"""Many data keys: each query and each batch needs the memory of one page, however many there are."""

import gc
import tracemalloc
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import pytest

from shared.keyring.administration import MAX_PAGE_SIZE, RotationState
from shared.keyring.model import DataKey, DataKeyStatus, KeyringFingerprint, compute_fingerprint
from shared.sql.database_url import create_sqlite_url
from tests.iterations import LONG
from tests.shared.keyring.fake_kms import FakeKms
from tests.shared.keyring.keyring import REWRAP, Keyring, insert_rows, opened, secret_of

NUMBER = 100_000 if LONG else 1_500  # a page and a half
BATCH = MAX_PAGE_SIZE if LONG else 250  # beside the page that each of the others reads
MEBIBYTE = 1024 * 1024


@pytest.fixture
async def keyring(tmp_path: Path) -> AsyncIterator[Keyring]:
    kms = FakeKms()
    async with opened(create_sqlite_url(tmp_path / "keyring.db"), kms) as keyring:
        for first in range(0, NUMBER, 1000):
            keys = [await _key(keyring, f"k{number:06}") for number in range(first, min(first + 1000, NUMBER))]
            await keyring.database.write_exclusively(partial(insert_rows, keys=keys))
        await keyring.take_lease()
        kms.primary = 2
        yield keyring


async def _key(keyring: Keyring, name: str) -> DataKey:
    wrapped = await keyring.wrapping.wrap(name, secret_of(name))
    return DataKey(name, DataKeyStatus.RETIRED, wrapped, compute_fingerprint(secret_of(name)), datetime.now(UTC))


async def test_memory_does_not_grow_with_the_number_of_data_keys(keyring: Keyring) -> None:
    administration = keyring.administration
    gc.collect()
    tracemalloc.start()
    try:
        dry = await administration.dry_run(REWRAP, "2")
        census = await administration.count_key_usage()
        verified = await administration.verify("full")
        number, after = 0, ""
        while page := await administration.list_backup_rows(after):
            number, after = number + len(page), page[-1].id
        batch = await administration.rotate(keyring.request(batch_size=BATCH))
        undone = await administration.rollback("r1", keyring.token)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert (dry.total, census.versions[0].data_keys, verified.data_keys, number) == (NUMBER,) * 4
    assert (batch.state, batch.done, undone.done) == (RotationState.RUNNING, BATCH, 0)
    assert verified.fingerprint == _fingerprint()
    assert peak < 5 * MEBIBYTE


def _fingerprint() -> str:
    whole = KeyringFingerprint()
    for number in range(NUMBER):
        name = f"k{number:06}"
        whole.add(name, compute_fingerprint(secret_of(name)).hex())
    return whole.hexdigest()
