import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import URL, text
from sqlalchemy.exc import IntegrityError

from shared.keyring import local
from shared.keyring.database import Database
from shared.keyring.instances import Heartbeat
from shared.keyring.model import LOCAL_KEK, DataKey, Status, Wrapped
from shared.keyring.store import KeyStore, OtherLocalKeyError
from shared.keyring.tables import TABLES

NOW = datetime(2026, 11, 25, 12, 0, 0, 123456, tzinfo=UTC)
KEK = "projects/demo/locations/global/keyRings/app/cryptoKeys/ledger"


def _key(name: str, *, age: int = 0) -> DataKey:
    wrapped = Wrapped(f"wrapped {name}".encode(), LOCAL_KEK, 0)
    return DataKey(name, Status.ACTIVE, wrapped, b"fingerprint of " + name.encode(), NOW - timedelta(seconds=age))


@pytest.fixture
async def database(url: URL) -> AsyncIterator[Database]:
    opened = await Database.opened(url, TABLES)
    yield opened
    await opened.close()


@pytest.fixture
def store(database: Database) -> KeyStore:
    return KeyStore(database)


async def test_a_new_keyring_is_empty(store: KeyStore) -> None:
    assert await store.all() == ()


async def test_a_key_is_read_as_it_was_stored(store: KeyStore) -> None:
    assert await store.activate(_key("a"), instead_of=None)
    assert await store.all() == (_key("a"),)


async def test_a_successor_retires_the_active_key_in_one_step(store: KeyStore) -> None:
    old, new = _key("a", age=1), _key("b")
    await store.activate(old, instead_of=None)
    assert await store.activate(new, instead_of=old)
    assert await store.all() == (replace(old, status=Status.RETIRED), new)


async def test_keys_are_listed_oldest_first(store: KeyStore) -> None:
    newer, older = _key("a", age=1), _key("b", age=2)
    await store.activate(newer, instead_of=None)
    await store.activate(older, instead_of=newer)
    assert [key.id for key in await store.all()] == ["b", "a"]


async def test_a_key_that_expects_no_active_one_does_not_displace_it(store: KeyStore) -> None:
    await store.activate(_key("a"), instead_of=None)
    assert not await store.activate(_key("b"), instead_of=None)
    assert await store.all() == (_key("a"),)


async def test_a_key_that_expects_one_which_is_no_longer_active_changes_nothing(store: KeyStore) -> None:
    first, second = _key("a", age=2), _key("b", age=1)
    await store.activate(first, instead_of=None)
    await store.activate(second, instead_of=first)
    before = await store.all()
    assert not await store.activate(_key("c"), instead_of=first)
    assert await store.all() == before


async def test_of_many_that_activate_at_once_one_succeeds(url: URL, store: KeyStore) -> None:
    other = await Database.opened(url, TABLES)  # as another process
    try:
        stores = (store, KeyStore(other))
        outcomes = await asyncio.gather(*(stores[n % 2].activate(_key(str(n)), instead_of=None) for n in range(10)))
    finally:
        await other.close()
    assert sorted(outcomes) == [False] * 9 + [True]
    assert len(await store.all()) == 1


async def test_the_database_itself_refuses_a_second_active_key(store: KeyStore, database: Database) -> None:
    await store.activate(_key("a"), instead_of=None)
    second = "SELECT 'b', status, wrapped, kek, kek_version, algorithm, fingerprint, 0 FROM data_keys"
    with pytest.raises(IntegrityError):
        await database.write(lambda connection: connection.execute(text("INSERT INTO data_keys " + second)))


async def test_a_rewrap_changes_the_wrap_alone(store: KeyStore) -> None:
    await store.activate(_key("a"), instead_of=None)
    wrapped = Wrapped(b"by kms", KEK, 7)
    assert await store.rewrap(_key("a"), wrapped)
    assert await store.all() == (replace(_key("a"), wrapped=wrapped),)


async def test_a_rewrap_of_a_wrap_that_was_replaced_meanwhile_changes_nothing(store: KeyStore) -> None:
    stale = _key("a")
    await store.activate(stale, instead_of=None)
    await store.rewrap(stale, Wrapped(b"by kms", KEK, 7))
    assert not await store.rewrap(stale, Wrapped(b"late", KEK, 6))
    assert (await store.all())[0].wrapped == Wrapped(b"by kms", KEK, 7)


async def test_a_rewrap_of_an_unknown_key_changes_nothing(store: KeyStore) -> None:
    assert not await store.rewrap(_key("a"), Wrapped(b"by kms", KEK, 7))
    assert await store.all() == ()


async def test_once_its_last_data_key_was_given_up_a_local_key_is_replaced_only_where_nobody_else_lives(
    database: Database, store: KeyStore
) -> None:
    one, other = (Heartbeat(database, name, 60.0) for name in ("one", "other"))
    await database.change(lambda connection: local.note(connection, database.now(connection), one, b"former"))
    await store.put_back(_key("a"))
    assert await database.change(lambda connection: local.give_up(connection, 1.0, "one", [_key("a")]))
    await other.beat([])
    with pytest.raises(OtherLocalKeyError):
        await database.change(lambda connection: local.note(connection, database.now(connection), one, b"new"))
    await other.end()
    await database.change(lambda connection: local.note(connection, database.now(connection), one, b"new"))


async def test_a_data_key_whose_row_is_stored_again_is_no_longer_given_up(database: Database, store: KeyStore) -> None:
    await store.put_back(_key("a"))
    await database.change(lambda connection: local.give_up(connection, 1.0, "one", [_key("a")]))
    assert await store.put_back(_key("a"))
    left = await database.read(lambda connection: connection.execute(text("SELECT id FROM keyring_given_up")).all())
    assert left == []
