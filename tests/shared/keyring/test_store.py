import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import URL, text
from sqlalchemy.exc import IntegrityError
from structlog.testing import capture_logs

from shared.keyring import instances
from shared.keyring.database import Database
from shared.keyring.instances import InstanceHeartbeat
from shared.keyring.model import LOCAL_KEK, DataKey, DataKeyStatus, WrappedKey
from shared.keyring.store import DataKeyStore, OtherLocalKeyError
from shared.keyring.tables import TABLES
from tests.stores import each_empty_database

NOW = datetime(2026, 11, 25, 12, 0, 0, 123456, tzinfo=UTC)


def _key(name: str, *, age: int = 0) -> DataKey:
    wrapped = WrappedKey(f"wrapped {name}".encode(), LOCAL_KEK, "0")
    return DataKey(
        name, DataKeyStatus.ACTIVE, wrapped, b"fingerprint of " + name.encode(), NOW - timedelta(seconds=age)
    )


@pytest.fixture
async def database(url: URL) -> AsyncIterator[Database]:
    opened = await Database.open(url, TABLES)
    yield opened
    await opened.close()


@pytest.fixture
def store(database: Database) -> DataKeyStore:
    return DataKeyStore(database)


@each_empty_database
async def test_a_wrap_by_another_local_key_than_the_known_one_is_not_stored(store: DataKeyStore) -> None:
    with pytest.raises(OtherLocalKeyError):
        await store.activate(_key("a"), expected_active=None, local_fingerprint=b"of another local key")
    assert await store.activate(_key("b"), expected_active=None)  # no key is known, so none is expected


@each_empty_database
async def test_tables_that_are_made_are_reported(url: URL) -> None:
    for expected in (["created tables in an empty database"], []):
        with capture_logs() as logs:
            await (await Database.open(url, TABLES)).close()
        assert [line["event"] for line in logs] == expected


@each_empty_database
async def test_a_successor_retires_the_active_key_that_it_expects_and_no_other_changes_anything(
    store: DataKeyStore,
) -> None:
    old, new = _key("b", age=1), _key("a")
    assert await store.activate(old, expected_active=None)
    assert not await store.activate(new, expected_active=None)
    assert await store.list_all() == (old,)
    assert await store.activate(new, expected_active=old)
    assert not await store.activate(_key("c"), expected_active=old)
    assert await store.list_all() == (replace(old, status=DataKeyStatus.RETIRED), new)


@each_empty_database
async def test_of_many_that_activate_at_once_one_succeeds(url: URL, store: DataKeyStore) -> None:
    other = await Database.open(url, TABLES)  # as another process
    try:
        stores = (store, DataKeyStore(other))
        outcomes = await asyncio.gather(
            *(stores[n % 2].activate(_key(str(n)), expected_active=None) for n in range(10))
        )
    finally:
        await other.close()
    assert sorted(outcomes) == [False] * 9 + [True]
    assert len(await store.list_all()) == 1


@each_empty_database
async def test_the_database_itself_refuses_a_second_active_key(store: DataKeyStore, database: Database) -> None:
    await store.activate(_key("a"), expected_active=None)
    second = "SELECT 'b', status, wrapped, kek, kek_version, algorithm, fingerprint, 0, 0 FROM data_keys"
    with pytest.raises(IntegrityError):
        await database.write(lambda connection: connection.execute(text("INSERT INTO data_keys " + second)))


@each_empty_database
async def test_once_its_last_data_key_was_given_up_a_local_key_is_replaced_only_where_nobody_else_lives(
    database: Database, store: DataKeyStore
) -> None:
    one, other = (InstanceHeartbeat(database, name, 60.0) for name in ("one", "other"))
    await database.write_exclusively(
        lambda connection: instances.register_local_key(connection, database.read_clock(connection), one, b"former")
    )
    await store.restore_row(_key("a"))
    assert await database.write_exclusively(
        lambda connection: instances.abandon_data_keys(connection, 1.0, "one", [_key("a")])
    )
    await other.send([], {})
    with pytest.raises(OtherLocalKeyError):
        await database.write_exclusively(
            lambda connection: instances.register_local_key(connection, database.read_clock(connection), one, b"new")
        )
    await other.remove()
    await database.write_exclusively(
        lambda connection: instances.register_local_key(connection, database.read_clock(connection), one, b"new")
    )


@each_empty_database
async def test_a_data_key_whose_row_is_stored_again_is_no_longer_given_up(
    database: Database, store: DataKeyStore
) -> None:
    await store.restore_row(_key("a"))
    await database.write_exclusively(
        lambda connection: instances.abandon_data_keys(connection, 1.0, "one", [_key("a")])
    )
    assert await store.restore_row(_key("a"))
    left = await database.read(
        lambda connection: connection.execute(text("SELECT id FROM keyring_abandoned_keys")).all()
    )
    assert left == []
