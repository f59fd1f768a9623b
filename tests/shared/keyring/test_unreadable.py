"""A row that another hand got wrong is named, and hides no other."""

from collections.abc import Iterator
from dataclasses import replace
from uuid import uuid4

import pytest
from sqlalchemy import URL, Connection

from shared.keyring import store
from shared.keyring.administration import RefusedError
from shared.keyring.model import DataKeyStatus, WrappedKey
from shared.keyring.rotation_metrics import read_keyring_metrics
from shared.keyring.store import DataKeyStore
from shared.kms.gcp.client import GcpKmsKey
from tests.key_versions import Versions
from tests.postgres import Postgres
from tests.shared.keyring.keyring import NEW_DEK, Keyring, opened


async def _set(keyring: Keyring, table: str, change: str, row: str) -> None:
    sql = f"UPDATE {table} SET {change} WHERE id = '{row}'"  # noqa: S608
    await keyring.database.write_exclusively(lambda connection: connection.exec_driver_sql(sql))


@pytest.mark.parametrize(
    "wrong", ["status = 'weird'", "status = 'unknown'", "created_at = 1e20", "created_at = -1", "kek_version = ''"]
)
async def test_a_data_key_of_which_one_value_is_wrong_is_named_and_used_and_rotated(
    keyring: Keyring, wrong: str
) -> None:
    await keyring.fill(2)
    await _set(keyring, "data_keys", wrong, "k001")
    keys = await DataKeyStore(keyring.database).list_all()
    assert {key.id for key in keys} == {"k000", "k001"}
    for key in keys:
        await keyring.wrapping.unwrap(key)
    (problem,) = (await keyring.administration.verify("full")).problems
    column = wrong.partition(" ")[0]
    assert (problem.id, problem.error) == (
        "k001",
        f"its {column} in the table data_keys cannot be read; correct it there",
    )
    assert (await keyring.database.read(read_keyring_metrics)).unreadable_rows == {problem.id: problem.error}
    assert len(await keyring.administration.list_backup_rows()) == 2
    assert (await keyring.rotate()).state == "done"


@pytest.fixture
def no_utf8(url: URL, shared_postgres: Postgres) -> Iterator[tuple[URL, str]]:
    """A database that holds any bytes as text, and such a text in its SQL."""
    if url.drivername == "sqlite":
        yield url, "CAST(x'6bff' AS TEXT)"
        return
    name = f"test_{uuid4().hex}"
    shared_postgres._execute(f"CREATE DATABASE {name} TEMPLATE template0 ENCODING 'SQL_ASCII' LOCALE 'C'")
    yield url.set(database=name), r"E'k\xff'"
    shared_postgres.drop(url.set(database=name))


@pytest.mark.parametrize("column", ["id", "status", "kek", "algorithm"])
async def test_a_text_that_is_not_utf8_is_named_and_hides_no_other(
    no_utf8: tuple[URL, str], kms: GcpKmsKey, column: str
) -> None:
    url, text_of_any_bytes = no_utf8
    async with opened(url, kms) as keyring:
        await keyring.take_lease()
        for name in ("j", "k", "l"):
            await keyring.add(name)
        await _set(keyring, "data_keys", f"{column} = {text_of_any_bytes}", "k")
        row_id = r"k\xff" if column == "id" else "k"
        store = DataKeyStore(keyring.database)
        assert {key.id for key in await store.list_all()} == {"j", "l"} | (set() if column == "id" else {"k"})
        for name in ("j", "l"):
            assert await keyring.wrapping.unwrap(await keyring.key(name))
        why = f"its {column} in the table data_keys cannot be read; correct it there"
        assert (await keyring.database.read(read_keyring_metrics)).unreadable_rows == {row_id: why}
        found = await keyring.administration.verify("full")
        assert (row_id, why) in {(problem.id, problem.error) for problem in found.problems}
        assert len(await keyring.administration.list_backup_rows("", 2)) == 2
        assert len(await keyring.administration.list_backup_rows("j", 2)) == (1 if column == "id" else 2)


async def test_an_active_data_key_without_a_readable_id_is_replaced_by_another(
    no_utf8: tuple[URL, str], kms: GcpKmsKey
) -> None:
    url, text_of_any_bytes = no_utf8
    async with opened(url, kms) as keyring:
        old = await keyring.add("k", status=DataKeyStatus.ACTIVE)
        await _set(keyring, "data_keys", f"id = {text_of_any_bytes}", "k")
        assert await DataKeyStore(keyring.database).activate(replace(old, id="new"), expected_active=None)
        assert await keyring.statuses() == {"new": DataKeyStatus.ACTIVE}
        assert (await keyring.database.read(read_keyring_metrics)).data_keys == {
            ("1", DataKeyStatus.ACTIVE): 1,
            ("1", DataKeyStatus.RETIRED): 1,
        }


@pytest.mark.parametrize("empty_database", ["sqlite"], indirect=True)
@pytest.mark.parametrize("value", ["x'ff'", "7", "7.5", "'text'"])
@pytest.mark.parametrize(
    "column", ["wrapped", "fingerprint", "status", "kek", "algorithm", "id", "kek_version", "created_at"]
)
async def test_a_value_of_another_kind_in_a_file_hides_no_other(keyring: Keyring, column: str, value: str) -> None:
    await keyring.fill(2)
    await _set(keyring, "data_keys", f"{column} = {value}", "k001")
    assert "k000" in {key.id for key in await DataKeyStore(keyring.database).list_all()}
    is_fine = column in ("algorithm", "kek", "kek_version") and value != "x'ff'"  # SQLite makes a text of it
    is_fine |= column == "created_at" and value in {"7", "7.5"}
    assert bool((await keyring.administration.verify("full")).problems) is not is_fine
    assert sum((await keyring.database.read(read_keyring_metrics)).data_keys.values()) == 2


@pytest.mark.parametrize(
    ("version", "error"),
    [
        ("''", "may be needed by 1 rows of data keys that cannot be read"),
        ("'text'", "may be needed by 1 data keys of version 'text', which the key does not have"),
    ],
)
async def test_no_version_is_retired_while_a_data_key_names_one_that_the_kms_key_does_not_have(
    keyring: Keyring, versions: Versions, version: str, error: str
) -> None:
    await keyring.fill(2)
    await versions.rotate()
    await keyring.rotate()
    await _set(keyring, "data_keys", f"kek_version = {version}", "k001")
    with pytest.raises(RefusedError, match=error):
        await keyring.administration.retire_version("1", keyring.token)
    await keyring.rotate(rotation_id="r2")  # it writes the version anew
    await keyring.administration.retire_version("1", keyring.token)


async def test_two_statuses_that_nobody_knows_are_added_up(keyring: Keyring) -> None:
    await keyring.fill(3)
    await _set(keyring, "data_keys", "status = 'one'", "k001")
    await _set(keyring, "data_keys", "status = 'two'", "k002")
    assert (await keyring.database.read(read_keyring_metrics)).data_keys == {
        ("1", DataKeyStatus.ACTIVE): 1,
        ("1", DataKeyStatus.UNKNOWN): 2,
    }


@pytest.mark.parametrize("column", ["type", "state"])
async def test_a_rotation_with_an_unreadable_value_is_named_by_every_command_and_by_the_metrics(
    keyring: Keyring, column: str
) -> None:
    await keyring.fill(1)
    await keyring.rotate(NEW_DEK)
    await _set(keyring, "keyring_rotations", f"{column} = 'xx'", "r1")
    for call in (keyring.administration.get_progress, keyring.rotate, keyring.rollback):
        with pytest.raises(RefusedError, match=r"rotation r1 cannot be read: .* correct it there"):
            await call()
    now = await keyring.database.read(read_keyring_metrics)
    assert now.unreadable_rows == {
        "r1": f"its {column} in the table keyring_rotations cannot be read; correct it there"
    }
    assert now.is_in_progress is False


async def test_a_time_of_the_journal_that_is_no_moment_is_the_beginning_of_time(keyring: Keyring) -> None:
    await keyring.fill(1)
    await keyring.rotate(NEW_DEK)
    await _set(keyring, "keyring_rotations", "updated_at = 1e20", "r1")
    progress = await keyring.administration.get_progress()
    assert progress is not None
    assert progress.updated_at.timestamp() == 0
    assert "updated_at" in (await keyring.database.read(read_keyring_metrics)).unreadable_rows["r1"]


async def test_a_text_that_is_not_utf8_is_named_among_hundreds_in_the_letters_of_any_language(
    no_utf8: tuple[URL, str], kms: GcpKmsKey
) -> None:
    url, text_of_any_bytes = no_utf8
    async with opened(url, kms) as keyring:
        key = replace(await keyring.add("k"), wrapped=WrappedKey(b"wrapped", "schlüssel", "1"))

        def insert(connection: Connection) -> None:
            for number in range(150):
                store.insert_data_key(connection, replace(key, id=f"k{number:03}"))

        await keyring.database.write_exclusively(insert)
        await _set(keyring, "data_keys", f"kek = {text_of_any_bytes}", "k149")
        assert set((await keyring.database.read(read_keyring_metrics)).unreadable_rows) == {"k149"}
