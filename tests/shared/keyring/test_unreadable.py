"""A row that another hand got wrong is named, and hides no other."""

import pytest
from sqlalchemy import text

from shared.keyring.administration import RefusedError
from shared.keyring.model import Status
from shared.keyring.seen import seen
from shared.keyring.store import KeyStore
from tests.key_versions import Versions
from tests.shared.keyring.keyring import NEW_DEK, Keyring


async def _set(keyring: Keyring, table: str, change: str, row: str) -> None:
    sql = f"UPDATE {table} SET {change} WHERE id = '{row}'"  # noqa: S608
    await keyring.database.change(lambda connection: connection.execute(text(sql)))


@pytest.mark.parametrize(
    "wrong", ["status = 'weird'", "status = 'unknown'", "created_at = 1e20", "created_at = -1", "kek_version = -7"]
)
async def test_a_data_key_of_which_one_value_is_wrong_is_named_and_used_and_rotated(
    keyring: Keyring, wrong: str
) -> None:
    await keyring.fill(2)
    await _set(keyring, "data_keys", wrong, "k001")
    keys = await KeyStore(keyring.database).all()
    assert {key.id for key in keys} == {"k000", "k001"}
    for key in keys:
        await keyring.wrapping.unwrap(key)
    (problem,) = (await keyring.administration.verify("full")).problems
    column = wrong.partition(" ")[0]
    assert (problem.id, problem.why) == (
        "k001",
        f"its {column} in the table data_keys cannot be read; correct it there",
    )
    assert (await keyring.database.read(seen)).unreadable == {problem.id: problem.why}
    assert len(await keyring.administration.backup()) == 2
    assert (await keyring.rotate()).state == "done"


@pytest.mark.parametrize("url", ["sqlite"], indirect=True)
@pytest.mark.parametrize("column", ["wrapped", "fingerprint", "kek_version", "created_at"])
async def test_a_text_in_a_file_where_there_should_be_none_hides_no_other(keyring: Keyring, column: str) -> None:
    await keyring.fill(2)
    await _set(keyring, "data_keys", f"{column} = 'text'", "k001")
    assert len(await keyring.administration.backup()) == 2
    assert [problem.id for problem in (await keyring.administration.verify("full")).problems] == ["k001"]
    assert sum((await keyring.database.read(seen)).data_keys.values()) == 2


async def test_no_version_is_retired_while_that_of_a_data_key_cannot_be_read(
    keyring: Keyring, versions: Versions
) -> None:
    await keyring.fill(2)
    await versions.rotate()
    await keyring.rotate()
    await _set(keyring, "data_keys", "kek_version = -7", "k001")
    with pytest.raises(RefusedError, match="k001 is still wrapped perhaps by version 1 of"):
        await keyring.administration.retire(1, keyring.token)
    await keyring.rotate(rotation_id="r2")  # it writes the version anew
    await keyring.administration.retire(1, keyring.token)


async def test_two_statuses_that_nobody_knows_are_counted_together(keyring: Keyring) -> None:
    await keyring.fill(3)
    await _set(keyring, "data_keys", "status = 'one'", "k001")
    await _set(keyring, "data_keys", "status = 'two'", "k002")
    assert (await keyring.database.read(seen)).data_keys == {(1, Status.ACTIVE): 1, (1, Status.UNKNOWN): 2}


@pytest.mark.parametrize("column", ["type", "state"])
async def test_a_rotation_of_which_that_is_wrong_is_named_by_every_command_and_by_the_look(
    keyring: Keyring, column: str
) -> None:
    await keyring.fill(1)
    await keyring.rotate(NEW_DEK)
    await _set(keyring, "keyring_rotations", f"{column} = 'xx'", "r1")
    for call in (keyring.administration.progress, keyring.rotate, keyring.rollback):
        with pytest.raises(RefusedError, match=r"rotation r1 cannot be read: .* correct it there"):
            await call()
    now = await keyring.database.read(seen)
    assert now.unreadable == {"r1": f"its {column} in the table keyring_rotations cannot be read; correct it there"}
    assert now.in_progress is False


async def test_a_time_of_the_journal_that_is_no_moment_is_the_beginning_of_time(keyring: Keyring) -> None:
    await keyring.fill(1)
    await keyring.rotate(NEW_DEK)
    await _set(keyring, "keyring_rotations", "updated_at = 1e20", "r1")
    progress = await keyring.administration.progress()
    assert progress is not None
    assert progress.updated_at.timestamp() == 0
    assert "updated_at" in (await keyring.database.read(seen)).unreadable["r1"]
