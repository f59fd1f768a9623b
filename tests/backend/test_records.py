import os
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from sqlalchemy import URL

from services.backend.aes_gcm import DecryptionError, UnwrappedKey
from services.backend.records import TABLES, Records, decrypt_record
from shared.keyring import store
from shared.keyring import tables as keyring
from shared.keyring.database import Database
from shared.keyring.key_table import Record
from shared.keyring.model import DataKey, DataKeyStatus, WrappedKey
from shared.sql.database_url import create_sqlite_url

KEY = UnwrappedKey("k1", os.urandom(32))


async def _opened(url: URL) -> Database:
    """A database that has the data key."""
    database = await Database.open(url, keyring.TABLES, TABLES)
    row = DataKey(KEY.id, DataKeyStatus.ACTIVE, WrappedKey(b"?", "local", "0"), b"?", datetime.now(UTC))
    await database.write_exclusively(lambda connection: store.insert_data_key(connection, row))
    return database


@pytest.fixture
async def records(tmp_path: Path) -> AsyncIterator[Records]:
    database = await _opened(create_sqlite_url(tmp_path / "backend.db"))
    yield Records(database)
    await database.close()


async def _stored(records: Records, record_id: str, plaintext: bytes) -> Record:
    assert await records.put(record_id, plaintext, KEY)
    found = await records.find(record_id)
    assert found is not None
    return found


async def test_under_a_data_key_that_the_database_does_not_have_nothing_is_stored_and_nothing_replaced(
    empty_database: URL,
) -> None:
    database = await _opened(empty_database)
    records, other = Records(database), UnwrappedKey("k2", os.urandom(32))
    stored = await _stored(records, "r", b"old")
    assert [await records.put(record_id, b"new", other) for record_id in ("r", "s")] == [False, False]
    assert (await records.find("r"), await records.find("s")) == (stored, None)
    await database.close()


async def test_a_record_under_another_data_key_id_does_not_open_even_with_the_right_secret(records: Records) -> None:
    record = await _stored(records, "r", b"mine")
    with pytest.raises(DecryptionError):
        decrypt_record(record._replace(data_key_id="k2"), KEY)


async def test_an_older_version_of_a_record_that_is_put_back_opens_as_the_reference_says(records: Records) -> None:
    old = await _stored(records, "r", b"old")
    await _stored(records, "r", b"new")
    assert decrypt_record(old, KEY) == b"old"
    documented = (Path(__file__).parents[2] / "docs/reference.md").read_text()
    limit = "can restore an **older version** of the same record, or delete it, and the backend does not notice"
    assert limit in " ".join(documented.split())
