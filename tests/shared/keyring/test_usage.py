"""What needs which version, and that a version is retired only when nothing does."""

import pytest
from sqlalchemy import URL

from services.backend import records as backend
from services.backend.aes_gcm import UnwrappedKey
from services.backend.records import RECORDS_TABLE, Records
from shared.keyring import instances, store
from shared.keyring.administration import RefusedError, VersionUsage
from shared.keyring.database import Database
from shared.keyring.key_table import RecordsTable
from shared.keyring.model import LOCAL_KEK, WrappedKey
from shared.keyring.store import DataKeyStore, RetiredVersionError
from shared.keyring.tables import data_keys, rotations
from shared.kms.gcp.client import GcpKmsKey
from tests.key_versions import Versions
from tests.shared.keyring.keyring import KEY, NEW_DEK, OTHER_KEY, Keyring, Meddled, opened, secret_of
from tests.stores import each_empty_database


@each_empty_database
async def test_data_keys_and_records_are_counted_by_the_version_that_they_need(
    url: URL, kms: GcpKmsKey, versions: Versions
) -> None:
    table = RecordsTable("records", "data_key_id")  # as the sql driver names it, which cannot open them
    async with opened(url, kms, records=table) as keyring:
        database = await Database.open(url, backend.TABLES)
        await database.close()
        records = Records(keyring.database)
        await keyring.fill(2)
        await keyring.add("foreign", WrappedKey(b"?", OTHER_KEY, "3"))
        await keyring.add("local", WrappedKey(b"?", LOCAL_KEK, "0"))
        await versions.rotate()
        await keyring.add("new")
        for number, key in enumerate(["k000", "k000", "k001", "new", "local"]):
            await records.put(f"r{number}", b"?", UnwrappedKey(key, secret_of(key)))
        encrypted = data_keys.update().where(data_keys.c.id == "k000").values(encryptions=7)
        await keyring.database.write(lambda connection: connection.execute(encrypted))
        census = await keyring.administration.count_key_usage()
        assert census.versions == (
            VersionUsage(kek=LOCAL_KEK, kek_version="0", data_keys=1, records=1),
            VersionUsage(kek=KEY, kek_version="1", data_keys=2, records=3),
            VersionUsage(kek=KEY, kek_version="2", data_keys=1, records=1),
            VersionUsage(kek=OTHER_KEY, kek_version="3", data_keys=1, records=0),
        )
        assert census.active == "k000"
        assert census.active_since == (await keyring.key("k000")).created_at
        assert census.encryptions == 7


@each_empty_database
async def test_a_data_key_that_the_database_lost_is_counted_until_it_is_given_up(url: URL, kms: GcpKmsKey) -> None:
    async with opened(url, kms, records=RECORDS_TABLE) as keyring:
        await (await Database.open(url, backend.TABLES)).close()
        await keyring.fill(2)
        await keyring.add("local", WrappedKey(b"?", LOCAL_KEK, "0"))
        for key in ("k000", "local"):
            await Records(keyring.database).put(f"of {key}", b"?", UnwrappedKey(key, secret_of(key)))
        unwrapped_by_nobody = await keyring.key("local")
        lost = data_keys.delete().where(data_keys.c.id == "k000")
        await keyring.database.write(lambda connection: connection.execute(lost))
        await keyring.database.write_exclusively(
            lambda connection: instances.abandon_data_keys(connection, 1.0, "test", [unwrapped_by_nobody])
        )
        census = await keyring.administration.count_key_usage()
        assert (census.missing, census.unreadable) == (1, 0), "what was given up needs no version"
        assert census.unknown_usage == "1 data keys that records need and the database lacks"


@each_empty_database
async def test_the_latest_new_data_key_is_that_of_the_latest_rotation_whatever_the_clock_said(keyring: Keyring) -> None:
    await keyring.fill(1)
    await keyring.rotate(NEW_DEK, "ahead")
    ahead = rotations.update().values(updated_at=rotations.c.updated_at + 1e8)
    await keyring.database.write_exclusively(lambda connection: connection.execute(ahead))
    latest = await keyring.rotate(NEW_DEK, "right")
    assert (await keyring.administration.count_key_usage()).new_dek_at == latest.updated_at


@each_empty_database
async def test_a_version_that_something_is_wrapped_by_is_not_retired(keyring: Keyring, versions: Versions) -> None:
    await keyring.fill(2)
    with pytest.raises(RefusedError, match=r"k000 is still wrapped by version 1 of .* --type rewrap-kek, then retire"):
        await keyring.administration.retire_version("1", keyring.token)
    await versions.rotate()
    await keyring.administration.rotate(keyring.request(batch_size=1))
    with pytest.raises(RefusedError, match=r"rotation r1 .* is not finished"):
        await keyring.administration.retire_version("1", keyring.token)
    await keyring.rotate()
    for _ in range(2):
        await keyring.administration.retire_version("1", keyring.token)
    assert [each.kek_version for each in (await keyring.administration.count_key_usage()).retired_versions] == ["1"]


@each_empty_database
async def test_nothing_is_wrapped_by_a_retired_version_any_more(
    keyring: Keyring, versions: Versions, meddled: Meddled
) -> None:
    (key,) = await keyring.fill(1)
    old = await keyring.wrapping.wrap(key.id, secret_of(key.id))
    await versions.rotate()
    await keyring.rotate()
    await keyring.administration.retire_version("1", keyring.token)
    keys = DataKeyStore(keyring.database)
    before = await keyring.keys()
    sentence = "version 1 of .* was retired, and nothing may be wrapped by it; set another primary version"
    with pytest.raises(RetiredVersionError, match=sentence):
        await keys.replace_wrap(before[key.id], old)
    with pytest.raises(RetiredVersionError, match=sentence):
        await keys.activate(key, expected_active=None)
    with pytest.raises(RefusedError, match=r"version 1 .* was retired"):
        await keyring.rotate(rotation_id="r2", target_version="1")
    assert await keyring.keys() == before


@each_empty_database
async def test_a_version_that_is_retired_while_a_new_key_is_being_wrapped_by_it_does_not_get_that_key(
    keyring: Keyring, meddled: Meddled
) -> None:
    meddled.meddle = lambda: keyring.administration.retire_version("1", keyring.token)
    with pytest.raises(RefusedError, match=r"version 1 of .* was retired"):
        await keyring.rotate(NEW_DEK)
    assert await keyring.keys() == {}


@each_empty_database
async def test_of_many_pages_none_is_left_out_and_ids_are_in_the_order_of_their_bytes(keyring: Keyring) -> None:
    names = ["B", "a", "Z-1", "_", "b", "A", "é", "0"]
    for name in names:
        await keyring.add(name, WrappedKey(name.encode(), KEY, "1"))
    found, after = [], ""
    while page := await keyring.database.read(lambda it, after=after: store.list_data_keys(it, after, 3)):  # type: ignore[misc]
        found += [key.id for key in page]
        after = found[-1]
    assert found == sorted(names, key=str.encode)
