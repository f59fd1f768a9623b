"""A backup's rows go back only where they are the same data key, and only after they were unwrapped."""

import pytest
from sqlalchemy import Connection, select

from shared.keyring.administration import MAX_PAGE_SIZE, AdministrationError, RefusedError, StoredKey
from shared.keyring.model import DataKeyStatus, WrappedKey
from shared.keyring.tables import data_keys, journal_entries, rewraps
from tests.key_versions import Versions
from tests.shared.keyring.keyring import OTHER_KEY, Keyring, secret_of


async def _backup(keyring: Keyring) -> list[StoredKey]:
    return [
        StoredKey.model_validate_json(row.model_dump_json()) for row in await keyring.administration.list_backup_rows()
    ]


async def test_a_backup_contains_every_row_page_by_page_and_no_key_in_clear(keyring: Keyring) -> None:
    await keyring.fill(5)
    rows = [
        *await keyring.administration.list_backup_rows("", 3),
        *await keyring.administration.list_backup_rows("k002", 3),
    ]
    assert [row.id for row in rows] == ["k000", "k001", "k002", "k003", "k004"]
    assert not any("secret" in row.model_dump_json() or secret_of(row.id).hex() in row.wrapped for row in rows)
    keys = await keyring.administration.list_keys("k003", 10**9)
    assert [key.id for key in keys] == ["k004"]
    assert "wrapped" not in type(keys[0]).model_fields


async def _damage(keyring: Keyring, *names: str) -> None:
    for name in names:
        key = await keyring.key(name)
        await keyring.replace(key, WrappedKey(b"damaged", key.wrapped.kek, key.wrapped.kek_version))


async def test_what_is_damaged_is_put_back_what_opens_stays_and_a_second_time_changes_nothing(
    keyring: Keyring, versions: Versions
) -> None:
    await keyring.fill(3)
    rows, before = await _backup(keyring), await keyring.keys()
    await versions.rotate()
    await keyring.rotate()
    rotated = await keyring.keys()
    await _damage(keyring, "k001")
    assert await keyring.administration.restore(rows, keyring.token) == 1
    assert await keyring.keys() == {**rotated, "k001": before["k001"]}
    assert await keyring.administration.restore(rows, keyring.token) == 0
    stored = select(rewraps.c.data_key_id, rewraps.c.old_wrapped).where(rewraps.c.outcome == "restored")
    entries = select(journal_entries.c.detail).where(journal_entries.c.step == "restore")

    def read(connection: Connection) -> list[tuple[object, ...]]:
        return [tuple(row) for query in (stored, entries) for row in connection.execute(query)]

    named, (detail,) = await keyring.database.read(read)
    assert named == ("k001", b"damaged")
    assert str(detail).startswith("1 of 3 rows of a backup were put back by ")


async def test_a_row_that_is_missing_comes_back_and_encrypts_nothing(keyring: Keyring) -> None:
    (key,) = await keyring.fill(1)
    rows = await _backup(keyring)
    await keyring.database.write_exclusively(lambda connection: connection.execute(data_keys.delete()))
    assert await keyring.administration.restore(rows, keyring.token) == 1
    restored = await keyring.key(key.id)
    assert (restored.status, restored.wrapped, restored.created_at) == (
        DataKeyStatus.RETIRED,
        key.wrapped,
        key.created_at,
    )


async def test_rows_that_are_damaged_or_of_other_data_keys_are_named_and_the_rest_is_put_back(
    keyring: Keyring, versions: Versions
) -> None:
    await keyring.fill(4)
    damaged, no_base64, other, good = await _backup(keyring)
    await versions.rotate()
    await keyring.rotate()
    before = await keyring.versions()
    await _damage(keyring, "k000", "k001", "k002", "k003")
    rows = [
        damaged.model_copy(update={"wrapped": "AAAA" + damaged.wrapped[4:]}),
        no_base64.model_copy(update={"wrapped": "?"}),
        other.model_copy(update={"fingerprint": "00" * 32}),
        good,
    ]
    with pytest.raises(AdministrationError) as raised:
        await keyring.administration.restore(rows, keyring.token)
    assert "of 4 rows 1 were changed" in str(raised.value)
    assert "k000 (KMS: invalid_request (version 1)), k001 (it is damaged), k002 (the keyring has another" in str(
        raised.value
    )
    assert await keyring.versions() == {**before, "k003": "1"}


async def test_a_row_that_is_right_already_needs_no_kms_even_if_its_wrap_is_foreign(keyring: Keyring) -> None:
    await keyring.add("foreign", WrappedKey(b"?", OTHER_KEY, "1"))
    assert await keyring.administration.restore(await _backup(keyring), keyring.token) == 0


async def test_of_a_retired_version_only_what_cannot_be_read_is_put_back_re_wrapped_by_the_primary_one(
    keyring: Keyring, versions: Versions
) -> None:
    damaged, missing, whole = await keyring.fill(3)
    rows = await _backup(keyring)
    await versions.rotate()
    await keyring.rotate()
    await keyring.administration.retire_version("1", keyring.token)
    before = await keyring.keys()
    await keyring.replace(before[damaged.id], WrappedKey(b"damaged", damaged.wrapped.kek, "2"))
    deletion = data_keys.delete().where(data_keys.c.id == missing.id)
    await keyring.database.write_exclusively(lambda connection: connection.execute(deletion))
    assert await keyring.administration.restore(rows, keyring.token) == 2
    assert await keyring.versions() == dict.fromkeys(before, "2")
    assert (await keyring.key(whole.id)).wrapped == before[whole.id].wrapped
    assert (await keyring.administration.verify("full")).problems == ()
    assert await keyring.administration.restore(rows, keyring.token) == 0


async def test_while_a_retired_version_is_disabled_what_needs_it_is_named_and_the_rest_is_put_back(
    keyring: Keyring, versions: Versions
) -> None:
    damaged, _whole, late = await keyring.fill(3)
    rows = await _backup(keyring)
    await versions.rotate()
    await keyring.rotate()
    await keyring.administration.retire_version("1", keyring.token)
    rows[2] = (await _backup(keyring))[2]  # of a later backup
    for key in (damaged, late):
        await keyring.replace(await keyring.key(key.id), WrappedKey(b"damaged", key.wrapped.kek, "2"))
    await versions.disable(1)
    refusal = r"of 3 rows 1 .*: k000 \(KMS: key_disabled \(version 1\)\); try another backup"
    with pytest.raises(AdministrationError, match=refusal):
        await keyring.administration.restore(rows, keyring.token)
    await versions.enable(1)
    assert await keyring.administration.restore(rows, keyring.token) == 1


async def test_too_many_rows_at_once_are_refused(keyring: Keyring) -> None:
    await keyring.fill(1)
    with pytest.raises(RefusedError, match=f"up to {MAX_PAGE_SIZE} rows"):
        await keyring.administration.restore((await _backup(keyring)) * (MAX_PAGE_SIZE + 1), keyring.token)
